//! Ends that take nothing away from the peer. A reset discards what was written and not yet
//! acknowledged, and closing a socket over unread bytes is a reset; so both wait here until the
//! peer has what was written for it.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use tokio::io::AsyncWrite as _;
use tokio::time::{Instant, sleep, timeout};

use crate::io::buffers::Buf;
use crate::io::conn::{Conn, Io as _};
use crate::io::socket_queues;

/// Time a peer is still read from once it has everything.
const LINGER_TIMEOUT: Duration = Duration::from_secs(2);
/// Time a peer gets to acknowledge the next bytes before it is given up.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// The same before a reset, for which somebody waits.
const RESET_STALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Pauses between questions to the kernel for what is left: the first, and the longest.
const ASK_INTERVAL: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(100));
/// Bytes that are certain to be on the wire when their socket is closed (ten segments, RFC 6928):
/// they precede any reset that later bytes of the peer provoke.
const MAX_IN_FLIGHT: usize = 14_000;

/// Resets `conn` when it is dropped, after the peer has acknowledged what was written.
pub async fn reset_when_delivered(conn: &mut Conn) {
    delivered(conn).await;
    conn.abort();
}

/// Ends `conn` without the closing word that TLS has, after the peer has acknowledged what was
/// written; a plain socket is reset, since its end could not be told from a proper one.
pub async fn cut_when_delivered(conn: &mut Conn) {
    delivered(conn).await;
    conn.cut();
}

/// Ends our side of `conn`, then reads and discards what the peer still sends until it ends its own
/// or has had time to take everything.
///
/// # Errors
/// The connection failed before our side was ended.
pub async fn linger(conn: &mut Conn) -> io::Result<()> {
    let ending = poll_fn(|cx| Pin::new(&mut *conn).poll_shutdown(cx));
    timeout(STALL_TIMEOUT, ending)
        .await
        .map_err(|_| io::ErrorKind::TimedOut)??;
    let mut progress = Progress::new(conn, STALL_TIMEOUT);
    let mut everything_taken: Option<Instant> = None;
    loop {
        let pause = progress.pause();
        tokio::select! {
            () = discard(conn) => return Ok(()),
            () = sleep(pause) => {}
        }
        match progress.look(conn) {
            Left::Some => {}
            Left::Stalled => return Ok(()),
            Left::Nothing => {
                let since = *everything_taken.get_or_insert_with(Instant::now);
                if since.elapsed() >= LINGER_TIMEOUT {
                    return Ok(());
                }
            }
        }
    }
}

/// Returns true if dropping `conn` takes nothing away from its peer.
#[must_use]
pub fn may_drop(conn: &Conn) -> bool {
    conn.socket().is_none_or(|socket| {
        socket_queues::unread(socket) == 0 && socket_queues::unacknowledged(socket) <= MAX_IN_FLIGHT
    })
}

/// Waits until the peer has acknowledged what was written, as long as it takes more.
async fn delivered(conn: &mut Conn) {
    let flushing = poll_fn(|cx| Pin::new(&mut *conn).poll_flush(cx));
    if !matches!(timeout(RESET_STALL_TIMEOUT, flushing).await, Ok(Ok(()))) {
        return;
    }
    let mut progress = Progress::new(conn, RESET_STALL_TIMEOUT);
    while matches!(progress.look(conn), Left::Some) {
        sleep(progress.pause()).await;
    }
}

/// Reads until the peer's end.
async fn discard(conn: &mut Conn) {
    let mut buf = Buf::default();
    poll_fn(|cx| {
        loop {
            buf.consume(usize::MAX);
            match std::task::ready!(buf.poll_fill(conn, cx)) {
                Ok(n) if n > 0 => {}
                _ => return Poll::Ready(()),
            }
        }
    })
    .await;
}

/// Progress of a peer in taking what was written for it.
struct Progress {
    left: usize,
    moved: Instant,
    pause: Duration,
    patience: Duration,
}

enum Left {
    Nothing,
    Some,
    /// Some, and the peer has taken nothing for too long.
    Stalled,
}

impl Progress {
    fn new(conn: &Conn, patience: Duration) -> Self {
        Self {
            left: left(conn),
            moved: Instant::now(),
            pause: ASK_INTERVAL.0,
            patience,
        }
    }

    fn pause(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).min(ASK_INTERVAL.1);
        pause
    }

    fn look(&mut self, conn: &Conn) -> Left {
        let left = left(conn);
        if left == 0 {
            return Left::Nothing;
        }
        if left < self.left {
            self.moved = Instant::now();
        }
        self.left = left;
        if self.moved.elapsed() > self.patience {
            Left::Stalled
        } else {
            Left::Some
        }
    }
}

fn left(conn: &Conn) -> usize {
    conn.socket().map_or(0, socket_queues::unacknowledged)
}
