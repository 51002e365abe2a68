//! TLS streams as one end of a carried connection. An end without close_notify reads as a normal
//! end, because many programs close so and most protocols have their own framing; whoever has to
//! know asks [`Io::was_cut`].

use std::any::Any;
use std::io::{self, ErrorKind};
use std::os::fd::BorrowedFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::io::conn::Io;

/// Bytes of clear text and of records that may wait in rustls for a slow peer.
const BUFFER_LIMIT: usize = 32 * 1024;

/// TLS with a caller, as the server.
#[derive(Debug)]
pub struct ServerSide<S> {
    stream: tokio_rustls::server::TlsStream<S>,
    was_cut: bool,
}

/// TLS with the app or a workstation, as the client.
#[derive(Debug)]
pub struct ClientSide<S> {
    stream: tokio_rustls::client::TlsStream<S>,
    was_cut: bool,
    #[allow(dead_code, reason = "held for its drop")]
    guard: Guard,
}

/// Value that has to live as long as a stream.
type Guard = Option<Box<dyn Any + Send>>;

impl<S> ServerSide<S> {
    /// Wraps a stream after its handshake.
    pub fn new(mut stream: tokio_rustls::server::TlsStream<S>) -> Self {
        stream.get_mut().1.set_buffer_limit(Some(BUFFER_LIMIT));
        Self {
            stream,
            was_cut: false,
        }
    }
}

impl<S> ClientSide<S> {
    /// Wraps a stream after its handshake; `guard` is dropped with the stream.
    pub fn new(mut stream: tokio_rustls::client::TlsStream<S>, guard: Guard) -> Self {
        stream.get_mut().1.set_buffer_limit(Some(BUFFER_LIMIT));
        Self {
            stream,
            was_cut: false,
            guard,
        }
    }
}

macro_rules! io_of_inner {
    ($name:ident) => {
        impl<S: Io> Io for $name<S> {
            fn abort(&mut self) {
                // A dropped TLS stream sends nothing, so resetting the stream below it is enough.
                self.stream.get_mut().0.abort();
            }

            fn cut(&mut self) {
                // Dropping says nothing.
            }

            fn was_cut(&self) -> bool {
                self.was_cut
            }

            fn socket(&self) -> Option<BorrowedFd<'_>> {
                self.stream.get_ref().0.socket()
            }
        }

        impl<S: Io> AsyncRead for $name<S> {
            fn poll_read(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buf: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                let this = self.get_mut();
                match ready!(Pin::new(&mut this.stream).poll_read(cx, buf)) {
                    Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                        this.was_cut = true;
                        Poll::Ready(Ok(()))
                    }
                    read => Poll::Ready(read),
                }
            }
        }

        impl<S: Io> AsyncWrite for $name<S> {
            fn poll_write(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buf: &[u8],
            ) -> Poll<io::Result<usize>> {
                Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
            }

            fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                Pin::new(&mut self.get_mut().stream).poll_flush(cx)
            }

            fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
            }

            fn poll_write_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bufs: &[io::IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bufs)
            }

            fn is_write_vectored(&self) -> bool {
                self.stream.is_write_vectored()
            }
        }
    };
}

io_of_inner!(ServerSide);
io_of_inner!(ClientSide);
