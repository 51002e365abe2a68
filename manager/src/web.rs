//! What the manager answers over plain HTTP: figures for scrapers, readiness, and for people on this
//! machine or behind a port-forward a page of what is going on and the level of the log.
//!
//! Both ports speak it. On the API's port only callers from loopback get the page, because it names
//! users; the metrics port, which is opened to scrapers, never has it.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, HeaderName, HeaderValue, ORIGIN,
    X_CONTENT_TYPE_OPTIONS,
};
use hyper::http::request::Parts;
use hyper::service::service_fn;
use hyper::{Method, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use traffic_proto::html;
use traffic_proto::printable::printable;
use traffic_proto::web_origin::{OwnNames, is_same_origin};

use crate::cluster::Cluster;
use crate::log_levels;
use crate::metrics::{Metrics, OPEN_METRICS};
use crate::page;
use crate::registry::Shared;
use crate::settings::Settings;

/// Time for a scraper to send its request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Time of a connection, including the scraper's reading.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);
/// Pause before accepting again when there are no descriptors left.
const ACCEPT_DELAY: Duration = Duration::from_millis(100);
/// Scrapers served at once; others wait, as the port may be open to many.
const MAX_CONNECTIONS: usize = 16;
/// Content types.
const TEXT: &str = "text/plain; charset=utf-8";
const HTML: &str = "text/html; charset=utf-8";

/// Answers over plain HTTP.
pub(crate) struct Web {
    pub(crate) shared: Arc<Shared>,
    pub(crate) settings: Arc<Settings>,
    pub(crate) cluster: Option<Arc<Cluster>>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) started: Instant,
}

impl Web {
    /// Answers a request on the API's port that is no gRPC call; `peer` sent it.
    pub(crate) fn answer(&self, head: &Parts, peer: Option<IpAddr>) -> Response<String> {
        let path = head.uri.path();
        if path == "/ready" {
            return self.ready();
        }
        // Who comes from elsewhere learns nothing; and the page of a foreign site can make a browser
        // come from here, but not under one of our names.
        let is_near = peer.is_some_and(|ip| ip.to_canonical().is_loopback());
        if !is_near || !is_for_us(head) {
            return text(
                StatusCode::OK,
                format!("traffic-manager: {} is not a gRPC call\n", printable(path)),
            );
        }
        match path {
            "/" if is_reading(head) => self.page(),
            "/metrics" if is_reading(head) => self.metrics(),
            "/logging" if head.method == Method::POST => self.logging(head),
            "/logging" => text(StatusCode::OK, self.level()),
            "/" | "/metrics" => text(StatusCode::METHOD_NOT_ALLOWED, "send GET\n".into()),
            _ => text(
                StatusCode::NOT_FOUND,
                format!(
                    "traffic-manager: {} is not a gRPC call; there are / (for browsers), /metrics, \
                     /ready and /logging\n",
                    printable(path)
                ),
            ),
        }
    }

    /// Serves scrapers until the end; each gets all figures, whatever its path.
    pub(crate) async fn serve_metrics(
        self: Arc<Self>,
        listener: TcpListener,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let accepted = async {
                let place = places.clone().acquire_owned().await;
                (place, listener.accept().await)
            };
            let (place, accepted) = tokio::select! {
                () = stop.cancelled() => return,
                accepted = accepted => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    let (this, stop) = (self.clone(), stop.clone());
                    tasks.spawn(async move {
                        let _place = place;
                        tokio::select! {
                            () = stop.cancelled() => {}
                            _ = timeout(CONNECTION_TIMEOUT, this.scraped(stream)) => {}
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!("metrics cannot accept: {error}");
                    sleep(ACCEPT_DELAY).await;
                }
            }
        }
    }

    async fn scraped(self: Arc<Self>, stream: TcpStream) {
        let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
            let answer = match request.uri().path() {
                "/ready" => self.ready(),
                _ => self.metrics(),
            };
            async move { Ok::<_, Infallible>(answer) }
        });
        let served = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service)
            .await;
        if let Err(error) = served {
            tracing::debug!("metrics connection: {error}");
        }
    }

    /// Returns true if the manager is ready: in a cluster its watches and the webhook have to be.
    fn ready(&self) -> Response<String> {
        match page::is_ready(self.cluster.as_deref()) {
            true => text(StatusCode::OK, "READY\n".into()),
            false => text(StatusCode::SERVICE_UNAVAILABLE, "STARTING\n".into()),
        }
    }

    fn page(&self) -> Response<String> {
        let view = page::View::read(&self.shared, self.cluster.as_deref());
        let level = self.settings.log.current();
        let page = page::render(&view, &self.settings, level, self.started.elapsed());
        answer(StatusCode::OK, HTML, page)
    }

    fn metrics(&self) -> Response<String> {
        match self.metrics.clone().text() {
            Ok(figures) => answer(StatusCode::OK, OPEN_METRICS, figures),
            Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, String::new()),
        }
    }

    fn level(&self) -> String {
        format!("{}\n", self.settings.log.current()).to_lowercase()
    }

    /// Changes the level of the manager's own log.
    fn logging(&self, head: &Parts) -> Response<String> {
        let is_of_this_site = head.headers.get_all(ORIGIN).iter().all(|origin| {
            let origin = origin.to_str().unwrap_or("?");
            hosts(head).all(|host| is_same_origin(origin, host))
        });
        if !is_of_this_site {
            let why = "requests from another site may not change anything\n";
            return text(StatusCode::FORBIDDEN, why.into());
        }
        let query = head.uri.query().unwrap_or_default();
        let word = query.strip_prefix("level=").unwrap_or_default();
        match word.parse::<traffic_proto::LogLevel>() {
            Ok(_) => {
                self.settings.log.set(log_levels::level(word));
                text(StatusCode::OK, self.level())
            }
            Err(_) => {
                let usage =
                    "usage: /logging?level=LEVEL\nlevels: trace debug info warning error off\n";
                text(StatusCode::BAD_REQUEST, usage.into())
            }
        }
    }
}

fn is_reading(head: &Parts) -> bool {
    matches!(head.method, Method::GET | Method::HEAD)
}

/// Names that the request gives this server.
fn hosts(head: &Parts) -> impl Iterator<Item = &str> {
    let named = head.headers.get_all(HOST).into_iter();
    // Bytes that are no text are no name of ours.
    let named = named.map(|host| host.to_str().unwrap_or("?"));
    let target = head.uri.authority().map(|target| target.as_str());
    target.into_iter().chain(named)
}

/// Returns true if every name that the request gives this server is one of loopback.
fn is_for_us(head: &Parts) -> bool {
    let own = OwnNames::default();
    hosts(head).all(|host| own.contain(host))
}

fn text(status: StatusCode, text: String) -> Response<String> {
    answer(status, TEXT, text)
}

fn answer(status: StatusCode, content_type: &'static str, body: String) -> Response<String> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    let mut put = |name: HeaderName, value: &'static str| {
        headers.insert(name, HeaderValue::from_static(value));
    };
    put(CONTENT_TYPE, content_type);
    put(CACHE_CONTROL, "no-cache, max-age=0");
    put(X_CONTENT_TYPE_OPTIONS, "nosniff");
    put(CONTENT_SECURITY_POLICY, html::POLICY);
    response
}
