//! One direction of a connection: what was read and goes on as it is, and frames that go behind it.
//! While anything waits to be written, nothing more is read, so a slow reader slows its sender.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;

use crate::io::buffers::{Buf, SIZE};
use crate::io::conn::Conn;
use traffic_core::http2::router::Sorted;

/// Memory that an idle direction keeps for frames of the router's.
const MAX_KEPT: usize = 512;

/// One direction.
#[derive(Debug)]
pub(super) struct FrameFlow {
    pub(super) buf: Buf,
    /// Bytes at the front of `buf` that go on as they are.
    pass: usize,
    /// Bytes at the front of `buf` that are no longer needed once those have gone.
    used: usize,
    /// Bytes that go on behind them.
    pub(super) out: Vec<u8>,
    /// Bytes of `out` that have been written.
    written: usize,
    /// Something was written and not flushed.
    dirty: bool,
    /// `buf` has bytes that were not sorted yet.
    pub(super) unsorted: bool,
    /// The source has ended.
    pub(super) ended: bool,
    /// The end was passed on.
    pub(super) shut: bool,
}

impl FrameFlow {
    pub(super) fn new(buf: Buf) -> Self {
        let unsorted = !buf.is_empty();
        Self {
            buf,
            pass: 0,
            used: 0,
            out: Vec::new(),
            written: 0,
            dirty: false,
            unsorted,
            ended: false,
            shut: false,
        }
    }

    /// Takes the router's word for the bytes in `buf`.
    pub(super) fn sorted(&mut self, sorted: Sorted) {
        self.pass = sorted.pass;
        self.used = sorted.used;
        self.unsorted = false;
    }

    /// Returns true if everything that may be written has been.
    pub(super) fn is_written(&self) -> bool {
        self.used == 0 && self.out.is_empty()
    }

    /// Writes what may be written, and says how many bytes that were.
    pub(super) fn poll_write(
        &mut self,
        to: &mut Conn,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<u64>> {
        let mut moved = 0;
        while self.pass > 0 {
            let bytes = self.buf.unread().get(..self.pass).unwrap_or_default();
            let n = wrote(ready!(Pin::new(&mut *to).poll_write(cx, bytes)))?;
            self.buf.consume(n);
            self.pass -= n;
            self.used -= n;
            moved += n as u64;
            self.dirty = true;
        }
        self.buf.consume(self.used);
        self.used = 0;
        while self.written < self.out.len() {
            let bytes = self.out.get(self.written..).unwrap_or_default();
            let n = wrote(ready!(Pin::new(&mut *to).poll_write(cx, bytes)))?;
            self.written += n;
            moved += n as u64;
            self.dirty = true;
        }
        self.written = 0;
        self.out.clear();
        self.out.shrink_to(MAX_KEPT);
        Poll::Ready(Ok(moved))
    }

    /// Forgets what was to be written.
    pub(super) fn discard(&mut self) {
        self.buf.consume(self.used);
        (self.pass, self.used, self.written) = (0, 0, 0);
        self.out = Vec::new();
    }

    /// Before waiting for more: TLS may hold records back until it is flushed.
    pub(super) fn poll_flush(
        &mut self,
        to: &mut Conn,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if self.dirty {
            ready!(Pin::new(to).poll_flush(cx))?;
            self.dirty = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Reads once; 0 is the end of the source.
    pub(super) fn poll_read(
        &mut self,
        from: &mut Conn,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if self.buf.is_full() {
            // Bytes that wait for more are never this many, but the first buffer may be small.
            self.buf.grow(self.buf.len() + SIZE);
        }
        let n = ready!(self.buf.poll_fill(from, cx))?;
        self.unsorted |= n > 0;
        self.ended |= n == 0;
        Poll::Ready(Ok(n))
    }

    /// Passes the end on, once.
    pub(super) fn poll_shut(
        &mut self,
        to: &mut Conn,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.shut {
            ready!(Pin::new(to).poll_shutdown(cx))?;
            self.shut = true;
        }
        Poll::Ready(Ok(()))
    }
}

pub(super) fn wrote(result: io::Result<usize>) -> io::Result<usize> {
    match result {
        Ok(0) => Err(io::ErrorKind::WriteZero.into()),
        result => result,
    }
}
