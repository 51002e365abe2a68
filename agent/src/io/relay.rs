//! The opaque copy loop: two independent directions in one task, so that a stall stays on its side.
//! Half-close is kept, a reset is passed on as a reset, an idle direction holds no buffer, and a
//! busy one between two sockets is spliced. There is no idle timeout: a quiet connection is the
//! peers' decision.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;

use crate::io::buffers;
use crate::io::buffers::Buf;
use crate::io::conn::Conn;
use crate::io::late_reset::LateReset;
use crate::io::splice::SplicePipe;
use crate::telemetry::metrics::{Counter, PortMetrics};

/// Bytes read from either end before the relay began, still to be forwarded.
#[derive(Debug, Default)]
pub struct PendingBytes {
    /// Bytes from the caller, to go upstream.
    pub from_down: Buf,
    /// Bytes from upstream, to go to the caller.
    pub from_up: Buf,
}

/// One end of a relayed pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The caller's connection.
    Down,
    /// The app's connection, or the tunnel.
    Up,
}

/// Result of a relay.
#[derive(Debug)]
pub struct Relayed {
    /// The end that failed and its error; `None` if both directions ended properly.
    pub broken: Option<(Side, io::Error)>,
    /// Bytes forwarded upstream.
    pub bytes_in: u64,
    /// Bytes forwarded to the caller.
    pub bytes_out: u64,
}

/// Carries bytes both ways until each direction has ended, or one end fails. After a failure both
/// ends are reset when dropped, so that neither peer takes it for a proper end.
pub async fn both(
    down: &mut Conn,
    up: &mut Conn,
    first: PendingBytes,
    metrics: &PortMetrics,
) -> Relayed {
    resume(
        down,
        up,
        first,
        [SplicePipe::default(), SplicePipe::default()],
        metrics,
    )
    .await
}

/// Continues like [`both`] with bytes already in kernel pipes, from the caller and from upstream.
/// They follow those of `first`.
pub async fn resume(
    down: &mut Conn,
    up: &mut Conn,
    first: PendingBytes,
    [inward, outward]: [SplicePipe; 2],
    metrics: &PortMetrics,
) -> Relayed {
    let mut inward = Direction::new(first.from_down, inward);
    let mut outward = Direction::new(first.from_up, outward);
    let (mut behind_down, mut behind_up) = (LateReset::default(), LateReset::default());
    let ended = poll_fn(|cx| {
        let inward = inward
            .poll(cx, down, up, &metrics.bytes_in, metrics)
            .map_err(|b| b.seen(Side::Down, Side::Up))?;
        let outward = outward
            .poll(cx, up, down, &metrics.bytes_out, metrics)
            .map_err(|b| b.seen(Side::Up, Side::Down))?;
        let (side, socket, late_reset) = match (inward.is_ready(), outward.is_ready()) {
            // A finished direction no longer reads its source, so only the socket's error state can
            // show a reset.
            (true, true) => return Poll::Ready(Ok(())),
            (false, false) => return Poll::Pending,
            (true, false) => (Side::Down, down.as_tcp(), &mut behind_down),
            (false, true) => (Side::Up, up.as_tcp(), &mut behind_up),
        };
        let Some(socket) = socket else {
            return Poll::Pending;
        };
        late_reset
            .poll_broken(socket, cx)
            .map(|error| Err((side, error)))
    })
    .await;
    if ended.is_err() {
        down.abort();
        up.abort();
    }
    Relayed {
        broken: ended.err(),
        bytes_in: inward.moved,
        bytes_out: outward.moved,
    }
}

enum DirectionState {
    Moving,
    Ending,
    Done,
}

/// Bytes on their way from one end to the other: in the buffer, in the kernel pipe, or in neither.
struct Direction {
    stage: DirectionState,
    buf: Buf,
    pipe: SplicePipe,
    bulk: BulkDetector,
    /// The kernel refused to splice; the rest of the connection is copied.
    copies_only: bool,
    /// Bytes were written that a TLS writer may still hold back.
    unflushed: bool,
    moved: u64,
}

/// The failed end of a direction.
enum Broken {
    From(io::Error),
    To(io::Error),
}

impl Broken {
    fn seen(self, from: Side, to: Side) -> (Side, io::Error) {
        match self {
            Self::From(error) => (from, error),
            Self::To(error) => (to, error),
        }
    }
}

impl Direction {
    fn new(buf: Buf, pipe: SplicePipe) -> Self {
        Self {
            stage: DirectionState::Moving,
            buf,
            pipe,
            bulk: BulkDetector::default(),
            copies_only: false,
            unflushed: false,
            moved: 0,
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Conn,
        to: &mut Conn,
        counter: &Counter,
        metrics: &PortMetrics,
    ) -> Poll<Result<(), Broken>> {
        loop {
            match self.stage {
                DirectionState::Moving => {
                    let before = self.moved;
                    let moved = self.poll_move(cx, from, to, metrics);
                    counter.add(self.moved - before);
                    ready!(moved)?;
                    self.stage = DirectionState::Ending;
                }
                DirectionState::Ending => {
                    ready!(Pin::new(&mut *to).poll_shutdown(cx)).map_err(Broken::To)?;
                    self.stage = DirectionState::Done;
                }
                DirectionState::Done => return Poll::Ready(Ok(())),
            }
        }
    }

    /// Moves bytes until the source ends.
    fn poll_move(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Conn,
        to: &mut Conn,
        metrics: &PortMetrics,
    ) -> Poll<Result<(), Broken>> {
        loop {
            ready!(self.poll_deliver(cx, to, metrics))?;
            let read = match (&*from, &*to) {
                (Conn::Tcp(source), Conn::Tcp(_)) if self.bulk.is_busy() && !self.copies_only => {
                    let filled = self.pipe.poll_fill(cx, source, u64::MAX);
                    // Nothing was taken from the source, so copying can continue at the same byte.
                    if matches!(&filled, Poll::Ready(Err(e)) if crate::io::splice::is_refused(e)) {
                        self.copies_only = true;
                        continue;
                    }
                    filled
                }
                _ => {
                    self.buf.prefer_large(self.bulk.is_busy());
                    self.buf.poll_fill(from, cx)
                }
            };
            match read {
                Poll::Ready(Ok(0)) => {
                    self.pipe.release();
                    return Poll::Ready(Ok(()));
                }
                Poll::Ready(Ok(n)) => self.bulk.record(n),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Broken::From(error))),
                Poll::Pending => {
                    self.pipe.release();
                    if self.unflushed {
                        ready!(Pin::new(&mut *to).poll_flush(cx)).map_err(Broken::To)?;
                        self.unflushed = false;
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    /// Writes out the held bytes.
    fn poll_deliver(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut Conn,
        metrics: &PortMetrics,
    ) -> Poll<Result<(), Broken>> {
        while !self.buf.is_empty() {
            let n =
                ready!(Pin::new(&mut *to).poll_write(cx, self.buf.unread())).map_err(Broken::To)?;
            if n == 0 {
                return Poll::Ready(Err(Broken::To(io::ErrorKind::WriteZero.into())));
            }
            self.unflushed = true;
            self.buf.consume(n);
            self.moved += n as u64;
        }
        // Buffered bytes were read before those in the pipe, so they go first.
        while self.pipe.held() > 0 {
            // Only a pair of sockets ever puts bytes into the pipe.
            let Conn::Tcp(sink) = &*to else { break };
            let n = ready!(self.pipe.poll_drain(cx, sink)).map_err(Broken::To)?;
            metrics.bytes_spliced.add(n as u64);
            self.moved += n as u64;
        }
        Poll::Ready(Ok(()))
    }
}

/// Detects a bulk transfer: several reads in a row that filled a buffer. Small reads end it
/// quickly; a pause alone does not, because a fast relay often outruns its source.
#[derive(Debug, Default)]
pub struct BulkDetector(u8);

impl BulkDetector {
    const BUSY_SCORE: u8 = 2;
    const MAX_SCORE: u8 = 8;
    const SMALL_READ: usize = 4 * 1024;

    /// Starts as busy until small reads show otherwise.
    #[must_use]
    pub fn assume_busy() -> Self {
        Self(Self::BUSY_SCORE)
    }

    /// Records a read of `n` bytes.
    pub fn record(&mut self, n: usize) {
        // Full reads raise the score slowly and small ones lower it fast: a wrong guess of "bulk"
        // costs two extra system calls per read.
        if n >= buffers::SIZE {
            self.0 = (self.0 + 1).min(Self::MAX_SCORE);
        } else if n < Self::SMALL_READ {
            self.0 = self.0.saturating_sub(2);
        }
    }

    /// Returns true if recent reads filled a buffer.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.0 >= Self::BUSY_SCORE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_full_reads_in_a_row_make_a_direction_busy_and_small_ones_end_it() {
        let mut bulk = BulkDetector::default();
        for _ in 0..100 {
            bulk.record(buffers::SIZE);
            bulk.record(100);
        }
        assert!(!bulk.is_busy());
        for _ in 0..100 {
            bulk.record(buffers::SIZE);
        }
        assert!(bulk.is_busy());
        for _ in 0..4 {
            bulk.record(100);
        }
        assert!(!bulk.is_busy());
    }
}
