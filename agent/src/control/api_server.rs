//! The server of the agent's gRPC API: its connections, their windows and their keepalive.

use std::time::Duration;

use futures_util::{Stream, stream};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
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

/// Serves the agent's API and gRPC health on `listeners` until `stop`.
///
/// # Errors
/// The transport's error; an error of a single connection ends only that connection.
pub(crate) async fn serve(
    service: Service,
    listeners: Vec<TcpListener>,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<AgentServer<Service>>().await;
    let others = AgentServer::new(service.clone())
        .max_decoding_message_size(GRPC_LIMIT)
        .max_encoding_message_size(GRPC_LIMIT);
    let routes = Routes::new(DialWatches { others, service }).add_service(health_service);
    let accepting = stream::select_all(
        listeners
            .into_iter()
            .map(|listener| Box::pin(accepted(listener))),
    );
    tonic::transport::Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        // Tells soon of a workstation that sleeps or is gone without a word.
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .add_routes(routes)
        .serve_with_incoming_shutdown(accepting, stop.cancelled_owned())
        .await
}

/// Connections, as the server reads them: an authority that is no host name, which gRPC clients
/// may send (`pod%2Fname.namespace:18000`), is replaced, because the `http` crate refuses it.
fn accepted(listener: TcpListener) -> impl Stream<Item = std::io::Result<Connection>> + Send {
    // An error handed on would end the server.
    stream::unfold(listener, |listener| async {
        let socket = listen::accept(&listener, "agent API").await;
        let mut authority = AuthorityRewriter::new("localhost");
        let rewrite: Rewrite = Box::new(move |input, out| authority.rewrite(input, out));
        Some((Ok(RewriteReads::new(socket, rewrite)), listener))
    })
}

type Rewrite = Box<dyn FnMut(&[u8], &mut Vec<u8>) + Send>;
type Connection = RewriteReads<TcpStream, Rewrite>;
