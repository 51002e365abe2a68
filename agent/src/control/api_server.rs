//! The server of the agent's gRPC API: its connections, their windows and their keepalive.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::codegen::{BoxFuture, Service as _};
use tonic::transport::server::{Connected as _, TcpConnectInfo};
use tonic_health::pb::health_server::{Health, HealthServer};
use traffic_core::http2::authority::AuthorityRewriter;
use traffic_proto::agent::agent_server::AgentServer;
use traffic_proto::rewrite_io::RewriteReads;
use traffic_proto::tunnel::GRPC_LIMIT;

use crate::control::api::Service;
use crate::control::dial_watches::DialWatches;
use crate::io::listen;

/// Interval of pings to a workstation that says nothing.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// Time for its answer.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes a workstation may send into one tunnel ahead of its reader.
const STREAM_WINDOW: u32 = 256 * 1024;
/// Connection window, effectively unlimited: tunnels share a connection, and a few stalled ones
/// must not stop the rest.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;

/// Prefix of the paths of health calls.
const HEALTH: &str = "/grpc.health.v1.Health/";

/// Serves the agent's API and gRPC health on `listeners`, for ever. An error of a connection ends only
/// that connection.
pub(crate) async fn serve(service: Service, listeners: Vec<TcpListener>) {
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<AgentServer<Service>>().await;
    let others = AgentServer::new(service.clone())
        .max_decoding_message_size(GRPC_LIMIT)
        .max_encoding_message_size(GRPC_LIMIT);
    let services = Arc::new(Services {
        agent: DialWatches { others, service },
        health,
    });
    let server = server();
    let accepting = listeners.into_iter().map(async |listener| {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                socket = listen::accept(&listener, "agent API") => {
                    connections.spawn(connection(&server, socket, Arc::clone(&services)));
                }
                Some(_) = connections.join_next() => {}
            }
        }
    });
    join_all(accepting).await;
}

fn server() -> http2::Builder<TokioExecutor> {
    let mut server = http2::Builder::new(TokioExecutor::new());
    server
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(None)
        // Tells soon of a workstation that sleeps or is gone without a word.
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .auto_date_header(false);
    server
}

/// Serves one connection. Not by the gRPC library's server: its layers take 1 kB more of each.
fn connection<H: Health>(
    server: &http2::Builder<TokioExecutor>,
    socket: TcpStream,
    services: Arc<Services<H>>,
) -> impl Future<Output = ()> + Send + use<H> {
    let peer = socket.connect_info();
    let mut authority = AuthorityRewriter::new("localhost");
    let rewritten = RewriteReads::new(socket, move |input: &[u8], out: &mut Vec<u8>| {
        authority.rewrite(input, out);
    });
    let answer = service_fn(move |request| services.answer(request, peer.clone()));
    let serving = server.serve_connection(TokioIo::new(rewritten), answer);
    // A block that awaits it would keep room for it twice.
    serving.map(|ended| {
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection of the agent's gRPC API ended");
        }
    })
}

/// The services of the API.
struct Services<H> {
    agent: DialWatches,
    health: HealthServer<H>,
}

impl<H: Health> Services<H> {
    /// Answers a call by the service that its path names; the agent's refuses what it does not know.
    fn answer(
        &self,
        request: Request<Incoming>,
        peer: TcpConnectInfo,
    ) -> BoxFuture<Response<Body>, Infallible> {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(peer);
        if request.uri().path().starts_with(HEALTH) {
            self.health.clone().call(request)
        } else {
            self.agent.clone().call(request)
        }
    }
}
