//! The admin's HTTP server: accepts, limits every request in time and size, and passes it to
//! [`super::endpoints`].

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::admin::request::AdminRequest;
use crate::admin::{Agent, endpoints};
use crate::io::listen;

/// Time a connection may take to send a request head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
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
    let service = service_fn(move |request: Request<Incoming>| {
        let agent = agent.clone();
        async move { Ok::<_, Infallible>(answer(&request, &agent)) }
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

fn answer(request: &Request<Incoming>, agent: &Agent) -> Response<Full<Bytes>> {
    let header = |name| {
        request
            .headers()
            .get(name)
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default()
    };
    let asked = AdminRequest {
        post: request.method() == hyper::Method::POST,
        method: request.method().as_str(),
        path: request.uri().path(),
        query: request.uri().query().unwrap_or_default(),
        accept: header(hyper::header::ACCEPT),
        // Browsers state the origin of a request (Fetch Metadata); other clients send no such
        // header.
        cross_site: !matches!(
            header(hyper::header::HeaderName::from_static("sec-fetch-site")),
            "" | "same-origin" | "none"
        ),
    };
    let page = endpoints::answer(&asked, agent);
    Response::builder()
        .status(page.status)
        .header("content-type", page.content_type)
        .header("cache-control", "no-cache, max-age=0")
        .header("x-content-type-options", "nosniff")
        .body(Full::new(Bytes::from(page.body)))
        .unwrap_or_else(|_| Response::new(Full::new(Bytes::from_static(b"internal error\n"))))
}
