//! One caller's flow: the target of its datagrams, and the work that returns the answers.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::net::UdpSocket;
use tokio::sync::mpsc::Sender;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::limits::Limits;
use crate::proxy::context::PortContext;
use crate::proxy::udp::app_end::{AppEnd, OneFamily};
use crate::proxy::udp::packet;
use crate::proxy::udp::packet::Local;
use traffic_core::routing::Intercept;

/// Limits of one listening socket.
#[derive(Clone, Copy, Debug)]
pub struct UdpLimits {
    /// Idle time after which a flow is dropped.
    pub idle: Duration,
    /// The same for a flow of one question and one answer.
    pub one_shot: Duration,
    /// Maximum of concurrent flows.
    pub flows: usize,
}

impl UdpLimits {
    /// Takes them from the settings.
    #[must_use]
    pub fn of(limits: &Limits) -> Self {
        Self {
            idle: limits.udp_idle,
            one_shot: limits.udp_one_shot,
            flows: limits.udp_flows,
        }
    }
}

impl Default for UdpLimits {
    fn default() -> Self {
        Self::of(&Limits::default())
    }
}

/// Time in which late answers still pass after the caller's datagrams were redirected.
const LATE_ANSWER_GRACE: Duration = Duration::from_secs(5);

/// Key of a flow: the caller and the local address it sent to.
pub(crate) type FlowKey = (SocketAddr, Option<Local>);

/// A flow's work; ends with the flow and returns its key and number.
pub(crate) type FlowFuture = Pin<Box<dyn Future<Output = (FlowKey, u64)> + Send>>;
/// The same before it has its key and number.
pub(crate) type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

thread_local! {
    /// One buffer for all flows of a thread: a datagram is forwarded before the next one is read.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Target of a caller's datagrams.
pub(crate) struct Flow {
    intercept: Option<Arc<Intercept>>,
    way: FlowTarget,
    pub(super) clock: Arc<Clock>,
    pub(super) stop: Stop,
}

pub(super) enum FlowTarget {
    App(Arc<AppEnd>),
    Queue(Sender<Bytes>),
}

/// A flow's activity: the time of the last, and how many datagrams went each way.
#[derive(Default)]
pub(super) struct Clock {
    last_ms: AtomicU64,
    /// Questions and answers, as far as it matters: none, one, more.
    asked: AtomicU8,
    answered: AtomicU8,
}

/// The two ways in which a flow is told to end.
#[derive(Clone, Default)]
pub(crate) struct Stop {
    /// The caller's datagrams go elsewhere; answers in flight still pass.
    replaced: CancellationToken,
    /// It gives way to others at once.
    evicted: CancellationToken,
}

/// The return path to the caller, from the address it used.
#[derive(Clone)]
pub(crate) struct Reply {
    pub(crate) socket: Arc<UdpSocket>,
    pub(crate) caller: SocketAddr,
    pub(crate) local: Option<Local>,
}

impl Flow {
    pub(super) fn new(intercept: Option<Arc<Intercept>>, way: FlowTarget) -> Self {
        Self {
            intercept,
            way,
            clock: Arc::default(),
            stop: Stop::default(),
        }
    }

    /// Time of the last datagram, on the clock of all flows.
    pub(crate) fn last_used(&self) -> u64 {
        self.clock.last_ms.load(Ordering::Relaxed)
    }

    /// Ends the flow after answers in flight have passed, unless [`Stop::evict`] ends it before.
    pub(crate) fn replace(self) -> Stop {
        self.stop.replaced.cancel();
        self.stop
    }

    /// Ends the flow at once.
    pub(crate) fn evict(self) {
        self.stop.evict();
    }

    /// Returns true if this flow goes where the rules send the caller's datagrams.
    pub(crate) fn leads_to(&self, wanted: Option<&Intercept>) -> bool {
        match (&self.intercept, wanted) {
            (None, None) => true,
            // Compared by target and not by pointer: an edited filter must not end a flow.
            (Some(has), Some(wants)) => has.same_target(wants),
            _ => false,
        }
    }

    /// Forwards a datagram, or drops it if the queue is full.
    pub(crate) fn send(&self, datagram: &[u8]) {
        self.clock.asked();
        match &self.way {
            FlowTarget::App(app) => app.send(datagram),
            // A full queue drops the datagram; waiting would block every other caller of this
            // socket.
            FlowTarget::Queue(queue) => drop(queue.try_send(Bytes::copy_from_slice(datagram))),
        }
    }
}

/// Starts a flow to the app, through its own socket so that the app sees one peer for each caller.
pub(crate) fn to_app(
    shared: Arc<PortContext>,
    reply: Reply,
    limits: UdpLimits,
    one_family: &OneFamily,
) -> io::Result<(Flow, Work)> {
    let app = Arc::new(AppEnd::open(&shared, reply.local, one_family)?);
    let flow = Flow::new(None, FlowTarget::App(app.clone()));
    let (clock, stop) = (flow.clock.clone(), flow.stop.clone());
    let work = async move {
        // Held by the work and not by the flow, so that replaced flows count until they end.
        let _live = shared.metrics.udp_flows.hold();
        tokio::select! {
            () = answers_of_app(&app, &reply, &shared, &clock) => {}
            () = clock.idle(limits) => {}
            () = stop.requested() => {}
        }
    };
    Ok((flow, Box::pin(work)))
}

/// Forwards the app's answers for as long as its end lasts.
pub(super) async fn answers_of_app(
    app: &AppEnd,
    reply: &Reply,
    shared: &PortContext,
    clock: &Clock,
) {
    let forward = |socket: &UdpSocket| {
        SCRATCH.with_borrow_mut(|buf| {
            buf.resize(traffic_proto::tunnel::MAX_DATAGRAM, 0);
            let n = socket.try_recv(buf)?;
            clock.answered();
            reply.send(buf.get(..n).unwrap_or_default(), shared);
            Ok(())
        })
    };
    app.receive(forward).await;
}

impl Stop {
    /// Ends the flow at once.
    pub(crate) fn evict(&self) {
        self.evicted.cancel();
    }

    pub(super) async fn requested(&self) {
        tokio::select! {
            () = self.evicted.cancelled() => return,
            () = self.replaced.cancelled() => {}
        }
        let _ = tokio::time::timeout(LATE_ANSWER_GRACE, self.evicted.cancelled()).await;
    }
}

impl Reply {
    pub(super) fn send(&self, datagram: &[u8], shared: &PortContext) {
        match packet::send(self.socket.as_fd(), datagram, self.caller, self.local) {
            Ok(()) => {
                shared.metrics.datagrams_out.inc();
                shared.metrics.bytes_out.add(datagram.len() as u64);
            }
            Err(error) => {
                tracing::trace!(caller = %self.caller, %error, "datagram to the caller dropped")
            }
        }
    }
}

/// Beginning of the clock that all flows share, so that their times can be compared.
fn epoch() -> Instant {
    static EPOCH: OnceLock<Instant> = OnceLock::new();
    *EPOCH.get_or_init(Instant::now)
}

impl Clock {
    fn asked(&self) {
        self.tick(&self.asked);
    }

    pub(super) fn answered(&self) {
        self.tick(&self.answered);
    }

    fn tick(&self, count: &AtomicU8) {
        let now = u64::try_from(epoch().elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_ms.store(now, Ordering::Relaxed);
        // One thread counts, so nothing is lost between the two.
        let more = count.load(Ordering::Relaxed).saturating_add(1);
        count.store(more, Ordering::Relaxed);
    }

    /// One question has had its answer, as with DNS: hardly any caller asks again from that port.
    fn is_one_shot(&self) -> bool {
        self.counts() == (1, 1)
    }

    /// The answer to the only question would end the flow soon.
    fn may_become_one_shot(&self) -> bool {
        self.counts() == (1, 0)
    }

    fn counts(&self) -> (u8, u8) {
        let count = |count: &AtomicU8| count.load(Ordering::Relaxed);
        (count(&self.asked), count(&self.answered))
    }

    /// Resolves when nothing has passed for the time that fits the flow.
    pub(super) async fn idle(&self, limits: UdpLimits) {
        let one_shot = limits.one_shot.min(limits.idle);
        let mut next = Instant::now() + one_shot;
        loop {
            sleep_until(next).await;
            let limit = match self.is_one_shot() {
                true => one_shot,
                false => limits.idle,
            };
            let last = Duration::from_millis(self.last_ms.load(Ordering::Relaxed));
            let (end, now) = (epoch() + last + limit, Instant::now());
            if end <= now {
                return;
            }
            // A late answer wakes nobody here.
            next = match self.may_become_one_shot() {
                true => end.min(now + one_shot),
                false => end,
            };
        }
    }
}
