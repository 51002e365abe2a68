//! A caller's connection whose bytes are copied as they are read.

use std::io;
use std::os::fd::BorrowedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::io::conn::{Conn, Io};
use crate::proxy::context::ConnContext;
use crate::proxy::wiretap::lanes::{Copies, Lanes};
use crate::proxy::wiretap::speech::Speech;
use traffic_core::routing::Intercept;

/// Wraps a connection that is relayed unread so that the port's wiretaps without filters get what
/// the caller sends; `first` was read before. Without such wiretaps it stays as it is.
pub(crate) fn tee(down: Conn, first: &[u8], context: &ConnContext) -> Conn {
    let wiretaps: Vec<Arc<Intercept>> = {
        let table = context.port.routes.load();
        table.global_wiretaps().cloned().collect()
    };
    if wiretaps.is_empty() {
        return down;
    }
    let mut lanes = Lanes::default();
    let Some(mut copies) = lanes.begin(&wiretaps, &Speech::Unread, context) else {
        return down;
    };
    copies.push(first);
    Conn::Other(Box::new(Tee {
        inner: down,
        copies: Some(copies),
        _lanes: lanes,
    }))
}

struct Tee {
    inner: Conn,
    copies: Option<Copies>,
    _lanes: Lanes,
}

impl AsyncRead for Tee {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let room = buf.remaining();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        let read = buf.filled().get(before..).unwrap_or_default();
        let Some(copies) = &mut self.copies else {
            return Poll::Ready(Ok(()));
        };
        if !read.is_empty() {
            if !copies.push(read) {
                self.copies = None;
            }
        } else if room > 0
            && let Some(copies) = self.copies.take()
        {
            copies.finish();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tee {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

impl Io for Tee {
    fn abort(&mut self) {
        self.inner.abort();
    }

    fn cut(&mut self) {
        Io::cut(&mut self.inner);
    }

    fn was_cut(&self) -> bool {
        self.inner.was_cut()
    }

    fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.inner.socket()
    }
}
