//! The admin's HTTP server: accepts, limits every request in time and size, and passes it to
//! [`super::endpoints`], if it names this agent as its host.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::http::request::Parts;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use traffic_proto::html;
use traffic_proto::web_origin::{OwnNames, is_same_origin};

use crate::admin::request::AdminRequest;
use crate::admin::{Agent, endpoints};
use crate::io::listen;
use crate::telemetry::metrics::ControlLimit;
use crate::telemetry::rate_limit::limited;

/// Time a connection may take to send a request head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Most bytes of a form's fields.
pub const MAX_FORM: usize = 4096;
/// Time of one response, including the client's reading of it.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(300);

/// Serves `listener` until `stop`; connections are HTTP/1 as Envoy's admin speaks it.
pub async fn serve(listener: TcpListener, agent: Arc<Agent>, stop: CancellationToken) {
    loop {
        let socket = tokio::select! {
            () = stop.cancelled() => return,
            socket = listen::accept(&listener, "admin") => socket,
        };
        #[expect(clippy::disallowed_methods, reason = "it ends with `stop`")]
        tokio::spawn(connection(socket, agent.clone(), stop.clone()));
    }
}

async fn connection(socket: tokio::net::TcpStream, agent: Arc<Agent>, stop: CancellationToken) {
    let address = socket.local_addr().ok().map(|address| address.ip());
    let own = Arc::new(agent.names.with_address(address));
    let service = service_fn(move |request: Request<Incoming>| {
        let (agent, own) = (agent.clone(), Arc::clone(&own));
        async move {
            let (head, body) = request.into_parts();
            let form = form(&head, body).await;
            let request = Request::from_parts(head, ());
            Ok::<_, Infallible>(answer(&request, &form, &agent, &own))
        }
    });
    let serving = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(socket), service);
    tokio::select! {
        _ = tokio::time::timeout(CONNECTION_TIMEOUT, serving) => {}
        () = stop.cancelled() => {}
    }
}

/// Reads the fields of a form; all else, and one that is too large or too slow, counts as none.
async fn form(head: &Parts, body: Incoming) -> String {
    let content_type = head.headers.get(CONTENT_TYPE).map(|it| it.as_bytes());
    if !content_type.is_some_and(|it| it.starts_with(b"application/x-www-form-urlencoded")) {
        return String::new();
    }
    let body = Limited::new(body, MAX_FORM).collect();
    match tokio::time::timeout(HEAD_TIMEOUT, body).await {
        Ok(Ok(body)) => String::from_utf8(body.to_bytes().into()).unwrap_or_default(),
        _ => String::new(),
    }
}

fn answer(
    request: &Request<()>,
    form: &str,
    agent: &Agent,
    own: &OwnNames,
) -> Response<Full<Bytes>> {
    let header = |name| {
        request
            .headers()
            .get(name)
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default()
    };
    let mut query = request.uri().query().unwrap_or_default().to_owned();
    if !form.is_empty() {
        query = [query.as_str(), form].join("&");
    }
    let asked = AdminRequest {
        post: request.method() == hyper::Method::POST,
        method: request.method().as_str(),
        path: request.uri().path(),
        query: &query,
        accept: header(hyper::header::ACCEPT),
        // Browsers state the origin of a request (Fetch Metadata); other clients send no such
        // header.
        cross_site: !matches!(
            header(hyper::header::HeaderName::from_static("sec-fetch-site")),
            "" | "same-origin" | "none"
        ) || !is_of_this_site(request),
    };
    let page = match foreign_host(request, own) {
        Some(host) => {
            agent.control.limits.at(ControlLimit::AdminHost).inc();
            limited!(
                agent.control.lines.admin,
                warn,
                host,
                "admin: a request for a foreign host name was refused"
            );
            endpoints::foreign_host(&host)
        }
        None => endpoints::answer(&asked, agent),
    };
    Response::builder()
        .status(page.status)
        .header("content-type", page.content_type)
        .header("cache-control", "no-cache, max-age=0")
        .header("x-content-type-options", "nosniff")
        .header("content-security-policy", html::POLICY)
        .body(Full::new(Bytes::from(page.body)))
        .unwrap_or_else(|_| Response::new(Full::new(Bytes::from_static(b"internal error\n"))))
}

/// Authorities the request names, in its target and in every Host header.
fn authorities(request: &Request<()>) -> impl Iterator<Item = &str> {
    let hosts = request.headers().get_all(hyper::header::HOST).into_iter();
    // Bytes that are no text are no name of ours.
    let hosts = hosts.map(|host| host.to_str().unwrap_or("?"));
    let target = request.uri().authority().map(|target| target.as_str());
    target.into_iter().chain(hosts)
}

/// The first name that is not one of this agent; clients of old that name nothing are no browsers.
fn foreign_host(request: &Request<()>, own: &OwnNames) -> Option<String> {
    let mut foreign = authorities(request).filter(|authority| !own.contain(authority));
    foreign.next().map(str::to_owned)
}

/// Returns false if a browser says that the request comes from a page of another server.
fn is_of_this_site(request: &Request<()>) -> bool {
    let origins = request.headers().get_all(hyper::header::ORIGIN);
    origins.into_iter().all(|origin| {
        let origin = origin.to_str().unwrap_or("?");
        let mut authorities = authorities(request).peekable();
        authorities.peek().is_some() && authorities.all(|it| is_same_origin(origin, it))
    })
}
