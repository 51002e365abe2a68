//! One copy between the data path that writes it and the lane that carries it.

use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use http::HeaderMap;
use tokio::sync::{Notify, mpsc};

use crate::proxy::context::PortContext;
use crate::proxy::wiretap::speech::Speech;
use crate::telemetry::metrics::{CopyEnd, Label as _};
use crate::telemetry::rate_limit::limited;
use crate::upstream::copy_memory::CopiedBytes;
use traffic_core::routing::Intercept;
use traffic_proto::clock::now_unix;

/// Bytes that wait in one copy; one that falls further behind is dropped.
pub const MAX_COPY_BYTES_WAITING: usize = 1024 * 1024;
/// Pieces that wait in one copy.
const MAX_PIECES: usize = 256;

const OPEN: u8 = 0;
const COMPLETE: u8 = 1;
const OVER: u8 = 2;

/// The end of a copy at which the data path writes.
#[derive(Debug)]
pub(super) struct CopyWriter {
    pieces: mpsc::Sender<CopiedBytes>,
    shared: Arc<Shared>,
}

/// The end of a copy from which a lane reads.
#[derive(Debug)]
pub(super) struct CopyReader {
    pub(super) speech: Speech,
    pub(super) pieces: mpsc::Receiver<CopiedBytes>,
    /// Memory of an HTTP/2 head; none if there was no room for it.
    head: Option<CopiedBytes>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    wiretap: Arc<Intercept>,
    port: Arc<PortContext>,
    state: AtomicU8,
    /// Bytes written and not yet taken.
    waiting: AtomicUsize,
    given_up: Notify,
    trailers: OnceLock<HeaderMap>,
}

/// Opens a copy for `wiretap`.
pub(super) fn pair(
    wiretap: &Arc<Intercept>,
    speech: Speech,
    port: &Arc<PortContext>,
) -> (CopyWriter, CopyReader) {
    let (tx, pieces) = mpsc::channel(MAX_PIECES);
    let shared = Arc::new(Shared {
        wiretap: Arc::clone(wiretap),
        port: Arc::clone(port),
        state: AtomicU8::new(OPEN),
        waiting: AtomicUsize::new(0),
        given_up: Notify::new(),
        trailers: OnceLock::new(),
    });
    let size = match &speech {
        Speech::Http2(head) => head.size,
        Speech::Http1 { .. } | Speech::Unread => 0,
    };
    let reader = CopyReader {
        head: CopiedBytes::reserve(size, &wiretap.stats),
        speech,
        pieces,
        shared: Arc::clone(&shared),
    };
    (CopyWriter { pieces: tx, shared }, reader)
}

impl CopyWriter {
    /// Appends a piece; false if the copy does not go on.
    pub(super) fn push(&mut self, piece: Bytes) -> bool {
        let length = piece.len();
        let waiting = self.shared.waiting.fetch_add(length, Ordering::Relaxed) + length;
        let admitted = if waiting > MAX_COPY_BYTES_WAITING {
            Err(CopyEnd::Slow)
        } else {
            let admitted = CopiedBytes::admit(piece, &self.shared.wiretap.stats);
            admitted.ok_or(CopyEnd::Memory)
        };
        // A lane that has gone has counted the end already.
        let sent = admitted.and_then(|p| self.pieces.try_send(p).map_err(|_| CopyEnd::Slow));
        if let Err(why) = sent {
            self.end(why);
        }
        sent.is_ok()
    }

    /// Completes the copy: its request has no more bytes.
    pub(super) fn finish(self) {
        let state = &self.shared.state;
        let (then, otherwise) = (Ordering::AcqRel, Ordering::Relaxed);
        let _ = state.compare_exchange(OPEN, COMPLETE, then, otherwise);
    }

    /// Keeps trailers for the end.
    pub(super) fn put_trailers(&self, trailers: HeaderMap) {
        let _ = self.shared.trailers.set(trailers);
    }

    /// Ends a copy that cannot begin.
    pub(super) fn give_up(self, why: CopyEnd) {
        self.end(why);
    }

    /// Ends the copy, and has its lane notice at once.
    fn end(&self, why: CopyEnd) {
        self.shared.end(why);
        self.shared.given_up.notify_one();
    }
}

impl Drop for CopyWriter {
    /// Ends a copy that is not complete.
    fn drop(&mut self) {
        if self.shared.state.load(Ordering::Acquire) == OPEN {
            self.end(CopyEnd::Broken);
        }
    }
}

impl CopyReader {
    /// Returns true if all of it was written, so that its end is the request's.
    pub(super) fn is_complete(&self) -> bool {
        self.shared.state.load(Ordering::Acquire) == COMPLETE
    }

    /// Returns true if there was room for its head.
    pub(super) fn holds_head(&self) -> bool {
        self.head.is_some()
    }

    /// The trailers of a complete HTTP/2 request.
    pub(super) fn trailers(&self) -> Option<&HeaderMap> {
        self.shared.trailers.get()
    }

    /// Notes that `n` bytes have left the queue.
    pub(super) fn took(&self, n: usize) {
        self.shared.waiting.fetch_sub(n, Ordering::Relaxed);
    }

    /// Ends the copy; what was counted before stays.
    pub(super) fn end(&self, how: CopyEnd) {
        self.shared.end(how);
    }

    /// A future that resolves when the writer gives the copy up.
    pub(super) fn given_up(&self) -> impl Future<Output = ()> + use<> {
        let shared = Arc::clone(&self.shared);
        async move { shared.given_up.notified().await }
    }
}

impl Drop for CopyReader {
    fn drop(&mut self) {
        self.shared.end(CopyEnd::Lost);
    }
}

impl Shared {
    /// Counts the end, once.
    fn end(&self, how: CopyEnd) {
        if self.state.swap(OVER, Ordering::AcqRel) == OVER {
            return;
        }
        let metrics = &self.port.metrics;
        metrics.copies.at(how).inc();
        if !how.is_dropped() {
            return;
        }
        let stats = &self.wiretap.stats;
        stats.copies_dropped.fetch_add(1, Ordering::Relaxed);
        if matches!(how, CopyEnd::Slow | CopyEnd::Memory) {
            stats.copy_pause.begin(now_unix());
        }
        limited!(
            metrics.lines.copies, info, port = self.port.container_port,
            wiretap = %self.wiretap.id, reason = how.label(),
            "a copy for a wiretap was dropped; its request is not affected"
        );
    }
}
