//! The workstation's half of the local REST API: a consumer of messages that runs here asks whether
//! a message is the intercept's. It is served where the app's environment names its port, so that
//! the same program works in the pod and here.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use traffic_core::rest_api::{Answer, Candidate, MAX_FORM, Place, Question, answer};
use traffic_core::routing::matcher::{Filters, PathFilter};
use traffic_proto::manager::InterceptInfo;

use crate::report::note;

/// Variable of the app's environment with the port.
const PORT: &str = "TELEPRESENCE_API_PORT";
/// Time a connection may take to send a request head, and as much for a form.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum number of connections; more wait in the accept queue.
const MAX_CONNECTIONS: usize = 64;

/// The API of one intercept; ends when dropped.
#[derive(Debug)]
pub(crate) struct RestApi {
    _serving: JoinSet<()>,
}

/// Facts about the intercept.
#[derive(Debug)]
struct Own {
    id: String,
    container_port: u16,
    filters: Filters,
    metadata: BTreeMap<String, String>,
}

impl RestApi {
    /// Serves an active intercept, if the app's environment has a port for it. A port that is taken
    /// is said and costs no more than the API.
    pub(crate) async fn start(info: &InterceptInfo) -> Option<Self> {
        if info.spec.as_ref().is_some_and(|spec| spec.wiretap) {
            // Every message is the app's: a program here may look, and takes none.
            return None;
        }
        let text = info.environment.get(PORT)?;
        let port = text.parse::<u16>().ok().filter(|port| *port != 0);
        let Some(port) = port else {
            note(format!(
                "{PORT}={text}: not a port number; the REST API is not served here"
            ));
            return None;
        };
        match Self::on(port, info).await {
            Ok((api, _)) => Some(api),
            Err(error) => {
                note(format!(
                    "127.0.0.1:{port} ({PORT}): {error}; the REST API is not served here"
                ));
                None
            }
        }
    }

    /// Serves on a port, 0 for any; returns the address as well.
    async fn on(port: u16, info: &InterceptInfo) -> io::Result<(Self, SocketAddr)> {
        // Loopback alone: the answers are for programs of this machine.
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        let address = listener.local_addr()?;
        let own = Arc::new(Own::of(info));
        let mut serving = JoinSet::new();
        serving.spawn(serve(listener, own));
        tracing::debug!(%address, "the REST API is served");
        Ok((Self { _serving: serving }, address))
    }
}

impl Own {
    fn of(info: &InterceptInfo) -> Self {
        let spec = info.spec.clone().unwrap_or_default();
        let paths = spec.path_filters.iter();
        let mut filters = Filters {
            paths: paths
                .filter_map(|path| PathFilter::parse(path).ok())
                .collect(),
            ..Filters::default()
        };
        for (name, value) in &spec.header_filters {
            // The agent has accepted them, by the same rules.
            let _ = filters.add(name, value);
        }
        let metadata = if info.metadata.is_empty() {
            spec.metadata
        } else {
            info.metadata.clone()
        };
        Self {
            id: info.id.clone(),
            container_port: u16::try_from(spec.container_port).unwrap_or(0),
            filters,
            metadata,
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Answer {
        let (head, body) = request.into_parts();
        let form = "application/x-www-form-urlencoded";
        let is_form = |kind: &HeaderValue| kind.as_bytes().starts_with(form.as_bytes());
        let form = if head.headers.get(CONTENT_TYPE).is_some_and(is_form) {
            // A form that is too large, breaks off or does not come counts as none.
            let body = tokio::time::timeout(HEAD_TIMEOUT, Limited::new(body, MAX_FORM).collect());
            body.await
                .ok()
                .and_then(Result::ok)
                .map_or_else(Bytes::new, |body| body.to_bytes())
        } else {
            Bytes::new()
        };
        let headers = head.headers.iter();
        let question = Question {
            endpoint: head.uri.path(),
            query: head.uri.query().unwrap_or_default(),
            form: &form,
            headers: headers
                .map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()))
                .collect(),
        };
        answer(Place::Workstation, &question, |port| {
            let own = Candidate {
                id: &self.id,
                filters: &self.filters,
                metadata: &self.metadata,
            };
            // Several ports of a pod may be asked about; an intercept has one.
            let is_about_it = port == 0 || self.container_port == 0 || port == self.container_port;
            is_about_it.then_some(own).into_iter().collect()
        })
    }
}

async fn serve(listener: TcpListener, own: Arc<Own>) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => accepted,
            // Those that have ended are forgotten.
            Some(_) = connections.join_next() => continue,
        };
        let Ok((socket, _)) = accepted else {
            // Out of descriptors: trying again at once would only spin.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let own = Arc::clone(&own);
        connections.spawn(async move {
            let service = service_fn(|request| async {
                Ok::<_, Infallible>(response(own.answer(request).await))
            });
            let _ = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .serve_connection(TokioIo::new(socket), service)
                .await;
        });
    }
}

fn response(answer: Answer) -> Response<Full<Bytes>> {
    let is_json = !answer.json.is_empty();
    let mut response = Response::new(Full::new(Bytes::from(answer.json)));
    *response.status_mut() =
        StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if is_json {
        let json = HeaderValue::from_static("application/json");
        response.headers_mut().insert(CONTENT_TYPE, json);
    }
    response
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;
    use traffic_proto::manager::InterceptSpec;

    fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        let head =
            format!("{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-dev: me\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[tokio::test(start_paused = true)]
    async fn a_form_that_does_not_come_is_not_waited_for() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let (_api, address) = RestApi::on(0, &InterceptInfo::default()).await.unwrap();
        let mut waiting = Vec::new();
        for _ in 0..MAX_CONNECTIONS + 1 {
            let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
            let head = "POST /consume-here HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\
                content-type: application/x-www-form-urlencoded\r\n\r\n";
            stream.write_all(head.as_bytes()).await.unwrap();
            waiting.push(stream);
        }
        // The last one has a place only when others are done.
        for mut stream in waiting {
            let mut answer = [0; 15];
            stream.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"HTTP/1.1 200 OK");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_intercept_answers_for_its_own_messages_and_a_taken_port_costs_only_the_api() {
        let spec = InterceptSpec {
            header_filters: [("x-dev".to_owned(), "me".to_owned())].into(),
            path_filters: vec![":path-prefix:/orders".to_owned()],
            metadata: [("team".to_owned(), "a".to_owned())].into(),
            container_port: 8080,
            ..InterceptSpec::default()
        };
        let mut info = InterceptInfo {
            id: "s:mine".to_owned(),
            spec: Some(spec),
            ..InterceptInfo::default()
        };
        assert!(RestApi::start(&info).await.is_none(), "no port, no API");
        let (api, address) = RestApi::on(0, &info).await.unwrap();
        let asked = |request: &'static str| async move {
            tokio::task::spawn_blocking(move || ask(address, request))
                .await
                .unwrap()
        };
        let here = asked("GET /consume-here?path=/orders/1").await;
        assert!(
            here.starts_with("HTTP/1.1 200") && here.ends_with("\r\n\r\ntrue\n"),
            "{here}"
        );
        let other = asked("GET /consume-here?path=/orders&containerPort=9090").await;
        assert!(other.ends_with("\r\n\r\nfalse\n"), "{other}");
        let info_json = asked("POST /intercept-info?path=/orders&containerPort=8080").await;
        let expected = "{\"intercepted\":true,\"clientSide\":true,\"metadata\":{\"team\":\"a\"}}\n";
        assert!(info_json.ends_with(expected), "{info_json}");
        assert!(
            info_json.contains("content-type: application/json"),
            "{info_json}"
        );

        info.environment
            .insert(PORT.to_owned(), address.port().to_string());
        assert!(RestApi::start(&info).await.is_none(), "the port is taken");
        drop(api);
    }
}
