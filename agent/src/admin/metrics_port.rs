//! The port that shows metrics and nothing else, so that it can be opened to scrapers while the admin
//! stays on loopback. Sessions of users, which are keys, do not appear there.

use std::convert::Infallible;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::ACCEPT;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::admin::request::Page;
use crate::admin::stats::Stat;
use crate::admin::{Agent, exposition, stats};
use crate::io::listen;

/// Path of the metrics.
const PATH: &str = "/metrics";
/// Time a connection may take to send a request head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Time of a connection, including the client's reading.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);
/// Connections served at once; others wait, as the port may be open to many.
pub const MAX_CONNECTIONS: usize = 16;

/// Serves `listener` until `stop`.
pub async fn serve(listener: TcpListener, agent: Arc<Agent>, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listen::accept(&listener, "metrics").await)
        };
        let (place, socket) = tokio::select! {
            () = stop.cancelled() => return,
            accepted = accepted => accepted,
        };
        let (agent, stop) = (Arc::clone(&agent), stop.clone());
        #[expect(clippy::disallowed_methods, reason = "it ends with `stop`")]
        tokio::spawn(async move {
            let _place = place;
            tokio::select! {
                _ = tokio::time::timeout(CONNECTION_TIMEOUT, connection(socket, agent)) => {}
                () = stop.cancelled() => {}
            }
        });
    }
}

async fn connection(socket: TcpStream, agent: Arc<Agent>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let agent = Arc::clone(&agent);
        async move { Ok::<_, Infallible>(answer(&request, &agent)) }
    });
    let serving = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(socket), service);
    // Scrapers that go away need no word.
    let _ = serving.await;
}

fn answer(request: &Request<Incoming>, agent: &Agent) -> Response<Full<Bytes>> {
    let accept = request
        .headers()
        .get(ACCEPT)
        .and_then(|accept| accept.to_str().ok());
    let page = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, PATH) => metrics(agent, accept.unwrap_or_default()),
        (_, PATH) => Page::text(405, "only GET is allowed here\n".to_owned()),
        _ => Page::text(404, format!("this port has {PATH} and nothing else\n")),
    };
    Response::builder()
        .status(page.status)
        .header("content-type", page.content_type)
        .body(Full::new(Bytes::from(page.body)))
        .unwrap_or_else(|_| Response::new(Full::new(Bytes::from_static(b"internal error\n"))))
}

fn metrics(agent: &Agent, accept: &str) -> Page {
    let mut list = stats::collect(agent);
    list.iter_mut().for_each(conceal);
    exposition::page(list, accept)
}

/// Replaces the id of an intercept, which begins with its user's session, by a number of its own.
fn conceal(stat: &mut Stat) {
    for (_, id) in stat
        .labels
        .iter_mut()
        .filter(|(key, _)| *key == "intercept")
    {
        let mut hasher = DefaultHasher::new();
        id.hash(&mut hasher);
        *id = format!("{:016x}", hasher.finish());
    }
}
