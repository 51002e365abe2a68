//! The agent's own gRPC service: workstations attach here (by a port-forward) to receive and answer
//! dial requests, and to have the agent dial into the cluster for them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::SendStream;
use tokio::runtime::Handle;
use tonic::Status;
use tonic::metadata::{MetadataMap, MetadataValue};
use traffic_proto::manager::{LookupResponse, SessionInfo, VersionInfo2};
use traffic_proto::port::Transport;
use traffic_proto::proof;
use traffic_proto::session_key;
use traffic_proto::tunnel::{Message, STREAM_VERSION, StreamInfo};

use crate::control::config::PRODUCT_NAME;
use crate::control::dialer::Dialer;
use crate::control::direct_tunnel::{DirectTunnel, Incoming};
use crate::control::dns::Dns;
use crate::control::keepalive::SignsOfLife;
use crate::control::meter::TunnelDirection;
use crate::control::stream_windows::ConnectionTunnels;
use crate::control::tunnels::Tunnels;
use crate::control::watchers::DialStream;
use crate::drain::Drain;
use crate::telemetry::metrics::ControlMetrics;
use crate::upstream::{Messages as _, Role, TunnelIo};

/// Time until the first message of a call has to arrive.
pub(crate) const FIRST_MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// The service; cheap to clone.
#[derive(Clone)]
pub struct Service {
    tunnels: Tunnels,
    dns: Arc<Dns>,
    dialer: Arc<Dialer>,
    drain: Drain,
    /// The control side's own runtime: calls may be answered on another one.
    home: Handle,
    metrics: Arc<ControlMetrics>,
}

impl Service {
    /// Creates the service; connections dialled for workstations run as tasks of `drain` on the
    /// runtime beside it.
    #[must_use]
    pub fn new(
        tunnels: Tunnels,
        dns: Arc<Dns>,
        dialer: Arc<Dialer>,
        (drain, home): (Drain, Handle),
        metrics: Arc<ControlMetrics>,
    ) -> Self {
        Self {
            tunnels,
            dns,
            dialer,
            drain,
            home,
            metrics,
        }
    }
}

/// Maker of a call that names a session.
pub(crate) struct SessionCaller<'a> {
    pub(crate) peer: &'a CallPeer,
    /// Proof that the session is his own.
    proof: Option<Bytes>,
}

impl<'a> SessionCaller<'a> {
    /// Returns the one who sent this metadata.
    pub(crate) fn new(peer: &'a CallPeer, metadata: &MetadataMap) -> Self {
        let proof = session_key::given(metadata);
        Self { peer, proof }
    }
}

/// Connection that a call comes by.
#[derive(Clone)]
pub(crate) struct CallPeer {
    /// The other end of its connection.
    pub(crate) address: Option<SocketAddr>,
    /// Signs of life of the connection.
    pub(crate) signs: SignsOfLife,
    /// The tunnels of the connection.
    pub(crate) tunnels: ConnectionTunnels,
}

impl Service {
    /// Checks that a session is the caller's own if it has a key; others are known by their id
    /// alone.
    fn own(&self, session: &str, caller: &SessionCaller<'_>) -> Result<(), Status> {
        let proof = caller.proof.as_deref();
        let checked = self.tunnels.proofs().check(session, proof);
        checked.map_err(|refusal| {
            self.metrics.denied.inc();
            let peer = caller.peer.address;
            tracing::info!(?peer, "agent API: a call was refused: {refusal}");
            refusal.into()
        })
    }

    /// Lets a client's session in. Where the manager cannot be asked, peers inside the pod (a
    /// port-forward ends there) are served as the stock agent serves everybody.
    async fn admit(&self, session: &str, peer: &CallPeer) -> Result<(), Status> {
        let known = match self.tunnels.sessions().is_known(session) {
            Some(known) => Some(known),
            None => self.tunnels.confirm(session).await,
        };
        let inside = peer
            .address
            .is_some_and(|peer| peer.ip().to_canonical().is_loopback());
        if known.unwrap_or(inside) {
            return Ok(());
        }
        self.metrics.denied.inc();
        tracing::info!(
            peer = ?peer.address,
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
        caller: &SessionCaller<'_>,
    ) -> Result<DialStream, Status> {
        let session = session.session_id.as_str();
        if session.is_empty() {
            return Err(Status::invalid_argument(
                "no session id; send the client's session",
            ));
        }
        self.own(session, caller)?;
        let peer = caller.peer;
        self.admit(session, peer).await?;
        tracing::debug!(session, "a workstation watches for dials");
        Ok(self.tunnels.watch(session, peer.signs.clone()))
    }
}

impl Service {
    /// Serves a tunnel that a workstation has opened. `open` answers the call, once it is let in.
    pub(crate) async fn tunnel(
        &self,
        mut incoming: Incoming,
        open: impl FnOnce() -> Result<SendStream<Bytes>, Status>,
        caller: &SessionCaller<'_>,
    ) -> Result<(), Status> {
        let peer = caller.peer;
        let info = first_message(&mut incoming).await?;
        if info.session_id.is_empty() {
            return Err(Status::unauthenticated(
                "a tunnel without a session id; send the client's session",
            ));
        }
        if info.conn_id.transport() == Transport::Udp {
            incoming.keep_borders();
        }
        self.own(&info.session_id, caller)?;
        // Who answers a dial request was asked by this agent.
        if !self.tunnels.awaited(&info) {
            self.admit(&info.session_id, peer).await?;
        }
        if self.tunnels.awaited(&info) {
            let direction = TunnelDirection::Workstation;
            let io = self.opened(&info, incoming, open, direction, peer)?;
            // Else the caller has left: its tunnel ends at once.
            let _ = self.tunnels.answer(&info, io);
            return Ok(());
        }
        let Some(place) = self.dialer.place() else {
            return Err(Status::resource_exhausted(
                "the agent dials too many connections already; raise dialledConnections",
            ));
        };
        let io = self.opened(&info, incoming, open, TunnelDirection::Cluster, peer)?;
        self.metrics.dials.inc();
        let dialer = Arc::clone(&self.dialer);
        self.drain.spawn_on(&self.home, async move {
            let timeout = info.dial_timeout;
            dialer.serve(place, info.conn_id, timeout, io).await;
        });
        Ok(())
    }

    /// The tunnel of a call that is let in.
    fn opened(
        &self,
        info: &StreamInfo,
        incoming: Incoming,
        open: impl FnOnce() -> Result<SendStream<Bytes>, Status>,
        direction: TunnelDirection,
        peer: &CallPeer,
    ) -> Result<TunnelIo, Status> {
        let meter = self.tunnels.meter(&info.session_id, direction);
        let mut messages = Box::new(DirectTunnel::new(
            incoming,
            open()?,
            meter,
            peer.signs.clone(),
        ));
        let _ = messages.send((&Message::StreamOk(STREAM_VERSION)).into());
        Ok(TunnelIo {
            messages,
            role: Role::Server,
        })
    }

    /// The agent's version, and the proof that it is the announced one to who asks for it.
    pub(crate) fn version(&self, asked: &MetadataMap) -> (VersionInfo2, MetadataMap) {
        let challenge = asked.get_bin(proof::CHALLENGE);
        let challenge = challenge.and_then(|c| c.to_bytes().ok());
        let mut metadata = MetadataMap::new();
        let key = self.tunnels.proof_key();
        if let Some(challenge) = challenge.filter(|_| !key.is_empty()) {
            let answer = MetadataValue::from_bytes(&proof::answer(key, &challenge));
            metadata.insert_bin(proof::PROOF, answer);
        }
        let version = VersionInfo2 {
            name: PRODUCT_NAME.to_owned(),
            version: crate::VERSION.to_owned(),
        };
        (version, metadata)
    }

    /// Addresses of a name, as the pod sees it.
    pub(crate) async fn lookup(&self, name: &str) -> Result<LookupResponse, Status> {
        let ips = self.dns.addresses(name).await?;
        Ok(LookupResponse { ips })
    }
}

async fn first_message(incoming: &mut Incoming) -> Result<StreamInfo, Status> {
    let first = tokio::time::timeout(FIRST_MESSAGE_TIMEOUT, incoming.next())
        .await
        .map_err(|_| Status::deadline_exceeded("no StreamInfo in time"))?
        .ok_or_else(|| Status::failed_precondition("the tunnel ended before its StreamInfo"))?;
    match first {
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
