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
use crate::io::close;
use crate::io::conn::{Conn, Io as _};
use crate::io::late_reset::LateReset;
use crate::io::socket_queues;
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

/// Carries bytes both ways until each direction has ended, or one end fails. An end that takes no
/// more is still heard out. After a failure both ends are reset when dropped, so that neither peer
/// takes it for a proper end; what was written before is delivered first.
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
    let mut pair = Pair {
        inward: Direction::new(first.from_down, inward),
        outward: Direction {
            keeps_cuts: true,
            ..Direction::new(first.from_up, outward)
        },
        behind_down: LateReset::default(),
        behind_up: LateReset::default(),
        refusal: None,
        sent_when_up_ended: None,
    };
    let ending = poll_fn(|cx| pair.poll(cx, down, up, metrics)).await;
    let (bytes_in, bytes_out) = (pair.inward.moved, pair.outward.moved);
    drop(pair);
    let broken = finish(ending, down, up).await;
    Relayed {
        broken,
        bytes_in,
        bytes_out,
    }
}

/// Ends both connections as the first one has ended, without taking away from the other what was
/// written for it.
async fn finish(ending: Ending, down: &mut Conn, up: &mut Conn) -> Option<(Side, io::Error)> {
    match ending {
        Ending::Orderly => None,
        Ending::CallerUnheard => {
            // Whether the caller takes the rest is between it and its kernel.
            let _ = close::linger(down).await;
            None
        }
        Ending::AppUnheard(error) => Some((Side::Down, error)),
        Ending::Cut(error) => {
            close::cut_when_delivered(down).await;
            up.abort();
            Some((Side::Up, error))
        }
        Ending::Broken(side, error) => {
            let (broken, other) = match side {
                Side::Down => (down, up),
                Side::Up => (up, down),
            };
            broken.abort();
            close::reset_when_delivered(other).await;
            Some((side, error))
        }
    }
}

/// End of a pair of connections.
enum Ending {
    /// Each side has ended by itself.
    Orderly,
    /// The app has ended properly and takes nothing more of what the caller sends.
    CallerUnheard,
    /// The caller has ended properly and takes nothing more of what the app sends.
    AppUnheard(io::Error),
    /// Upstream has ended without the closing word of its TLS.
    Cut(io::Error),
    /// One side has failed.
    Broken(Side, io::Error),
}

/// Both directions of a relayed connection.
struct Pair {
    inward: Direction,
    outward: Direction,
    behind_down: LateReset,
    behind_up: LateReset,
    /// The end that took no more. What it had said before still passes the other way.
    refusal: Option<WriteRefusal>,
    /// Bytes that had gone upstream when upstream ended.
    sent_when_up_ended: Option<u64>,
}

/// An end that takes no more.
struct WriteRefusal {
    side: Side,
    error: io::Error,
    /// True if it had ended its own side properly before.
    orderly: bool,
}

impl Pair {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        down: &mut Conn,
        up: &mut Conn,
        metrics: &PortMetrics,
    ) -> Poll<Ending> {
        let inward = match &self.refusal {
            Some(WriteRefusal { side: Side::Up, .. }) => Poll::Ready(()),
            _ => match self.inward.poll(cx, down, up, &metrics.bytes_in, metrics) {
                Poll::Ready(Ok(())) => Poll::Ready(()),
                Poll::Pending => Poll::Pending,
                Poll::Ready(Err(Broken::From(error))) => {
                    return Poll::Ready(Ending::Broken(Side::Down, error));
                }
                Poll::Ready(Err(Broken::To(error))) => match self.refuse(Side::Up, error) {
                    Some(ending) => return Poll::Ready(ending),
                    None => Poll::Ready(()),
                },
            },
        };
        // A splice that fails behind bytes that went tells of those only, and the error is gone.
        self.outward.doubts_end = self.inward.has_spliced && !self.inward.is_over();
        let outward = match &self.refusal {
            Some(WriteRefusal {
                side: Side::Down, ..
            }) => Poll::Ready(()),
            _ => match self.outward.poll(cx, up, down, &metrics.bytes_out, metrics) {
                Poll::Ready(Ok(())) => Poll::Ready(()),
                Poll::Pending => Poll::Pending,
                Poll::Ready(Err(Broken::From(error))) if up.was_cut() => {
                    return Poll::Ready(Ending::Cut(error));
                }
                Poll::Ready(Err(Broken::From(error))) => {
                    return Poll::Ready(Ending::Broken(Side::Up, error));
                }
                Poll::Ready(Err(Broken::To(error))) => match self.refuse(Side::Down, error) {
                    Some(ending) => return Poll::Ready(ending),
                    None => Poll::Ready(()),
                },
            },
        };
        if outward.is_ready() && self.sent_when_up_ended.is_none() {
            self.sent_when_up_ended = Some(self.inward.moved);
        }
        match (inward.is_ready(), outward.is_ready()) {
            (true, true) => Poll::Ready(self.both_over()),
            (false, false) => Poll::Pending,
            (true, false) => self.watch(Side::Down, down, cx),
            (false, true) => self.watch(Side::Up, up, cx),
        }
    }

    /// Keeps that `side` takes no more; the other direction goes on. When both sides do, the first
    /// one tells how it ends.
    fn refuse(&mut self, side: Side, error: io::Error) -> Option<Ending> {
        if let Some(first) = self.refusal.take() {
            return Some(Ending::Broken(first.side, first.error));
        }
        // A connection that was never made, or was given up, has no last words; the kernel tells its
        // error once, and reading says a proper end from then on.
        let gone = matches!(
            error.kind(),
            io::ErrorKind::ConnectionRefused
                | io::ErrorKind::HostUnreachable
                | io::ErrorKind::NetworkUnreachable
                | io::ErrorKind::TimedOut
        );
        if gone {
            return Some(Ending::Broken(side, error));
        }
        let (refused, other) = match side {
            Side::Up => (&self.inward, &self.outward),
            Side::Down => (&self.outward, &self.inward),
        };
        // The kernel says EPIPE behind a proper end, else ECONNRESET; splicing may swallow the latter
        // and then say EPIPE as well.
        let orderly =
            error.kind() == io::ErrorKind::BrokenPipe && (other.is_over() || !refused.has_spliced);
        self.refusal = Some(WriteRefusal {
            side,
            error,
            orderly,
        });
        None
    }

    /// Both directions are over.
    fn both_over(&mut self) -> Ending {
        match self.refusal.take() {
            None => Ending::Orderly,
            Some(WriteRefusal {
                side,
                error,
                orderly: false,
            }) => Ending::Broken(side, error),
            Some(WriteRefusal { side: Side::Up, .. }) => Ending::CallerUnheard,
            Some(WriteRefusal { error, .. }) => Ending::AppUnheard(error),
        }
    }

    /// Watches the side that has ended for a reset behind its end. One that our own bytes have
    /// provoked means no more than that they came too late.
    fn watch(&mut self, side: Side, conn: &Conn, cx: &mut Context<'_>) -> Poll<Ending> {
        let Some(socket) = conn.as_tcp() else {
            return Poll::Pending;
        };
        let late_reset = match side {
            Side::Down => &mut self.behind_down,
            Side::Up => &mut self.behind_up,
        };
        let error = ready!(late_reset.poll_broken(socket, cx));
        let sent_since = self
            .sent_when_up_ended
            .is_some_and(|n| n != self.inward.moved);
        Poll::Ready(if side == Side::Up && sent_since {
            Ending::CallerUnheard
        } else {
            Ending::Broken(side, error)
        })
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
    /// An end of TLS without its closing word is no proper end.
    keeps_cuts: bool,
    /// Bytes were spliced to the sink.
    has_spliced: bool,
    /// A reset of the source may have been swallowed, so that it reads like an end.
    doubts_end: bool,
    moved: u64,
}

/// The failed end of a direction.
enum Broken {
    From(io::Error),
    To(io::Error),
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
            keeps_cuts: false,
            has_spliced: false,
            doubts_end: false,
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

    fn is_over(&self) -> bool {
        !matches!(self.stage, DirectionState::Moving)
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
                    if self.doubts_end && from.as_tcp().is_some_and(socket_queues::is_reset) {
                        let reset = io::ErrorKind::ConnectionReset.into();
                        return Poll::Ready(Err(Broken::From(reset)));
                    }
                    if self.keeps_cuts && from.was_cut() {
                        return Poll::Ready(Err(Broken::From(io::ErrorKind::UnexpectedEof.into())));
                    }
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
            self.has_spliced = true;
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
