//! One direction of an exchange: bytes are read into one buffer, cleared for forwarding by whoever follows their
//! framing, and written on. At any time a direction either reads or writes, so a slow reader slows its sender and a
//! direction never holds more than one buffer.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;

use super::body::{Body, Malformed};
use crate::buffers::{Buf, SIZE};
use crate::conn::Conn;
use crate::metrics::Counter;

/// One direction.
#[derive(Debug, Default)]
pub(super) struct Flow {
    /// What has been read and not yet written.
    pub(super) buf: Buf,
    /// How many bytes at the front of `buf` may be written.
    cleared: usize,
    /// Something was written since the last flush.
    dirty: bool,
    /// Bytes written since they were last counted.
    uncounted: u64,
}

impl Flow {
    pub(super) fn starting_with(buf: Buf) -> Self {
        Self { buf, ..Self::default() }
    }

    /// Clears a head and as much of its body as is there.
    pub(super) fn clear_head(&mut self, head: usize, body: &mut Body) -> Result<(), Malformed> {
        let rest = self.buf.unread().get(head..).unwrap_or_default();
        let sound = if body.is_done() { 0 } else { body.advance(rest)? };
        self.cleared = head + sound;
        Ok(())
    }

    /// Clears what belongs to `body` of the bytes that are there.
    pub(super) fn clear(&mut self, body: &mut Body) -> Result<(), Malformed> {
        self.cleared = body.advance(self.buf.unread())?;
        Ok(())
    }

    /// Clears everything that is there.
    pub(super) fn clear_all(&mut self) {
        self.cleared = self.buf.len();
    }

    /// Takes away what is cleared without writing it.
    pub(super) fn discard_cleared(&mut self) {
        self.buf.consume(self.cleared);
        self.cleared = 0;
    }

    /// Whether everything cleared has been written and flushed.
    pub(super) fn is_written(&self) -> bool {
        self.cleared == 0 && !self.dirty
    }

    /// Writes what is cleared and flushes behind it.
    pub(super) fn poll_write(&mut self, to: &mut Conn, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.cleared > 0 {
            let bytes = self.buf.unread().get(..self.cleared).unwrap_or_default();
            let n = ready!(Pin::new(&mut *to).poll_write(cx, bytes))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.buf.consume(n);
            self.cleared -= n;
            self.uncounted += n as u64;
            self.dirty = true;
        }
        if self.dirty {
            ready!(Pin::new(to).poll_flush(cx))?;
            self.dirty = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Reads once; a long plain stretch ahead asks for a large buffer.
    pub(super) fn poll_read(&mut self, from: &mut Conn, ahead: u64, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.buf.prefer_large(ahead > SIZE as u64);
        self.buf.poll_fill(from, cx)
    }

    /// Adds what was written since the last call, and says how much it was.
    pub(super) fn count(&mut self, bytes: &Counter) -> u64 {
        let n = std::mem::take(&mut self.uncounted);
        if n > 0 {
            bytes.add(n);
        }
        n
    }
}
