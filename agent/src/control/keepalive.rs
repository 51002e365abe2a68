//! Signs of life of an attached workstation: where it says nothing it is asked by a ping.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// Silence after which a workstation is asked.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// Time for its answer.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// When something was received last; cheap to clone.
#[derive(Clone)]
pub(crate) struct LastHeard(Arc<(Instant, AtomicU64)>);

impl Default for LastHeard {
    fn default() -> Self {
        Self(Arc::new((Instant::now(), AtomicU64::new(0))))
    }
}

impl LastHeard {
    fn now(&self) {
        let (begin, millis) = &*self.0;
        let elapsed = begin.elapsed().as_millis();
        millis.store(u64::try_from(elapsed).unwrap_or(0), Ordering::Relaxed);
    }

    fn at(&self) -> Instant {
        let (begin, millis) = &*self.0;
        *begin + Duration::from_millis(millis.load(Ordering::Relaxed))
    }
}

/// Asks a silent peer for a sign of life.
pub(crate) struct Keepalive {
    pings: PingPong,
    heard: LastHeard,
    asked: bool,
    timer: Pin<Box<Sleep>>,
}

impl Keepalive {
    pub(crate) fn new(pings: PingPong, heard: LastHeard) -> Self {
        Self {
            pings,
            heard,
            asked: false,
            timer: Box::pin(sleep(KEEPALIVE_INTERVAL)),
        }
    }

    /// Ready when the peer has not answered a ping in time.
    pub(crate) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.asked && self.pings.poll_pong(cx).is_ready() {
                self.asked = false;
                self.wait_from(self.heard.at());
            }
            ready!(self.timer.as_mut().poll(cx));
            if self.asked {
                return Poll::Ready(());
            }
            let silent_since = self.heard.at();
            if silent_since.elapsed() < KEEPALIVE_INTERVAL {
                self.wait_from(silent_since);
                continue;
            }
            self.asked = self.pings.send_ping(Ping::opaque()).is_ok();
            self.timer
                .as_mut()
                .reset(Instant::now() + KEEPALIVE_TIMEOUT);
        }
    }

    fn wait_from(&mut self, heard: Instant) {
        self.timer.as_mut().reset(heard + KEEPALIVE_INTERVAL);
    }
}

/// A connection that notes when something was received.
pub(crate) struct HeardReads<I> {
    io: I,
    heard: LastHeard,
}

impl<I> HeardReads<I> {
    pub(crate) fn new(io: I, heard: LastHeard) -> Self {
        Self { io, heard }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for HeardReads<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = ready!(Pin::new(&mut self.io).poll_read(cx, buf));
        self.heard.now();
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
