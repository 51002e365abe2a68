//! The local REST API (`apiPort`): consumers of messages in the app's containers ask here whether a
//! message is theirs or an intercept takes it. The answers are those of the current route tables.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use traffic_core::rest_api::{Answer, Candidate, MAX_FORM, Place, Question, answer};
use traffic_core::routing::{Intercept, State};

use crate::io::listen;
use crate::proxy::context::PortContext;
use crate::upstream::Transport;

/// Time a connection may take to send a request head, the wait for the next one included.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum number of connections; more wait in the accept queue.
pub const MAX_CONNECTIONS: usize = 64;

/// The API of one pod.
#[derive(Debug)]
pub struct RestApi {
    ports: Vec<Arc<PortContext>>,
    connections: Arc<Semaphore>,
}

impl RestApi {
    /// Creates the API over the ports' route tables.
    #[must_use]
    pub fn new(ports: Vec<Arc<PortContext>>) -> Self {
        Self {
            ports,
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        }
    }

    /// Serves `listener` until `stop`.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, stop: CancellationToken) {
        loop {
            // The semaphore is never closed.
            let Ok(permit) = Arc::clone(&self.connections).acquire_owned().await else {
                return;
            };
            // The place is taken first: a crowd waits in the kernel's queue, not in our memory.
            let socket = tokio::select! {
                () = stop.cancelled() => return,
                socket = listen::accept(&listener, "REST API") => socket,
            };
            let (api, stop) = (Arc::clone(&self), stop.clone());
            #[expect(clippy::disallowed_methods, reason = "it ends with `stop`")]
            tokio::spawn(async move {
                let _permit = permit;
                tokio::select! {
                    () = api.connection(socket) => {}
                    () = stop.cancelled() => {}
                }
            });
        }
    }

    async fn connection(self: Arc<Self>, socket: TcpStream) {
        let service = service_fn(move |request: Request<Incoming>| {
            let api = Arc::clone(&self);
            async move { Ok::<_, Infallible>(response(api.answer(request).await)) }
        });
        // A caller that breaks off is its own matter.
        let _ = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .serve_connection(TokioIo::new(socket), service)
            .await;
    }

    async fn answer(&self, request: Request<Incoming>) -> Answer {
        let (head, body) = request.into_parts();
        let form = "application/x-www-form-urlencoded";
        let is_form = |kind: &HeaderValue| kind.as_bytes().starts_with(form.as_bytes());
        let form = if head.headers.get(CONTENT_TYPE).is_some_and(is_form) {
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
        let active = self.active();
        answer(Place::Agent, &question, |port| {
            let of_port = active.iter().filter(|(number, _)| *number == port);
            of_port.map(|(_, intercept)| candidate(intercept)).collect()
        })
    }

    /// Returns the active intercepts of all TCP ports with their container port, and once more with
    /// port 0 where there is only one.
    fn active(&self) -> Vec<(u16, Arc<Intercept>)> {
        let tcp = self.ports.iter().filter(|p| p.transport == Transport::Tcp);
        let tcp: Vec<_> = tcp.collect();
        let mut active = Vec::new();
        for port in &tcp {
            // The tables of the data path itself, so that both ends always agree with the routing.
            let table = port.routes.load_full();
            let entries = table.entries().iter();
            for entry in entries.filter(|entry| entry.state == State::Active) {
                active.push((port.container_port, Arc::clone(&entry.intercept)));
                if tcp.len() == 1 {
                    active.push((0, Arc::clone(&entry.intercept)));
                }
            }
        }
        active
    }
}

fn candidate(intercept: &Arc<Intercept>) -> Candidate<'_> {
    Candidate {
        id: &intercept.id,
        filters: &intercept.filters,
        metadata: &intercept.metadata,
    }
}

fn response(answer: Answer) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(answer.json.clone())));
    *response.status_mut() =
        StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if !answer.json.is_empty() {
        let json = HeaderValue::from_static("application/json");
        response.headers_mut().insert(CONTENT_TYPE, json);
    }
    response
}
