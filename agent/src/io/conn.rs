//! One end of a carried connection: a TCP socket, or a stream that reads and writes like one (TLS,
//! a tunnel).

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// A byte stream that can also be aborted so that the peer notices.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {
    /// Makes dropping the stream reset it: RST on a socket, Disconnect in a tunnel.
    fn abort(&mut self);

    /// Makes dropping the stream end it so that the peer can tell it from a proper end. TLS just
    /// leaves out its closing word; elsewhere that takes a reset.
    fn cut(&mut self) {
        self.abort();
    }

    /// Returns true if the peer's side has ended without the closing word that TLS has.
    fn was_cut(&self) -> bool {
        false
    }

    /// Returns the socket below, if there is one.
    fn socket(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// A connection, downstream or upstream.
pub enum Conn {
    /// A plain socket, which can be spliced.
    Tcp(TcpStream),
    /// TLS over a socket, or a tunnel.
    Other(Box<dyn Io>),
}

impl Conn {
    /// Returns the socket if the connection is a plain one.
    #[must_use]
    pub fn as_tcp(&self) -> Option<&TcpStream> {
        match self {
            Self::Tcp(socket) => Some(socket),
            Self::Other(_) => None,
        }
    }

    /// Makes the coming drop visible to the peer as a reset instead of an orderly close.
    pub fn abort(&mut self) {
        match self {
            Self::Tcp(socket) => socket.abort(),
            Self::Other(io) => io.abort(),
        }
    }
}

impl Io for TcpStream {
    fn abort(&mut self) {
        reset_when_dropped(&*self);
    }

    fn socket(&self) -> Option<BorrowedFd<'_>> {
        Some(self.as_fd())
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

    fn cut(&mut self) {
        match self {
            Self::Other(io) => io.cut(),
            Self::Tcp(_) => self.abort(),
        }
    }

    fn was_cut(&self) -> bool {
        matches!(self, Self::Other(io) if io.was_cut())
    }

    fn socket(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Tcp(socket) => Some(socket.as_fd()),
            Self::Other(io) => io.socket(),
        }
    }
}

impl std::fmt::Debug for Conn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tcp(_) => "Conn::Tcp",
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
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_read(cx, buf),
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
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_write(cx, buf),
            Self::Other(io) => Pin::new(io).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_flush(cx),
            Self::Other(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => match Pin::new(socket).poll_shutdown(cx) {
                // Both sides have ended already; there is nothing left to say and nothing is wrong.
                Poll::Ready(Err(e)) if e.kind() == io::ErrorKind::NotConnected => {
                    Poll::Ready(Ok(()))
                }
                shut => shut,
            },
            Self::Other(io) => Pin::new(io).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_write_vectored(cx, bufs),
            Self::Other(io) => Pin::new(io).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(socket) => socket.is_write_vectored(),
            Self::Other(io) => io.is_write_vectored(),
        }
    }
}
