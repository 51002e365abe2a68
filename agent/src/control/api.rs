//! The agent's own gRPC service: workstations attach here (by a port-forward) to receive and answer
//! dial requests, and to have the agent dial into the cluster for them.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use tokio::sync::mpsc;
use tonic::metadata::MetadataValue;
use tonic::{Request, Response, Status, Streaming};
use traffic_proto::agent::agent_server::Agent;
use traffic_proto::manager::{
    DialRequest, LookupRequest, LookupResponse, SessionInfo, TunnelMessage, VersionInfo2,
};
use traffic_proto::proof;
use traffic_proto::tunnel::{Message, STREAM_VERSION, StreamInfo};

use crate::control::config::PRODUCT_NAME;
use crate::control::dialer::Dialer;
use crate::control::dns::Dns;
use crate::control::tunnels::{
    DialStream, QUEUE_CAPACITY, TunnelDirection, Tunnels, answering, metered_incoming,
};
use crate::drain::Drain;
use crate::telemetry::metrics::ControlMetrics;
use crate::upstream::{Role, TunnelIo};

/// Time until the first message of a call has to arrive.
pub(crate) const FIRST_MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// The service; cheap to clone.
#[derive(Clone)]
pub struct Service {
    tunnels: Tunnels,
    dns: Arc<Dns>,
    dialer: Arc<Dialer>,
    drain: Drain,
    metrics: Arc<ControlMetrics>,
}

impl Service {
    /// Creates the service; connections dialled for workstations run as tasks of `drain`.
    #[must_use]
    pub fn new(
        tunnels: Tunnels,
        dns: Arc<Dns>,
        dialer: Arc<Dialer>,
        drain: Drain,
        metrics: Arc<ControlMetrics>,
    ) -> Self {
        Self {
            tunnels,
            dns,
            dialer,
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

impl Service {
    /// Begins a workstation's watch for dials.
    pub(crate) async fn watch(
        &self,
        session: &SessionInfo,
        peer: Option<SocketAddr>,
    ) -> Result<DialStream, Status> {
        let session = session.session_id.as_str();
        if session.is_empty() {
            return Err(Status::invalid_argument(
                "no session id; send the client's session",
            ));
        }
        self.admit(session, peer).await?;
        tracing::debug!(session, "a workstation watches for dials");
        Ok(self.tunnels.watch(session))
    }
}

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
                let Some(place) = self.dialer.place() else {
                    return Err(Status::resource_exhausted(
                        "the agent dials too many connections already; raise dialledConnections",
                    ));
                };
                self.metrics.dials.inc();
                let dialer = Arc::clone(&self.dialer);
                self.drain.spawn(async move {
                    let timeout = info.dial_timeout;
                    dialer.serve(place, info.conn_id, timeout, io).await;
                });
            }
        }
        Ok(Response::new(Box::pin(answering(queue, meter))))
    }

    async fn watch_dial(
        &self,
        request: Request<SessionInfo>,
    ) -> Result<Response<Self::WatchDialStream>, Status> {
        let peer = request.remote_addr();
        let dials = self.watch(request.get_ref(), peer).await?;
        Ok(Response::new(Box::pin(dials.map(Ok))))
    }

    async fn version(&self, request: Request<()>) -> Result<Response<VersionInfo2>, Status> {
        let challenge = request.metadata().get_bin(proof::CHALLENGE);
        let challenge = challenge.and_then(|c| c.to_bytes().ok());
        let mut response = Response::new(VersionInfo2 {
            name: PRODUCT_NAME.to_owned(),
            version: crate::VERSION.to_owned(),
        });
        let key = self.tunnels.proof_key();
        if let Some(challenge) = challenge.filter(|_| !key.is_empty()) {
            let answer = MetadataValue::from_bytes(&proof::answer(key, &challenge));
            response.metadata_mut().insert_bin(proof::PROOF, answer);
        }
        Ok(response)
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
    let first = tokio::time::timeout(FIRST_MESSAGE_TIMEOUT, incoming.next())
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
