//! Signs of life of an attached workstation: where it says nothing it is asked by a ping, and at once
//! where callers already wait for it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use h2::{Ping, PingPong};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// Silence after which a workstation is asked.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// Time for its answer.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Time for the answer of a workstation that is in doubt. Long enough for a laptop that is busy, short
/// enough for the callers of a whole port, who are anybody.
const DOUBT_TIMEOUT: Duration = Duration::from_secs(1);

/// Time to read an answer that has come in time.
const UNREAD_GRACE: Duration = Duration::from_millis(100);

/// Time of the last bytes received, and doubt of callers that wait in vain; cheap to clone.
#[derive(Clone)]
pub(crate) struct SignsOfLife(Arc<Signs>);

struct Signs {
    begin: Instant,
    /// Milliseconds after `begin`.
    last_heard: AtomicU64,
    doubted: AtomicBool,
    /// Wakes the task that asks.
    asker: AtomicWaker,
}

impl Default for SignsOfLife {
    fn default() -> Self {
        Self(Arc::new(Signs {
            begin: Instant::now(),
            last_heard: AtomicU64::new(0),
            doubted: AtomicBool::new(false),
            asker: AtomicWaker::new(),
        }))
    }
}

impl SignsOfLife {
    /// Has the workstation asked at once: a dial is unanswered for longer than dials usually take.
    pub(crate) fn doubt(&self) {
        if !self.0.doubted.swap(true, Ordering::AcqRel) {
            self.0.asker.wake();
        }
    }

    fn heard_now(&self) {
        let elapsed = self.0.begin.elapsed().as_millis();
        let millis = u64::try_from(elapsed).unwrap_or(0);
        self.0.last_heard.store(millis, Ordering::Relaxed);
    }

    fn heard_at(&self) -> Instant {
        self.0.begin + Duration::from_millis(self.0.last_heard.load(Ordering::Relaxed))
    }

    /// Takes note of a doubt; the next one wakes the task of `cx`.
    fn take_doubt(&self, cx: &Context<'_>) -> bool {
        self.0.asker.register(cx.waker());
        // A swap would write to memory that threads share, each time the connection is polled.
        self.0.doubted.load(Ordering::Acquire) && self.0.doubted.swap(false, Ordering::AcqRel)
    }
}

/// Asks a silent peer for a sign of life.
pub(crate) struct Keepalive {
    pings: PingPong,
    signs: SignsOfLife,
    asked: bool,
    /// The answer's time is over.
    overdue: bool,
    timer: Pin<Box<Sleep>>,
}

impl Keepalive {
    pub(crate) fn new(pings: PingPong, signs: SignsOfLife) -> Self {
        Self {
            pings,
            signs,
            asked: false,
            overdue: false,
            timer: Box::pin(sleep(KEEPALIVE_INTERVAL)),
        }
    }

    /// Ready when the peer has not answered a ping in time.
    pub(crate) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.signs.take_doubt(cx) {
            self.ask_at_once();
        }
        loop {
            if self.asked && self.pings.poll_pong(cx).is_ready() {
                self.asked = false;
                self.wait_until(self.signs.heard_at() + KEEPALIVE_INTERVAL);
            }
            ready!(self.timer.as_mut().poll(cx));
            if self.overdue && self.asked {
                return Poll::Ready(());
            }
            let silent_since = self.signs.heard_at();
            if self.asked {
                // Where this thread was held up the answer may be there, unread.
                self.overdue = true;
                self.wait_until(Instant::now() + UNREAD_GRACE);
            } else if silent_since.elapsed() < KEEPALIVE_INTERVAL {
                self.wait_until(silent_since + KEEPALIVE_INTERVAL);
            } else {
                self.ask(KEEPALIVE_TIMEOUT);
            }
        }
    }

    fn ask_at_once(&mut self) {
        if !self.asked {
            self.ask(DOUBT_TIMEOUT);
        } else if !self.overdue {
            let answered_by = Instant::now() + DOUBT_TIMEOUT;
            self.wait_until(answered_by.min(self.timer.deadline()));
        }
    }

    fn ask(&mut self, timeout: Duration) {
        self.overdue = false;
        self.asked = self.pings.send_ping(Ping::opaque()).is_ok();
        self.wait_until(Instant::now() + timeout);
    }

    fn wait_until(&mut self, then: Instant) {
        self.timer.as_mut().reset(then);
    }
}

/// A connection that notes when something was received.
pub(crate) struct HeardReads<I> {
    io: I,
    signs: SignsOfLife,
}

impl<I> HeardReads<I> {
    pub(crate) fn new(io: I, signs: SignsOfLife) -> Self {
        Self { io, signs }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for HeardReads<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = ready!(Pin::new(&mut self.io).poll_read(cx, buf));
        self.signs.heard_now();
        Poll::Ready(read)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for HeardReads<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
