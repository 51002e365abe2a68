//! The webhook's listener: HTTPS for the API server, and for the chart's uninstall hook.

mod bodies;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Cluster;
use super::admission::Admission;
use super::certificates::Served;
use crate::connections::{Connection, Connections};
use crate::limits::{LimitCounters, MAX_WEBHOOK_CONNECTIONS, ManagerLimit};
use bodies::Bodies;

/// Time for a handshake or a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause before accepting again when there are no descriptors left.
const ACCEPT_DELAY: Duration = Duration::from_millis(100);

/// The webhook's listener.
pub(crate) struct Webhook {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) admission: Admission,
    pub(crate) certificates: Arc<Served>,
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: CancellationToken,
    pub(crate) limits: Arc<LimitCounters>,
}

impl Webhook {
    /// Serves until the end.
    pub(crate) async fn run(self: Arc<Self>, listener: TcpListener) {
        let connections = Connections::new(
            MAX_WEBHOOK_CONNECTIONS,
            ManagerLimit::WebhookConnections,
            self.limits.clone(),
        );
        let bodies = Arc::new(Bodies::new(self.limits.clone()));
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_cert_resolver(self.certificates.clone());
        let acceptor = TlsAcceptor::from(Arc::new(config));
        loop {
            let accepted = tokio::select! {
                () = self.stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let Some(place) = connections.enter(peer.ip()) else {
                        continue;
                    };
                    let connection = WebhookConnection {
                        webhook: self.clone(),
                        bodies: bodies.clone(),
                        place: place.clone(),
                    };
                    let serve = connection.serve(acceptor.clone(), stream);
                    let stop = self.stop.clone();
                    self.tasks.spawn(async move {
                        tokio::select! {
                            () = stop.cancelled() => {}
                            () = place.close().cancelled() => {}
                            () = serve => {}
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!("webhook cannot accept: {error}");
                    sleep(ACCEPT_DELAY).await;
                }
            }
        }
    }
}

/// One connection.
#[derive(Clone)]
struct WebhookConnection {
    webhook: Arc<Webhook>,
    bodies: Arc<Bodies>,
    place: Arc<Connection>,
}

impl WebhookConnection {
    async fn serve(self, acceptor: TlsAcceptor, stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        // Health checks and scanners come and go without a handshake.
        let Ok(Ok(stream)) = timeout(HEAD_TIMEOUT, acceptor.accept(stream)).await else {
            return;
        };
        let service = service_fn(move |request| {
            let this = self.clone();
            async move { Ok::<_, Infallible>(this.answer(request).await) }
        });
        let served = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(Duration::from_secs(180))
            .serve_connection(TokioIo::new(stream), service)
            .await;
        if let Err(error) = served {
            tracing::debug!("webhook connection: {error}");
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        match (request.method(), request.uri().path()) {
            (_, "/healthz") => text(StatusCode::OK, "ok"),
            (&Method::DELETE, "/uninstall") => {
                let _serving = self.place.serves();
                self.webhook.cluster.uninstall().await;
                text(StatusCode::OK, "agents are removed")
            }
            (_, "/uninstall") => text(StatusCode::METHOD_NOT_ALLOWED, "send DELETE"),
            (&Method::POST, _) => self.review(request).await,
            _ => text(StatusCode::METHOD_NOT_ALLOWED, "send POST"),
        }
    }

    async fn review(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let content_type = request.headers().get(CONTENT_TYPE);
        if content_type.is_none_or(|it| it != "application/json") {
            return text(
                StatusCode::BAD_REQUEST,
                "the content type must be application/json",
            );
        }
        let body = match self.bodies.read(request.into_body()).await {
            Ok(body) => body,
            Err((status, problem)) => return text(status, &problem),
        };
        // Whoever only drips a body has to give way.
        let _serving = self.place.serves();
        let answer = match self.webhook.admission.review(&body.bytes).await {
            Ok(answer) => answer,
            Err(problem) => return text(StatusCode::BAD_REQUEST, &problem),
        };
        let body = match serde_json::to_vec(&answer) {
            Ok(body) => body,
            Err(error) => return text(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
        };
        let mut response = Response::new(Full::from(body));
        let json = hyper::header::HeaderValue::from_static("application/json");
        response.headers_mut().insert(CONTENT_TYPE, json);
        response
    }
}

fn text(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(format!("{text}\n")));
    *response.status_mut() = status;
    response
}
