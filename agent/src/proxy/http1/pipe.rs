//! One direction of an exchange: bytes are read into one buffer, marked sendable by the parser that
//! follows their framing, and written on. A direction either reads or writes, so a slow reader
//! slows its sender and a direction never holds more than one buffer. Long plain stretches of a
//! body between two sockets are spliced by the kernel.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;

use crate::io::buffers::{Buf, SIZE};
use crate::io::conn::Conn;
use crate::io::eager;
use crate::io::relay::BulkDetector;
use crate::io::splice;
use crate::io::splice::SplicePipe;
use crate::telemetry::metrics::PortMetrics;
use traffic_core::http1::body::{Body, Malformed};

/// Minimum body stretch for splicing; below it, one read and one write are cheaper.
const MIN_SPLICE: u64 = 64 * 1024;

/// State of one direction.
#[derive(Debug, Default)]
pub(crate) struct Pipe {
    /// Bytes read and not yet written.
    pub(crate) buf: Buf,
    /// Number of bytes at the front of `buf` that may be written.
    sendable: usize,
    /// Body bytes held in the kernel pipe, all sendable; only while `buf` is empty.
    splice_pipe: SplicePipe,
    bulk: BulkDetector,
    /// The kernel refused to splice.
    copies_only: bool,
    /// Nothing was written yet, so the runtime may not know yet that the target is connected.
    nothing_written: bool,
    /// End of the source, if it was found while the last bytes were still to be written.
    end: Option<io::Result<()>>,
    /// Bytes were written since the last flush.
    unflushed: bool,
    /// Bytes written since they were last counted.
    uncounted: u64,
    /// Part of them that was spliced.
    spliced: u64,
}

impl Pipe {
    pub(crate) fn starting_with(buf: Buf) -> Self {
        Self {
            buf,
            nothing_written: true,
            ..Self::empty()
        }
    }

    pub(crate) fn empty() -> Self {
        Self {
            bulk: BulkDetector::assume_busy(),
            ..Self::default()
        }
    }

    /// Takes the unwritten bytes, for a relay that takes over.
    pub(crate) fn take(&mut self) -> (Buf, SplicePipe) {
        (
            std::mem::take(&mut self.buf),
            std::mem::take(&mut self.splice_pipe),
        )
    }

    /// Checks if the source has ended after its expected last message, so that the remaining bytes
    /// are sent together with the close.
    pub(crate) fn look_for_end(&mut self, from: &Conn) {
        if let (Conn::Tcp(source), None, false) = (from, &self.end, self.buf.is_full()) {
            if eager::has_ended(source) {
                self.end = Some(Ok(()));
                return;
            }
            self.end = match self.buf.fill_now(source) {
                Ok(Some(0)) => Some(Ok(())),
                Ok(_) => None,
                Err(error) => Some(Err(error)),
            };
        }
    }

    /// Returns true if [`Self::look_for_end`] found an end.
    pub(crate) fn has_ended(&self) -> bool {
        self.end.is_some()
    }

    /// Takes the end that [`Self::look_for_end`] found.
    pub(crate) fn take_end(&mut self) -> Option<io::Result<()>> {
        self.end.take()
    }

    /// Marks a head and as much of its body as has arrived as sendable.
    pub(crate) fn mark_head_sendable(
        &mut self,
        head: usize,
        body: &mut Body,
    ) -> Result<(), Malformed> {
        let rest = self.buf.unread().get(head..).unwrap_or_default();
        let sound = if body.is_done() {
            0
        } else {
            body.advance(rest)?
        };
        self.sendable = head + sound;
        Ok(())
    }

    /// Marks the buffered bytes that belong to `body` as sendable.
    pub(crate) fn mark_sendable(&mut self, body: &mut Body) -> Result<(), Malformed> {
        self.sendable = body.advance(self.buf.unread())?;
        Ok(())
    }

    /// Marks the first `len` buffered bytes as sendable.
    pub(crate) fn mark_len_sendable(&mut self, len: usize) {
        self.sendable = len;
    }

    /// Bytes that may be written.
    pub(crate) fn sendable(&self) -> &[u8] {
        self.buf.unread().get(..self.sendable).unwrap_or_default()
    }

    /// Takes back a mark of which nothing was written.
    pub(crate) fn unmark_sendable(&mut self) {
        self.sendable = 0;
    }

    /// Marks all buffered bytes as sendable.
    pub(crate) fn mark_all_sendable(&mut self) {
        self.sendable = self.buf.len();
    }

    /// Removes sendable bytes without writing them.
    pub(crate) fn discard_sendable(&mut self) {
        self.buf.consume(self.sendable);
        self.sendable = 0;
        self.unflushed = false;
    }

    /// Returns true if all sendable bytes were written and flushed.
    pub(crate) fn is_written(&self) -> bool {
        self.sendable == 0 && !self.unflushed && self.splice_pipe.held() == 0
    }

    /// Writes sendable bytes and flushes after them.
    pub(crate) fn poll_write(
        &mut self,
        to: &mut Conn,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while self.sendable > 0 {
            let bytes = self.buf.unread().get(..self.sendable).unwrap_or_default();
            // Known end and nothing behind these bytes: they can leave in one packet with the
            // close.
            let last = matches!(self.end, Some(Ok(()))) && bytes.len() == self.buf.len();
            let n = match &*to {
                // Where not all of it found room, the rest goes the usual way, and takes this with
                // it.
                Conn::Tcp(socket) if last && !self.unflushed => {
                    match eager::write_last(socket, bytes) {
                        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                            self.unflushed = true;
                            continue;
                        }
                        written => written?,
                    }
                }
                Conn::Tcp(socket) if std::mem::take(&mut self.nothing_written) => {
                    match eager::write_now(socket, bytes) {
                        Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
                        written => written?,
                    }
                }
                _ => ready!(Pin::new(&mut *to).poll_write(cx, bytes))?,
            };
            // A writer that accepts nothing would loop forever.
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.buf.consume(n);
            self.sendable -= n;
            self.uncounted += n as u64;
            self.unflushed = true;
        }
        // Only a pair of sockets ever puts bytes into the pipe, and sockets need no flush.
        while let (Conn::Tcp(sink), true) = (&*to, self.splice_pipe.held() > 0) {
            let n = ready!(self.splice_pipe.poll_drain(cx, sink))? as u64;
            self.uncounted += n;
            self.spliced += n;
        }
        if self.unflushed {
            ready!(Pin::new(to).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Reads once; a long plain stretch ahead uses a large buffer.
    pub(crate) fn poll_read(
        &mut self,
        from: &mut Conn,
        ahead: u64,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        self.buf.prefer_large(ahead > SIZE as u64);
        self.buf.poll_fill(from, cx)
    }

    /// Reads more of a body. A long plain stretch between two sockets is spliced, and `body`
    /// advanced accordingly.
    pub(crate) fn poll_read_body(
        &mut self,
        from: &mut Conn,
        to: &Conn,
        body: &mut Body,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let ahead = body.plain_ahead();
        if let (Conn::Tcp(source), Conn::Tcp(_)) = (&*from, to)
            && ahead >= MIN_SPLICE
            && self.bulk.is_busy()
            && !self.copies_only
        {
            match self.splice_pipe.poll_fill(cx, source, ahead) {
                Poll::Ready(Ok(n)) => {
                    body.pass(n as u64);
                    self.bulk.record(n);
                    return Poll::Ready(Ok(n));
                }
                Poll::Ready(Err(e)) if splice::is_refused(&e) => self.copies_only = true,
                Poll::Pending => {
                    self.splice_pipe.release();
                    return Poll::Pending;
                }
                failed => return failed,
            }
        }
        let n = ready!(self.poll_read(from, ahead, cx))?;
        // Read sizes below that say nothing about a bulk transfer.
        if ahead >= MIN_SPLICE {
            self.bulk.record(n);
        }
        Poll::Ready(Ok(n))
    }

    /// Returns the number of bytes written since the last call.
    pub(crate) fn take_written(&mut self, metrics: &PortMetrics) -> u64 {
        let spliced = std::mem::take(&mut self.spliced);
        if spliced > 0 {
            metrics.bytes_spliced.add(spliced);
            self.splice_pipe.release();
        }
        std::mem::take(&mut self.uncounted)
    }
}
