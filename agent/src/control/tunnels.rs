//! Opens tunnels over a workstation that watches this agent for dials, else over the manager. Also
//! counts open tunnels, so that a departure can wait for them.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::{Notify, oneshot, watch};
use tonic::Code;
use traffic_proto::conn_id::ConnId;
use traffic_proto::manager::{DialRequest, RemainRequest, SessionInfo};
use traffic_proto::port::Transport as Protocol;
use traffic_proto::proof;
use traffic_proto::session_key::{Peer, Proofs};
use traffic_proto::tunnel::frame::Frame;
use traffic_proto::tunnel::{Message, StreamInfo, nanos_from_duration};

use crate::addr::Caller;
use crate::control::dns::Dns;
use crate::control::keepalive::SignsOfLife;
use crate::control::keyed_lock::{KeyGuard, KeyedLock};
use crate::control::known_sessions::KnownSessions;
use crate::control::manager_call::{ManagerLink, call};
use crate::control::meter::{Meter, TunnelDirection, TunnelReports};
use crate::control::watchers::{DialStream, Watchers};
use crate::telemetry::metrics::ControlMetrics;
use crate::upstream::{Gone, Messages, OpenTunnel, Transport, TunnelError, TunnelIo};
use traffic_core::routing::{Intercept, TunnelPath};
use traffic_proto::sync::lock;

/// Time for the manager to confirm a client's session.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(3);

/// Tunnels to workstations; cheap to clone.
#[derive(Clone)]
pub struct Tunnels(Arc<TunnelHub>);

struct TunnelHub {
    // Read by every dial without a lock; written when a session begins or is lost.
    manager: ArcSwapOption<ManagerLink>,
    watchers: Arc<Watchers>,
    waiters: Mutex<HashMap<WaiterKey, Waiter>>,
    dial_locks: KeyedLock<WaiterKey>,
    // Numbers tell a waiter from a later one with the same key.
    numbers: AtomicU64,
    open: watch::Sender<usize>,
    dns: Arc<Dns>,
    reports: TunnelReports,
    /// Signals that the app got what was meant for a workstation.
    fallbacks: Notify,
    sessions: KnownSessions,
    /// Proves to workstations that this agent is the one the manager announced.
    proof_key: Bytes,
    /// Proofs of workstations that this agent has checked.
    proofs: Proofs,
}

/// Workstation session and the connection it is to dial.
type WaiterKey = (String, ConnId);

/// A tunnel waiting for a workstation's answer to a dial request.
struct Waiter {
    number: u64,
    /// Passes the tunnel from the answering gRPC call to the data path.
    tunnel_tx: oneshot::Sender<TunnelIo>,
}

impl Tunnels {
    /// Creates an instance without manager and workstations.
    #[must_use]
    pub fn new(metrics: Arc<ControlMetrics>, dns: Arc<Dns>) -> Self {
        // Without random bytes there is no proof, and workstations come through the manager.
        let proof_key = proof::random().map_or_else(|_| Bytes::new(), |key| key.to_vec().into());
        Self(Arc::new(TunnelHub {
            manager: ArcSwapOption::empty(),
            watchers: Arc::new(Watchers::new(metrics)),
            waiters: Mutex::default(),
            dial_locks: KeyedLock::default(),
            numbers: AtomicU64::new(0),
            open: watch::Sender::new(0),
            dns,
            reports: TunnelReports::default(),
            fallbacks: Notify::new(),
            sessions: KnownSessions::default(),
            proofs: Proofs::new(Peer::agent(&proof_key)),
            proof_key,
        }))
    }

    /// Returns the number of open intercept tunnels.
    #[must_use]
    pub fn open_count(&self) -> usize {
        *self.0.open.borrow()
    }

    /// Resolves when no intercept tunnel is open.
    pub async fn all_closed(&self) {
        let mut open = self.0.open.subscribe();
        // The sender lives in `self`, so waiting cannot fail.
        let _ = open.wait_for(|open| *open == 0).await;
    }

    /// Returns true if workstation `session` watches this agent directly.
    #[must_use]
    pub fn watches(&self, session: &str) -> bool {
        self.0.watchers.number(session).is_some()
    }

    /// Signals each time the app got what was meant for a workstation; several may be one.
    pub(crate) fn fallbacks(&self) -> &Notify {
        &self.0.fallbacks
    }

    /// The client sessions that are served.
    pub(crate) fn sessions(&self) -> &KnownSessions {
        &self.0.sessions
    }

    /// The key by which workstations recognise this agent; empty without one.
    pub(crate) fn proof_key(&self) -> &Bytes {
        &self.0.proof_key
    }

    /// The proofs that workstations have their sessions' keys.
    pub(crate) fn proofs(&self) -> &Proofs {
        &self.0.proofs
    }

    /// Asks the manager if it knows a client session; none if it cannot be asked.
    pub(crate) async fn confirm(&self, session: &str) -> Option<bool> {
        let link = self.0.manager.load_full()?;
        let request = RemainRequest {
            session: Some(SessionInfo {
                session_id: session.to_owned(),
                ..SessionInfo::default()
            }),
            ..RemainRequest::default()
        };
        let mut client = link.client.clone();
        let asked = tokio::time::timeout(CONFIRM_TIMEOUT, client.remain(request));
        let confirmed = match asked.await {
            Ok(Ok(_)) => true,
            Ok(Err(status)) if status.code() == Code::NotFound => false,
            Ok(Err(_)) | Err(_) => return None,
        };
        self.0.sessions.answered(session, confirmed);
        Some(confirmed)
    }

    pub(crate) fn set_manager(&self, link: Option<ManagerLink>) {
        if link.is_some() {
            self.0.sessions.arrive();
        }
        self.0.manager.store(link.map(Arc::new));
    }

    /// Reports of ended tunnels for the manager.
    pub(crate) fn reports(&self) -> &TunnelReports {
        &self.0.reports
    }

    /// Starts a workstation's watch for dials; replaces an earlier watch of the same session.
    pub(crate) fn watch(&self, session: &str, signs: SignsOfLife) -> DialStream {
        self.0.watchers.begin(session, signs)
    }

    /// Passes an answering call to its waiter; returns the call if there is none.
    pub(crate) fn answer(&self, info: &StreamInfo, io: TunnelIo) -> Result<(), TunnelIo> {
        // Removed by the first answer, so that a second call with the same key is refused.
        let waiter = lock(&self.0.waiters).remove(&(info.session_id.clone(), info.conn_id));
        match waiter {
            Some(waiter) => waiter.tunnel_tx.send(io),
            None => Err(io),
        }
    }

    /// Returns true if a waiter exists for this call.
    pub(crate) fn awaited(&self, info: &StreamInfo) -> bool {
        lock(&self.0.waiters).contains_key(&(info.session_id.clone(), info.conn_id))
    }

    /// Counts the traffic of `tunnel` on behalf of `client` and reports it when the tunnel has
    /// ended.
    pub(crate) fn meter(&self, client: &str, direction: TunnelDirection) -> Arc<Meter> {
        let open = match direction {
            TunnelDirection::Workstation => Some(&self.0.open),
            TunnelDirection::Cluster => None,
        };
        Arc::new(Meter::new(client, open, &self.0.reports))
    }
}

impl OpenTunnel for Tunnels {
    fn open(
        &self,
        intercept: Arc<Intercept>,
        caller: Caller,
        transport: Transport,
    ) -> BoxFuture<'static, Result<TunnelIo, TunnelError>> {
        let tunnels = self.clone();
        Box::pin(async move {
            let budget = intercept.dial_budget();
            let opening = tunnels.open_any(&intercept, caller, transport);
            tokio::time::timeout(budget, opening)
                .await
                .unwrap_or(Err(TunnelError::Timeout(budget)))
        })
    }

    fn fell_back(&self) {
        self.0.fallbacks.notify_one();
    }

    fn doubt(&self, client_session: &str) {
        self.0.watchers.doubt(client_session);
    }

    fn attachment(&self, client_session: &str) -> Option<u64> {
        self.0.watchers.number(client_session)
    }

    fn attachment_changes(&self) -> u64 {
        self.0.watchers.changes()
    }
}

impl Tunnels {
    async fn open_any(
        &self,
        intercept: &Intercept,
        caller: Caller,
        transport: Transport,
    ) -> Result<TunnelIo, TunnelError> {
        let protocol = match transport {
            Transport::Tcp => Protocol::Tcp,
            Transport::Udp => Protocol::Udp,
        };
        let target = SocketAddr::new(
            target_ip(&self.0.dns, &intercept.target_host).await?,
            intercept.target_port,
        );
        let conn_id = ConnId::new(protocol, caller.0, target);
        let guard = self
            .0
            .dial_locks
            .take((intercept.client_session.clone(), conn_id))
            .await;
        let (io, how) = match self.open_direct(intercept, conn_id).await? {
            Some(io) => (io, TunnelPath::Direct),
            None => (
                until_answered(self.open_through_manager(intercept, conn_id).await?, guard),
                TunnelPath::Manager,
            ),
        };
        intercept.stats.set_tunnel(how);
        Ok(io)
    }

    /// Opens a tunnel through the workstation's own watch; `None` if it does not watch this agent.
    async fn open_direct(
        &self,
        intercept: &Intercept,
        conn_id: ConnId,
    ) -> Result<Option<TunnelIo>, TunnelError> {
        let session = &intercept.client_session;
        let Some(dials) = self.0.watchers.dials(session) else {
            return Ok(None);
        };
        // Registered before the request is sent, because the answer may arrive at once.
        let (waiting, tunnel) = Waiting::new(&self.0, (session.clone(), conn_id));
        let request = DialRequest {
            conn_id: conn_id.to_bytes(),
            roundtrip_latency: nanos_from_duration(intercept.roundtrip_latency),
            dial_timeout: nanos_from_duration(intercept.dial_timeout),
            ..DialRequest::default()
        };
        // The watch has just ended: fall back to the manager.
        if !dials.send(request).await {
            return Ok(None);
        }
        let io = tokio::select! {
            biased;
            io = tunnel => io.map(Some).map_err(|_| {
                TunnelError::Broken("another connection took its place".to_owned())
            }),
            // The workstation is gone, or its network: the manager knows soon.
            () = dials.closed() => Ok(None),
        };
        drop(waiting);
        io
    }

    /// Returns false for a client that the manager has forgotten, after a restart for one. Stock
    /// managers (2.20) that are asked for a tunnel to such a client crash, and start to find the
    /// next such call.
    async fn is_known_to_manager(&self, session: &str) -> bool {
        match self.0.sessions.is_known_to_manager(session) {
            Some(known) => known,
            None => self.confirm(session).await.unwrap_or(true),
        }
    }

    async fn open_through_manager(
        &self,
        intercept: &Intercept,
        conn_id: ConnId,
    ) -> Result<TunnelIo, TunnelError> {
        let Some(link) = self.0.manager.load_full() else {
            return Err(TunnelError::NoPath(
                "not connected to the traffic-manager".to_owned(),
            ));
        };
        // Without a session the manager could not tell whom to ask for the second stream.
        if intercept.client_session.is_empty() {
            return Err(TunnelError::NoPath(
                "the intercept names no client session".to_owned(),
            ));
        }
        if !self.is_known_to_manager(&intercept.client_session).await {
            return Err(TunnelError::NoPath(
                "its client has not come back to the traffic-manager".to_owned(),
            ));
        }
        let info = StreamInfo::new(
            conn_id,
            link.session.as_str(),
            intercept.roundtrip_latency,
            intercept.dial_timeout,
        );
        let meter = self.meter(&intercept.client_session, TunnelDirection::Workstation);
        let mut io = call(&link, info, meter).await?;
        // The second message names the workstation's session, which the manager needs to find the
        // other end.
        let session = Message::Session(intercept.client_session.clone());
        let named = io.send(&session).await;
        named
            .map_err(|Gone| TunnelError::Broken("the traffic-manager ended the call".to_owned()))?;
        Ok(io)
    }
}

/// Holds the lock until the workstation's first message, or the end: only then has the manager
/// joined both ends.
fn until_answered(io: TunnelIo, guard: KeyGuard<WaiterKey>) -> TunnelIo {
    let (messages, guard) = (io.messages, Some(guard));
    TunnelIo {
        messages: Box::new(Unanswered { messages, guard }),
        ..io
    }
}

/// A tunnel that holds the lock of its connection until it is answered.
struct Unanswered {
    messages: Box<dyn Messages>,
    guard: Option<KeyGuard<WaiterKey>>,
}

impl Messages for Unanswered {
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        self.messages.poll_room(cx)
    }

    fn send(&mut self, frame: Frame) -> Result<(), Gone> {
        self.messages.send(frame)
    }

    fn try_send(&mut self, frame: Frame) -> bool {
        self.messages.try_send(frame)
    }

    fn ask_for_life(&mut self) {
        self.messages.ask_for_life();
    }

    fn end(&mut self, last: Option<Frame>) {
        self.messages.end(last);
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Message, TunnelError>>> {
        let next = self.messages.poll_next(cx);
        if next.is_ready() {
            self.guard = None;
        }
        next
    }
}

/// Resolves the workstation's target address as it sees it itself. Names other than localhost are
/// looked up here, because a connection id holds addresses only.
async fn target_ip(dns: &Dns, host: &str) -> Result<IpAddr, TunnelError> {
    if let Ok(ip) = host.parse() {
        return Ok(ip);
    }
    // Always IPv4, as the stock client listens; a resolver in the pod must not decide it.
    if host.eq_ignore_ascii_case("localhost") {
        return Ok(IpAddr::from([127, 0, 0, 1]));
    }
    dns.target(host).await.ok_or_else(|| {
        TunnelError::NoPath(format!(
            "the target host {host:?} has no address here; intercept to an address instead"
        ))
    })
}

impl TunnelHub {
    fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }
}

/// Entry of a waiter, removed when the wait ends in any way: a later connection with the same
/// addresses must not reach a dead waiter.
struct Waiting {
    number: u64,
    key: WaiterKey,
    hub: Arc<TunnelHub>,
}

impl Waiting {
    fn new(hub: &Arc<TunnelHub>, key: WaiterKey) -> (Self, oneshot::Receiver<TunnelIo>) {
        let (tunnel_tx, tunnel) = oneshot::channel();
        let number = hub.number();
        lock(&hub.waiters).insert(key.clone(), Waiter { number, tunnel_tx });
        (
            Self {
                number,
                key,
                hub: Arc::clone(hub),
            },
            tunnel,
        )
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut waiters = lock(&self.hub.waiters);
        if waiters
            .get(&self.key)
            .is_some_and(|w| w.number == self.number)
        {
            waiters.remove(&self.key);
        }
    }
}

impl fmt::Debug for Tunnels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnels")
            .field("open", &self.open_count())
            .finish_non_exhaustive()
    }
}
