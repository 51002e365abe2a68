//! Answers dial requests: opens the tunnel's second stream, dials the local target, copies.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::TaskTracker;
use tonic::metadata::{Binary, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};
use traffic_proto::ConnId;
use traffic_proto::agent::agent_client::AgentClient;
use traffic_proto::dialer::{self, DatagramObserver, DialError, Outgoing, Refused};
use traffic_proto::manager::{DialRequest, SessionInfo, TunnelMessage};
use traffic_proto::session_key;
use traffic_proto::tunnel::{Message, StreamInfo, duration_from_nanos};

use crate::live::{Live, OpenTunnel};
use crate::session::Manager;
use crate::warnings::Warnings;

/// Messages held towards the manager or agent; the transport's window holds more.
pub(crate) const QUEUE_CAPACITY: usize = 8;
/// Default time to open a stream, if the request names none.
const DEFAULT_OPEN_TIMEOUT: Duration = Duration::from_secs(7);

/// A client of one agent.
pub(crate) type Agent = AgentClient<InterceptedService<Channel, AgentProof>>;

/// The proof for one agent that the session is the client's own; none where it has no key.
#[derive(Clone)]
pub(crate) struct AgentProof(pub(crate) Option<MetadataValue<Binary>>);

impl Interceptor for AgentProof {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(proof) = &self.0 {
            let metadata = request.metadata_mut();
            metadata.insert_bin(session_key::PROOF, proof.clone());
        }
        Ok(request)
    }
}

/// Peer that announces connections and receives their streams.
#[derive(Clone)]
pub(crate) enum Via {
    Manager(Manager),
    Agent(Agent),
}

/// Answers announced connections.
#[derive(Clone)]
pub(crate) struct TunnelDialer {
    /// Where requests are delivered.
    pub(crate) target: SocketAddr,
    /// The only ports of its host that are dialled, whatever the request names: the cluster must
    /// not reach others.
    pub(crate) local_ports: Arc<[u16]>,
    /// Tasks of the tunnels.
    pub(crate) tunnels: TaskTracker,
    /// Told of connections to the target that cannot be made, and of datagrams that it does not
    /// take.
    pub(crate) warnings: Arc<Warnings>,
    /// Figures to show.
    pub(crate) live: Arc<Live>,
}

impl TunnelDialer {
    /// Answers dial requests of the session until the stream ends or fails.
    pub(crate) async fn watch(&self, via: Via, session: &SessionInfo) -> Result<(), Status> {
        let announced = self.open(&via, session).await?;
        self.serve(announced, via, session).await
    }

    /// Opens the stream of dial requests.
    pub(crate) async fn open(
        &self,
        via: &Via,
        session: &SessionInfo,
    ) -> Result<Streaming<DialRequest>, Status> {
        let announced = match via {
            Via::Manager(manager) => manager.clone().watch_dial(session.clone()).await,
            Via::Agent(agent) => agent.clone().watch_dial(session.clone()).await,
        };
        Ok(announced?.into_inner())
    }

    /// Answers dial requests until their stream ends or fails. Tunnels continue after that.
    pub(crate) async fn serve(
        &self,
        mut announced: Streaming<DialRequest>,
        via: Via,
        session: &SessionInfo,
    ) -> Result<(), Status> {
        let session: Arc<str> = session.session_id.as_str().into();
        while let Some(request) = announced.message().await? {
            let (via, session, dialer) = (via.clone(), session.clone(), self.clone());
            let (warnings, tunnel) = (self.warnings.clone(), self.live.begin());
            let destination = ConnId::parse(&request.conn_id).map(|conn| conn.destination());
            self.tunnels.spawn(async move {
                if let Err(why) = dialer.answer(via, &session, request, &tunnel).await {
                    tunnel.failed();
                    if let (true, Ok(address)) = (why.is::<DialError>(), destination) {
                        warnings.dial_failed(address);
                    }
                    tracing::debug!("connection not served: {why}");
                }
            });
        }
        Ok(())
    }

    async fn answer(
        &self,
        via: Via,
        session: &str,
        request: DialRequest,
        tunnel: &OpenTunnel,
    ) -> anyhow::Result<()> {
        let conn = ConnId::parse(&request.conn_id)?;
        let latency = duration_from_nanos(request.roundtrip_latency);
        let dial_timeout = duration_from_nanos(request.dial_timeout);
        let (tx, rx) = mpsc::channel(QUEUE_CAPACITY);
        let info = StreamInfo::new(conn, session, latency, dial_timeout);
        // The queue is empty, so this never waits.
        tx.send(TunnelMessage {
            payload: Message::StreamInfo(info).encode(),
        })
        .await?;
        let opening = match latency.saturating_add(dial_timeout) {
            Duration::ZERO => DEFAULT_OPEN_TIMEOUT,
            some => some,
        };
        let mut incoming = timeout(opening, open(via, rx)).await??;
        // The cluster names the destination; only the one the user has chosen may be dialled.
        let (target, destination) = (self.target, conn.destination());
        let is_chosen = self.local_ports.contains(&destination.port());
        if destination.ip() != target.ip() || !is_chosen {
            dialer::reject(&mut incoming, Outgoing::caller(tx)).await;
            anyhow::bail!(
                "asked to dial {destination}, which is not on {target} or another --port"
            );
        }
        let carried = dialer::serve(
            conn,
            dial_timeout,
            incoming,
            Outgoing::caller(tx).announcing_life(),
            &Datagrams {
                destination,
                warnings: &self.warnings,
                tunnel,
            },
        )
        .await?;
        tracing::debug!(%conn, ?carried, "connection ended");
        Ok(())
    }
}

/// The datagrams of one flow, as far as their developer wants to hear of them.
struct Datagrams<'a> {
    destination: SocketAddr,
    warnings: &'a Warnings,
    tunnel: &'a OpenTunnel,
}

impl DatagramObserver for Datagrams<'_> {
    fn refused(&self, fate: Refused) {
        self.tunnel.failed();
        match fate {
            Refused::Lost => self.warnings.datagram_lost(self.destination),
            // The agent gives the flow to the app, as it does with connections.
            Refused::Rejected => self.warnings.dial_failed(self.destination),
        }
    }

    fn answered(&self) {
        self.warnings.datagram_answered(self.destination);
    }
}

/// Opens a stream whose first message is in `rx`; it returns once the peer has taken it.
pub(crate) async fn open(
    via: Via,
    rx: mpsc::Receiver<TunnelMessage>,
) -> anyhow::Result<Streaming<TunnelMessage>> {
    let messages = ReceiverStream::new(rx);
    let mut incoming = match via {
        Via::Manager(mut manager) => manager.tunnel(messages).await?,
        Via::Agent(mut agent) => agent.tunnel(messages).await?,
    }
    .into_inner();
    match incoming
        .message()
        .await?
        .map(|message| Message::decode(message.payload))
        .transpose()?
    {
        Some(Message::StreamOk(_)) => Ok(incoming),
        other => anyhow::bail!("the stream was answered with {other:?} instead of a stream ok"),
    }
}
