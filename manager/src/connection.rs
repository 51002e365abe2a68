//! Peers' connections, which the manager can close: a stream whose reader stalls cannot be ended in
//! itself, because what it holds waits in the transport.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use crate::connections::{Connection, Serving};

/// The way to close a connection; requests carry it.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionEnd {
    number: u64,
    peer: Option<SocketAddr>,
    close: CancellationToken,
    /// None once it is closed, and in tests.
    place: Weak<Connection>,
}

impl Default for ConnectionEnd {
    fn default() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        Self {
            number: LAST.fetch_add(1, Ordering::Relaxed),
            peer: None,
            close: CancellationToken::new(),
            place: Weak::new(),
        }
    }
}

impl ConnectionEnd {
    /// Returns that of a request's connection.
    pub(crate) fn of<T>(request: &tonic::Request<T>) -> Self {
        request.extensions().get().cloned().unwrap_or_default()
    }

    /// Address of the peer.
    pub(crate) fn peer(&self) -> Option<SocketAddr> {
        self.peer
    }

    /// Number of the connection, in the order of their arrival.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Says that a request is served until the returned value is dropped.
    pub(crate) fn serves(&self) -> Option<Serving> {
        self.place.upgrade().map(|place| place.serves())
    }

    /// Closes the connection.
    pub(crate) fn close(&self) {
        self.close.cancel();
    }

    /// Resolves when it is closed.
    pub(crate) async fn closed(&self) {
        self.close.cancelled().await;
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.close.is_cancelled()
    }
}

/// A connection that fails once it is to be closed.
pub(crate) struct ClosableIo<I> {
    io: I,
    end: ConnectionEnd,
    closed: Pin<Box<WaitForCancellationFutureOwned>>,
    #[expect(dead_code, reason = "held until the connection is closed")]
    place: Arc<Connection>,
}

impl<I> ClosableIo<I> {
    pub(crate) fn new(io: I, peer: Option<SocketAddr>, place: Arc<Connection>) -> Self {
        let end = ConnectionEnd {
            peer,
            close: place.close().clone(),
            place: Arc::downgrade(&place),
            ..ConnectionEnd::default()
        };
        let closed = Box::pin(end.close.clone().cancelled_owned());
        Self {
            io,
            end,
            closed,
            place,
        }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for ClosableIo<I> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.closed.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut this.io).poll_read(cx, buf)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for ClosableIo<I> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

impl<I> Connected for ClosableIo<I> {
    type ConnectInfo = ConnectionEnd;

    fn connect_info(&self) -> ConnectionEnd {
        self.end.clone()
    }
}
