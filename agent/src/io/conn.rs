//! One end of a carried connection: a TCP socket, or a stream that reads and writes like one (TLS,
//! a tunnel).

use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::FutureExt as _;
use rustix::net::{RecvFlags, SendFlags};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, Ready};
use tokio::net::TcpStream;

/// A byte stream that can also be aborted so that the peer notices.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {
    /// Makes dropping the stream reset it: RST on a socket, Disconnect in a tunnel.
    fn abort(&mut self);
}

/// A connection, downstream or upstream.
pub enum Conn {
    /// A plain socket, which can be spliced.
    Tcp(TcpStream),
    /// An accepted socket not yet registered with the runtime (epoll), so it cannot wake a task.
    /// Reading it, or writing more than fits, turns it into [`Self::Tcp`]. A caller whose request
    /// is already there and whose response is the last one never costs the two system calls of
    /// registration.
    Unregistered(UnregisteredSocket),
    /// TLS over a socket, or a tunnel.
    Other(Box<dyn Io>),
}

impl Conn {
    /// Returns the socket if the connection is a plain one.
    #[must_use]
    pub fn as_tcp(&self) -> Option<&TcpStream> {
        match self {
            Self::Tcp(socket) => Some(socket),
            Self::Unregistered(_) | Self::Other(_) => None,
        }
    }

    /// Returns true if the socket is not yet registered with the runtime.
    #[must_use]
    pub fn is_unregistered(&self) -> bool {
        matches!(self, Self::Unregistered(_))
    }

    /// Registers an unregistered socket; does nothing for others.
    ///
    /// # Errors
    /// The kernel watches no more descriptors for this process or user.
    pub fn register(&mut self) -> io::Result<()> {
        if let Self::Unregistered(socket) = self {
            *self = Self::Tcp(socket.register()?);
        }
        Ok(())
    }

    /// Writes the last bytes before the socket is closed, registered or not: they wait for the
    /// close, at most 200 ms, and leave in one packet with it. Plain sockets only.
    ///
    /// # Errors
    /// As [`write_now`]; `Unsupported` where there is more than a socket.
    pub fn write_last(&self, bytes: &[u8]) -> io::Result<usize> {
        let socket = match self {
            Self::Tcp(socket) => socket.as_fd(),
            Self::Unregistered(socket) => socket.get()?.as_fd(),
            Self::Other(_) => return Err(io::ErrorKind::Unsupported.into()),
        };
        Ok(rustix::net::send(
            socket,
            bytes,
            SendFlags::DONTWAIT | SendFlags::NOSIGNAL | SendFlags::MORE,
        )?)
    }

    /// Makes the coming drop visible to the peer as a reset instead of an orderly close.
    pub fn abort(&mut self) {
        match self {
            Self::Tcp(socket) => socket.abort(),
            Self::Unregistered(UnregisteredSocket(Some(socket))) => reset_when_dropped(socket),
            // Registration failed earlier and closed the socket.
            Self::Unregistered(UnregisteredSocket(None)) => {}
            Self::Other(io) => io.abort(),
        }
    }
}

/// A nonblocking socket not registered with the runtime; see [`Conn::Unregistered`].
#[derive(Debug)]
pub struct UnregisteredSocket(Option<std::net::TcpStream>);

impl UnregisteredSocket {
    /// Wraps a nonblocking socket.
    #[must_use]
    pub fn new(socket: std::net::TcpStream) -> Self {
        Self(Some(socket))
    }

    /// Returns the socket.
    ///
    /// # Errors
    /// Registration failed earlier and the socket was closed.
    pub fn get(&self) -> io::Result<&std::net::TcpStream> {
        self.0
            .as_ref()
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Registers the socket with the runtime.
    ///
    /// # Errors
    /// The kernel watches no more descriptors for this process or user; the socket is closed.
    pub fn register_owned(mut self) -> io::Result<TcpStream> {
        self.register()
    }

    fn register(&mut self) -> io::Result<TcpStream> {
        TcpStream::from_std(self.0.take().ok_or(io::ErrorKind::NotConnected)?)
    }
}

/// Returns true if the peer is known to have ended its side and everything before that has been
/// read. False is no proof: the runtime may not know yet.
#[must_use]
pub fn has_ended(socket: &TcpStream) -> bool {
    // A read that did not fill its buffer has cleared the readable flag, unless more was announced
    // since.
    let marks = socket
        .ready(Interest::READABLE | Interest::WRITABLE)
        .now_or_never();
    let Some(Ok(marks)) = marks else {
        return false;
    };
    let unread = marks & Ready::READABLE;
    marks.is_read_closed() && !marks.is_write_closed() && unread == Ready::EMPTY
}

/// Reads what the kernel already holds, whatever the runtime knows: a caller has often sent its
/// request before it is accepted, and one call is cheaper than registration.
///
/// # Errors
/// `WouldBlock` if nothing is there yet; else the connection is over.
pub fn read_now(socket: impl AsFd, into: &mut [u8]) -> io::Result<usize> {
    Ok(rustix::net::recv(socket, into, RecvFlags::DONTWAIT)?.0)
}

/// Writes at once, whatever the runtime knows: on one host a connect is complete when its call
/// returns, so the first bytes need not wait for readiness.
///
/// # Errors
/// `WouldBlock` while the socket is not connected or its buffer is full; else the connection is
/// over.
pub fn write_now(socket: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    Ok(rustix::net::send(
        socket,
        bytes,
        SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
    )?)
}

/// Implements [`AsyncRead::poll_read`] with an own system call: the C library's costs a process
/// with threads two more atomic exchanges. For initialised room.
fn poll_read_socket(
    socket: &TcpStream,
    cx: &mut Context<'_>,
    buf: &mut ReadBuf<'_>,
) -> Poll<io::Result<()>> {
    let room = buf.initialize_unfilled();
    loop {
        ready!(socket.poll_read_ready(cx))?;
        let mut n = 0;
        let read = socket.try_io(Interest::READABLE, || {
            n = read_now(socket, room)?;
            some_of(n, room.len())
        });
        match read {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && n == 0 => {}
            Err(e) if e.kind() != io::ErrorKind::WouldBlock => return Poll::Ready(Err(e)),
            _ => {
                buf.advance(n);
                return Poll::Ready(Ok(()));
            }
        }
    }
}

/// Implements [`AsyncWrite::poll_write`] in the same way.
fn poll_write_socket(
    socket: &TcpStream,
    cx: &mut Context<'_>,
    bytes: &[u8],
) -> Poll<io::Result<usize>> {
    loop {
        let mut n = 0;
        let written = socket.try_io(Interest::WRITABLE, || {
            n = write_now(socket, bytes)?;
            some_of(n, bytes.len())
        });
        match written {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && n == 0 => {
                ready!(socket.poll_write_ready(cx))?
            }
            Err(e) if e.kind() != io::ErrorKind::WouldBlock => return Poll::Ready(Err(e)),
            _ => return Poll::Ready(Ok(n)),
        }
    }
}

/// Tells the runtime about a partial operation, `n` of `asked` bytes: the socket has no more data,
/// or no more room, until the kernel says otherwise, so another try would fail.
fn some_of(n: usize, asked: usize) -> io::Result<()> {
    if 0 < n && n < asked {
        Err(io::ErrorKind::WouldBlock.into())
    } else {
        Ok(())
    }
}

impl Io for TcpStream {
    fn abort(&mut self) {
        reset_when_dropped(&*self);
    }
}

/// Makes closing the socket reset its connection (`SO_LINGER` 0).
pub fn reset_when_dropped(socket: &impl AsFd) {
    // A closed socket has nothing left to reset.
    let _ = SockRef::from(socket).set_linger(Some(std::time::Duration::ZERO));
}

impl Io for Conn {
    fn abort(&mut self) {
        Conn::abort(self);
    }
}

impl std::fmt::Debug for Conn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tcp(_) => "Conn::Tcp",
            Self::Unregistered(_) => "Conn::New",
            Self::Other(_) => "Conn::Other",
        })
    }
}

impl AsyncRead for Conn {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.register()?;
        match this {
            Self::Tcp(socket) if buf.initialized().len() == buf.capacity() => {
                poll_read_socket(socket, cx, buf)
            }
            Self::Tcp(socket) => Pin::new(socket).poll_read(cx, buf),
            // Registration above has replaced this variant.
            Self::Unregistered(_) => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
            Self::Other(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Conn {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if let Self::Unregistered(socket) = this {
            match write_now(socket.get()?, buf) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => this.register()?,
                written => return Poll::Ready(written),
            }
        }
        match this {
            Self::Tcp(socket) => poll_write_socket(socket, cx, buf),
            // Registration above has replaced this variant.
            Self::Unregistered(_) => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
            Self::Other(io) => Pin::new(io).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_flush(cx),
            Self::Unregistered(_) => Poll::Ready(Ok(())),
            Self::Other(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_shutdown(cx),
            Self::Unregistered(socket) => Poll::Ready(socket.get()?.shutdown(Shutdown::Write)),
            Self::Other(io) => return Pin::new(io).poll_shutdown(cx),
        };
        match shut {
            // Both sides have ended already, which is no error.
            Poll::Ready(Err(e)) if e.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
            shut => shut,
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.register()?;
        match this {
            Self::Tcp(socket) => Pin::new(socket).poll_write_vectored(cx, bufs),
            // Registration above has replaced this variant.
            Self::Unregistered(_) => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
            Self::Other(io) => Pin::new(io).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(socket) => socket.is_write_vectored(),
            Self::Unregistered(_) => true,
            Self::Other(io) => io.is_write_vectored(),
        }
    }
}
