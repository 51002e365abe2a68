//! The socket of a workstation, which may go over to the runtime of another thread.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Word to a socket that from now on it is used on another runtime; cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Move(Arc<AtomicBool>);

impl Move {
    /// To be said where nobody uses the socket any more, before it is used elsewhere.
    pub(crate) fn over(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// A socket that registers itself with the runtime that uses it.
pub(crate) struct MovableSocket {
    /// None only where moving has failed.
    socket: Option<TcpStream>,
    moves: Move,
}

impl MovableSocket {
    pub(crate) fn new(socket: TcpStream, moves: Move) -> Self {
        Self {
            socket: Some(socket),
            moves,
        }
    }

    fn here(&mut self) -> io::Result<Pin<&mut TcpStream>> {
        // Looked at before it is exchanged, because it is asked for each read and write.
        if self.moves.0.load(Ordering::Acquire) && self.moves.0.swap(false, Ordering::AcqRel) {
            let socket = self.socket.take().map(TcpStream::into_std).transpose()?;
            self.socket = socket.map(TcpStream::from_std).transpose()?;
        }
        let socket = self.socket.as_mut().map(Pin::new);
        socket.ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl AsyncRead for MovableSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.here()?.poll_read(cx, buf)
    }
}

impl AsyncWrite for MovableSocket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.here()?.poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.here()?.poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.here()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.here()?.poll_shutdown(cx))?;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn a_socket_goes_on_where_it_has_moved_to() {
        let runtime = || {
            let mut builder = tokio::runtime::Builder::new_current_thread();
            builder.enable_all().build().unwrap()
        };
        let first = runtime();
        let (moves, mut near, mut far) = first.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let (far, near) = tokio::join!(TcpStream::connect(address), listener.accept());
            let moves = Move::default();
            let mut near = MovableSocket::new(near.unwrap().0, moves.clone());
            let mut far = far.unwrap();
            far.write_all(b"one").await.unwrap();
            near.read_exact(&mut [0; 3]).await.unwrap();
            (moves, near, far.into_std().unwrap())
        });
        moves.over();
        // Without its first runtime it works only if it has left that.
        let moved = std::thread::spawn(move || {
            runtime().block_on(async {
                let mut read = [0; 3];
                near.read_exact(&mut read).await.unwrap();
                near.write_all(&read).await.unwrap();
            });
        });
        std::io::Write::write_all(&mut far, b"two").unwrap();
        far.set_nonblocking(false).unwrap();
        let mut read = [0; 3];
        std::io::Read::read_exact(&mut far, &mut read).unwrap();
        assert_eq!(&read, b"two");
        moved.join().unwrap();
        drop(first);
    }
}
