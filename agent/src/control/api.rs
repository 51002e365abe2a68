//! The agent's own gRPC service: workstations attach here (by a port-forward) to receive and answer
//! dial requests, and to have the agent dial into the cluster for them.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};
use traffic_core::http2::authority::AuthorityRewriter;
use traffic_proto::agent::agent_server::{Agent, AgentServer};
use traffic_proto::manager::{
    DialRequest, LookupRequest, LookupResponse, SessionInfo, TunnelMessage, VersionInfo2,
};
use traffic_proto::rewrite_io::RewriteReads;
use traffic_proto::tunnel::{GRPC_LIMIT, Message, STREAM_VERSION, StreamInfo};

use crate::control::config::PRODUCT_NAME;
use crate::control::dialer;
use crate::control::dns::Dns;
use crate::control::tunnels::{
    QUEUE_CAPACITY, TunnelDirection, Tunnels, answering, metered_incoming,
};
use crate::drain::Drain;
use crate::io::listen;
use crate::telemetry::metrics::ControlMetrics;
use crate::upstream::{Role, TunnelIo};

/// Time until the first message of a call has to arrive.
const FIRST_MESSAGE: Duration = Duration::from_secs(10);
/// Interval of pings to a workstation that says nothing.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// Time for its answer.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes a workstation may send into one tunnel ahead of its reader.
const STREAM_WINDOW: u32 = 256 * 1024;
/// Connection window, effectively unlimited: tunnels share a connection, and a few stalled ones
/// must not stop the rest.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;

/// The service; cheap to clone.
#[derive(Clone)]
pub struct Service {
    tunnels: Tunnels,
    dns: Arc<Dns>,
    drain: Drain,
    metrics: Arc<ControlMetrics>,
}

impl Service {
    /// Creates the service; connections dialled for workstations run as tasks of `drain`.
    #[must_use]
    pub fn new(
        tunnels: Tunnels,
        dns: Arc<Dns>,
        drain: Drain,
        metrics: Arc<ControlMetrics>,
    ) -> Self {
        Self {
            tunnels,
            dns,
            drain,
            metrics,
        }
    }
}

impl Service {
    /// Lets a client's session in. Where the manager cannot be asked, peers inside the pod (a
    /// port-forward ends there) are served as the stock agent serves everybody.
    async fn admit(&self, session: &str, peer: Option<SocketAddr>) -> Result<(), Status> {
        let known = match self.tunnels.sessions().is_known(session) {
            Some(known) => Some(known),
            None => self.tunnels.confirm(session).await,
        };
        let inside = peer.is_some_and(|peer| peer.ip().to_canonical().is_loopback());
        if known.unwrap_or(inside) {
            return Ok(());
        }
        self.metrics.denied.inc();
        tracing::info!(
            ?peer,
            "agent API: a session that the manager does not know was refused"
        );
        Err(Status::permission_denied(
            "the traffic-manager does not know this session; connect to it first",
        ))
    }
}

/// Serves the agent's API and gRPC health on `listeners` until `stop`.
///
/// # Errors
/// The transport's error; an error of a single connection ends only that connection.
pub async fn serve(
    service: Service,
    listeners: Vec<TcpListener>,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<AgentServer<Service>>().await;
    let api = AgentServer::new(service)
        .max_decoding_message_size(GRPC_LIMIT)
        .max_encoding_message_size(GRPC_LIMIT);
    let routes = Routes::new(api).add_service(health_service);
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
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Agent for Service {
    type TunnelStream = Answers<TunnelMessage>;
    type WatchDialStream = Answers<DialRequest>;

    async fn tunnel(
        &self,
        request: Request<Streaming<TunnelMessage>>,
    ) -> Result<Response<Self::TunnelStream>, Status> {
        let peer = request.remote_addr();
        let mut incoming = request.into_inner();
        let info = first_message(&mut incoming).await?;
        if info.session_id.is_empty() {
            return Err(Status::unauthenticated(
                "a tunnel without a session id; send the client's session",
            ));
        }
        // Who answers a dial request was asked by this agent.
        if !self.tunnels.awaited(&info) {
            self.admit(&info.session_id, peer).await?;
        }
        let (tx, queue) = mpsc::channel(QUEUE_CAPACITY);
        // The queue is empty and has room for more than one.
        let _ = tx.try_send(Message::StreamOk(STREAM_VERSION).encode());
        let direction = if self.tunnels.awaited(&info) {
            TunnelDirection::Workstation
        } else {
            TunnelDirection::Cluster
        };
        let meter = self.tunnels.meter(&info.session_id, direction);
        let io = TunnelIo {
            tx,
            rx: metered_incoming(incoming, Arc::clone(&meter)),
            role: Role::Server,
        };
        match (direction, self.tunnels.answer(&info, io)) {
            (_, Ok(())) => {}
            (TunnelDirection::Workstation, Err(_)) => {
                return Err(Status::cancelled("the caller has left"));
            }
            (TunnelDirection::Cluster, Err(io)) => {
                self.metrics.dials.inc();
                self.drain
                    .spawn(dialer::dial_and_carry(info.conn_id, info.dial_timeout, io));
            }
        }
        Ok(Response::new(Box::pin(answering(queue, meter))))
    }

    async fn watch_dial(
        &self,
        request: Request<SessionInfo>,
    ) -> Result<Response<Self::WatchDialStream>, Status> {
        let peer = request.remote_addr();
        let session = request.into_inner().session_id;
        if session.is_empty() {
            return Err(Status::invalid_argument(
                "no session id; send the client's session",
            ));
        }
        self.admit(&session, peer).await?;
        tracing::debug!(session, "a workstation watches for dials");
        Ok(Response::new(Box::pin(self.tunnels.watch(&session))))
    }

    async fn version(&self, _: Request<()>) -> Result<Response<VersionInfo2>, Status> {
        Ok(Response::new(VersionInfo2 {
            name: PRODUCT_NAME.to_owned(),
            version: crate::VERSION.to_owned(),
        }))
    }

    async fn lookup(
        &self,
        request: Request<LookupRequest>,
    ) -> Result<Response<LookupResponse>, Status> {
        let ips = self.dns.addresses(&request.into_inner().name).await?;
        Ok(Response::new(LookupResponse { ips }))
    }
}

async fn first_message(incoming: &mut Streaming<TunnelMessage>) -> Result<StreamInfo, Status> {
    let first = tokio::time::timeout(FIRST_MESSAGE, incoming.next())
        .await
        .map_err(|_| Status::deadline_exceeded("no StreamInfo in time"))?
        .ok_or_else(|| Status::failed_precondition("the tunnel ended before its StreamInfo"))??;
    match Message::decode(first.payload) {
        Ok(Message::StreamInfo(info)) => Ok(info),
        Ok(other) => Err(Status::failed_precondition(format!(
            "code {} came before StreamInfo",
            other.code()
        ))),
        Err(error) => Err(Status::failed_precondition(format!(
            "no StreamInfo: {error}"
        ))),
    }
}
