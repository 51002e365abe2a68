//! `splice(2)`: moves bytes from socket to socket through a kernel pipe, without a copy into our
//! memory. A pipe is borrowed only while it holds bytes, from a small stock of each worker thread;
//! if none is available (out of descriptors, refused by a sandbox) the caller copies instead.
//! `rustix` wraps the calls safely.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::task::{Context, Poll, ready};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::task::coop;

/// Requested pipe size. Unprivileged users share a total, so less may be granted; the kernel's
/// default of 64 KiB works as well, with more calls.
const PIPE_SIZE: usize = 512 * 1024;
/// Bytes requested in one call: more than a pipe holds, the kernel stops by itself.
const MAX_SPLICE: usize = 1 << 20;
const MAX_POOLED: usize = 8;

thread_local! {
    static POOL: RefCell<Vec<PipeEnds>> = const { RefCell::new(Vec::new()) };
}

#[derive(Debug)]
struct PipeEnds {
    out: OwnedFd,
    into: OwnedFd,
}

/// A pipe between two sockets, present only while it holds bytes (or is about to).
///
/// Fill and drain alternate: [`Self::poll_fill`] is to be called only while nothing is held,
/// because the kernel answers a full pipe and an empty socket alike.
#[derive(Debug, Default)]
pub struct SplicePipe {
    pipe: Option<PipeEnds>,
    held: usize,
}

impl SplicePipe {
    /// Number of bytes taken from the source and not yet delivered.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held
    }

    /// Takes what the socket has, at most `limit` bytes; `Ok(0)` is the end of the stream.
    ///
    /// # Errors
    /// The socket's error; or a refusal ([`is_refused`]), after which nothing was taken and the
    /// caller has to copy.
    pub fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        from: &TcpStream,
        limit: u64,
    ) -> Poll<io::Result<usize>> {
        debug_assert_eq!(self.held, 0, "fill and drain alternate");
        // Takes part in the runtime's cooperative budget, since `try_io` alone would never yield.
        let progress = ready!(coop::poll_proceed(cx));
        let len = usize::try_from(limit).unwrap_or(MAX_SPLICE).min(MAX_SPLICE);
        loop {
            ready!(from.poll_read_ready(cx))?;
            let pipe = match &self.pipe {
                Some(pipe) => pipe,
                None => self.pipe.insert(take().map_err(refused)?),
            };
            match from.try_io(Interest::READABLE, || move_bytes(from, &pipe.into, len)) {
                Ok(n) => {
                    progress.made_progress();
                    self.held = n;
                    return Poll::Ready(Ok(n));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported
                    ) =>
                {
                    return Poll::Ready(Err(refused(e)));
                }
                // A seccomp profile may forbid the call.
                Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                    return Poll::Ready(Err(refused(e)));
                }
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }

    /// Delivers held bytes and returns their number.
    ///
    /// # Errors
    /// The socket's error.
    pub fn poll_drain(&mut self, cx: &mut Context<'_>, to: &TcpStream) -> Poll<io::Result<usize>> {
        let Some(pipe) = self.pipe.as_ref().filter(|_| self.held > 0) else {
            return Poll::Ready(Ok(0));
        };
        let progress = ready!(coop::poll_proceed(cx));
        loop {
            ready!(to.poll_write_ready(cx))?;
            match to.try_io(Interest::WRITABLE, || move_bytes(&pipe.out, to, self.held)) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(n) => {
                    progress.made_progress();
                    self.held -= n.min(self.held);
                    return Poll::Ready(Ok(n));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }

    /// Returns the pipe while nothing is held: an idle direction owns no descriptors.
    pub fn release(&mut self) {
        if self.held > 0 {
            return;
        }
        if let Some(pipe) = self.pipe.take() {
            // The pool of a thread that is ending is gone already.
            let _ = POOL.try_with(|pool| {
                let mut pool = pool.borrow_mut();
                // Beyond the stock the pipe is closed, which returns its two descriptors.
                if pool.len() < MAX_POOLED {
                    pool.push(pipe);
                }
            });
        }
    }
}

impl Drop for SplicePipe {
    /// Closes a pipe that still holds bytes; it must never serve another connection.
    fn drop(&mut self) {
        self.release();
    }
}

/// Returns true if an error of [`SplicePipe::poll_fill`] or [`exactly`] means that splicing is not
/// available here, and nothing else.
#[must_use]
pub fn is_refused(error: &io::Error) -> bool {
    error
        .get_ref()
        .is_some_and(|inner| inner.is::<SpliceRefused>())
}

#[derive(Debug, thiserror::Error)]
#[error("the kernel does not splice here: {0}")]
struct SpliceRefused(io::Error);

fn refused(error: io::Error) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, SpliceRefused(error))
}

/// Incomplete result of [`exactly`].
#[derive(Debug)]
pub enum Short {
    /// The source ended after so many bytes.
    Ended(u64),
    /// The source failed. After a refusal ([`is_refused`]) `moved` bytes were delivered, none is
    /// lost, and the rest can be copied.
    From {
        /// Bytes delivered.
        moved: u64,
        /// The source's error.
        error: io::Error,
    },
    /// The sink failed.
    To(io::Error),
}

/// Moves exactly `n` bytes from one socket to the other, for message bodies of known length.
/// Buffered bytes of `from` have to be delivered first. Both sockets are only borrowed, so the same
/// task can serve the other direction (`try_read`, `try_write`); two tasks must not wait on the
/// same direction of a socket at once.
///
/// Worth it from about 64 KiB on; below, one read and one write are cheaper than two splices.
///
/// # Errors
/// [`Short`] says how far it came.
pub async fn exactly(from: &TcpStream, to: &TcpStream, n: u64) -> Result<(), Short> {
    let mut hop = SplicePipe::default();
    let mut moved = 0;
    while moved < n {
        match poll_fn(|cx| hop.poll_fill(cx, from, n - moved)).await {
            Ok(0) => return Err(Short::Ended(moved)),
            Ok(_) => {}
            Err(error) => return Err(Short::From { moved, error }),
        }
        while hop.held() > 0 {
            moved += poll_fn(|cx| hop.poll_drain(cx, to))
                .await
                .map_err(Short::To)? as u64;
        }
    }
    Ok(())
}

fn move_bytes(from: impl AsFd, to: impl AsFd, len: usize) -> io::Result<usize> {
    Ok(splice(
        from,
        None,
        to,
        None,
        len,
        SpliceFlags::MOVE | SpliceFlags::NONBLOCK,
    )?)
}

fn take() -> io::Result<PipeEnds> {
    if let Some(pipe) = POOL.with_borrow_mut(Vec::pop) {
        return Ok(pipe);
    }
    let (out, into) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    // Best effort: beyond the user's soft limit the kernel refuses, and a small pipe works as well.
    let _ = fcntl_setpipe_size(&into, PIPE_SIZE);
    Ok(PipeEnds { out, into })
}
