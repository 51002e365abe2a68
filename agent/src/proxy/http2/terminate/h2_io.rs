//! A connection below the `h2` library that is watched as its bytes come in: what an app's SETTINGS
//! say, that it has sent GOAWAY, and that a caller floods us with frames that carry nothing. As
//! bytes go out, what the library has no word for is put between them ([`super::asides`]).

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use crate::io::buffers::Buf;
use crate::io::conn::Conn;
use crate::proxy::http2::terminate::budget::Budget;
use crate::proxy::http2::terminate::frame_patch;
use crate::telemetry::metrics::PortMetrics;
use traffic_core::http2::frames;
use traffic_core::http2::frames::{FrameHeader, FrameScanner, HEAD, MAX_STREAM, kind};

/// What has been seen on a connection, and how it is to be closed.
#[derive(Debug)]
pub(crate) struct IoState {
    /// Dropping the connection resets it.
    pub(crate) abort: AtomicBool,
    /// The caller sends frames that carry nothing beyond what is sane; nothing more is read.
    pub(crate) flooded: AtomicBool,
    /// The peer has sent GOAWAY.
    pub(crate) parts: AtomicBool,
    /// The peer has closed its side, or the socket has failed.
    pub(crate) over: AtomicBool,
    /// The peer's first SETTINGS.
    pub(crate) greeting: OnceLock<Greeting>,
    /// The most streams at a time by the peer's latest word; [`UNSAID`] without one.
    pub(crate) streams: AtomicU64,
    /// The limit of streams that the peer is to be told; [`UNSAID`] when it has been.
    pub(crate) limit: AtomicU64,
    /// The peer is to be told to open no more streams; false again when it has been.
    pub(crate) farewell: AtomicBool,
    /// Closing waits a moment for the peer to close as well.
    pub(crate) lingers: AtomicBool,
    /// Nothing more is read for now, because the other side does not take what came.
    pub(crate) paused: AtomicBool,
    /// The peer does not take all that is written.
    pub(crate) blocked: AtomicBool,
    /// Requests wait in the library to be written.
    pub(crate) queued: AtomicBool,
    /// Bytes of heads that were sent since the peer took everything.
    pub(crate) unsent: AtomicUsize,
    /// Streams whose request came by TLS and without an authority, and is not written yet.
    secure: Mutex<Vec<u32>>,
    secures: AtomicBool,
}

/// No limit of streams was said, or is to be.
pub(crate) const UNSAID: u64 = u64::MAX;

impl Default for IoState {
    fn default() -> Self {
        Self {
            abort: AtomicBool::default(),
            flooded: AtomicBool::default(),
            parts: AtomicBool::default(),
            over: AtomicBool::default(),
            greeting: OnceLock::default(),
            streams: AtomicU64::new(UNSAID),
            limit: AtomicU64::new(UNSAID),
            farewell: AtomicBool::default(),
            lingers: AtomicBool::default(),
            paused: AtomicBool::default(),
            blocked: AtomicBool::default(),
            queued: AtomicBool::default(),
            unsent: AtomicUsize::default(),
            secure: Mutex::default(),
            secures: AtomicBool::default(),
        }
    }
}

impl IoState {
    /// The request of this stream has the scheme `https` and no authority.
    pub(crate) fn secure(&self, stream: u32) {
        self.secures.store(true, Ordering::Relaxed);
        self.ids().push(stream);
    }

    /// Whether a frame that goes out has to be changed.
    fn wants(&self, head: FrameHeader) -> bool {
        (self.limit.load(Ordering::Relaxed) != UNSAID && frame_patch::is_settings(head))
            || (head.kind == kind::HEADERS
                && self.secures.load(Ordering::Relaxed)
                && self.ids().contains(&head.stream))
    }

    /// Whether any frame that goes out may have to be changed.
    fn wants_any(&self) -> bool {
        self.limit.load(Ordering::Relaxed) != UNSAID || self.secures.load(Ordering::Relaxed)
    }

    /// What is to be sent instead of as many bytes at the front of `bytes`, where a frame begins
    /// that is wanted.
    fn instead(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let head = FrameHeader::parse(*bytes.first_chunk()?);
        if head.kind == kind::HEADERS {
            let mut ids = self.ids();
            ids.retain(|id| *id != head.stream);
            self.secures.store(!ids.is_empty(), Ordering::Relaxed);
            return frame_patch::secured(bytes);
        }
        let limit = u32::try_from(self.limit.swap(UNSAID, Ordering::Relaxed)).ok()?;
        frame_patch::limited(bytes, limit)
    }

    fn ids(&self) -> std::sync::MutexGuard<'_, Vec<u32>> {
        self.secure.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What matters to a caller of an app's first SETTINGS (RFC 9113 section 6.5.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Greeting {
    /// Streams the app serves at a time; `None` is without limit.
    pub(crate) max_streams: Option<u32>,
    /// The app takes extended CONNECT (RFC 8441 section 3).
    pub(crate) connect: bool,
}

/// Bytes of SETTINGS that are looked at; they usually have a tenth of that.
const SETTINGS_MAX: usize = 512;
/// How long closing waits for the peer.
const LINGER: Duration = Duration::from_secs(2);

pub(crate) struct InspectedIo {
    conn: Conn,
    first: Buf,
    tracker: FrameScanner,
    watch: Watch,
    /// What the library has written.
    out: FrameScanner,
    /// Bytes of ours, to be written before anything else.
    ours: Vec<u8>,
    /// Bytes that were read and looked at, and that the library gets after it has written what it
    /// has.
    held: Vec<u8>,
    lingering: Option<Pin<Box<Sleep>>>,
    /// Where the caller's bytes are counted.
    counted: Option<Arc<PortMetrics>>,
    pub(crate) signs: Arc<IoState>,
}

enum Watch {
    Caller(FloodBudget),
    Server(Option<Settings>),
}

/// SETTINGS of which the payload is still coming.
struct Settings {
    left: usize,
    seen: Vec<u8>,
}

impl InspectedIo {
    /// The caller's side; `first` was read already and includes the preface.
    pub(crate) fn caller(conn: Conn, first: Buf, metrics: Arc<PortMetrics>) -> Self {
        Self::new(
            conn,
            first,
            FrameScanner::client(),
            Watch::Caller(FloodBudget::default()),
            Some(metrics),
        )
    }

    /// The app's or a workstation's side; `first` was read already.
    pub(crate) fn server(conn: Conn, first: Buf) -> Self {
        Self::new(
            conn,
            first,
            FrameScanner::server(),
            Watch::Server(None),
            None,
        )
    }

    fn new(
        conn: Conn,
        first: Buf,
        tracker: FrameScanner,
        watch: Watch,
        counted: Option<Arc<PortMetrics>>,
    ) -> Self {
        // Whoever reads what a client sends writes what a server sends.
        let out = if matches!(watch, Watch::Caller(_)) {
            FrameScanner::server()
        } else {
            FrameScanner::client()
        };
        let (ours, held, signs) = (Vec::new(), Vec::new(), Arc::default());
        Self {
            conn,
            first,
            tracker,
            watch,
            out,
            ours,
            held,
            lingering: None,
            counted,
            signs,
        }
    }

    fn count_out(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let (Some(metrics), Poll::Ready(Ok(n))) = (&self.counted, &written) {
            metrics.bytes_out.add(*n as u64);
        }
        written
    }

    fn look(&mut self, bytes: &[u8]) {
        if let Some(metrics) = &self.counted {
            metrics.bytes_in.add(bytes.len() as u64);
        }
        let signs = &self.signs;
        match &mut self.watch {
            Watch::Caller(calm) => self.tracker.follow(bytes, |head| {
                if !calm.bears(head) {
                    signs.flooded.store(true, Ordering::Relaxed);
                }
            }),
            Watch::Server(_) => self.follow_server(bytes),
        }
    }

    fn follow_server(&mut self, mut bytes: &[u8]) {
        let Watch::Server(settings) = &mut self.watch else {
            return;
        };
        while !bytes.is_empty() {
            let (used, head) = self.tracker.step(bytes);
            let (part, rest) = bytes.split_at(used.min(bytes.len()));
            bytes = rest;
            if let Some(head) = head {
                *settings = self.signs.server_says(head);
            } else if let Some(coming) = settings {
                coming.left = coming.left.saturating_sub(part.len());
                coming
                    .seen
                    .extend(part.iter().take(SETTINGS_MAX - coming.seen.len()));
            }
            if let Some(all) = settings.take_if(|coming| coming.left == 0) {
                self.signs.told(read_settings(&all.seen));
            }
        }
    }

    /// Writes what is ours to be written.
    fn poll_ours(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.ours.is_empty() {
            let n = ready!(Pin::new(&mut self.conn).poll_write(cx, &self.ours))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.ours.drain(..n);
        }
        Poll::Ready(Ok(()))
    }

    /// Writes as the library asks, but for the frames that are to be changed.
    fn poll_write_changed(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let signs = self.signs.clone();
        let at = match frame_patch::find(&self.out, bytes, |head| signs.wants(head)) {
            0 => match signs.instead(bytes) {
                Some(ours) => {
                    let n = ours.len();
                    self.out.follow(bytes.get(..n).unwrap_or_default(), |_| {});
                    self.ours = ours;
                    if let Poll::Ready(failed @ Err(_)) = self.poll_ours(cx) {
                        return Poll::Ready(failed.map(|()| 0));
                    }
                    return Poll::Ready(Ok(n));
                }
                None => HEAD,
            },
            at => at,
        };
        let bytes = bytes.get(..at).unwrap_or(bytes);
        let n = ready!(Pin::new(&mut self.conn).poll_write(cx, bytes))?;
        self.out.follow(bytes.get(..n).unwrap_or_default(), |_| {});
        Poll::Ready(Ok(n))
    }

    fn noting(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if written.is_pending() {
            self.signs.blocked.store(true, Ordering::Relaxed);
        }
        self.count_out(written)
    }

    /// Reads and forgets until the peer has closed or its time is over: a close before that may
    /// turn into a reset, which destroys what the peer has not read yet.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let patience = self
            .lingering
            .get_or_insert_with(|| Box::pin(sleep(LINGER)));
        if patience.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let mut bytes = [0; 4096];
        loop {
            let mut bytes = ReadBuf::new(&mut bytes);
            let read = ready!(Pin::new(&mut self.conn).poll_read(cx, &mut bytes));
            if read.is_err() || bytes.filled().is_empty() {
                return Poll::Ready(());
            }
        }
    }
}

impl IoState {
    /// Takes note of a frame's header; where it begins SETTINGS, their payload is to be collected.
    fn server_says(&self, head: FrameHeader) -> Option<Settings> {
        if head.kind == kind::GOAWAY {
            self.parts.store(true, Ordering::Relaxed);
        }
        if frame_patch::is_settings(head) {
            return Some(Settings {
                left: head.length as usize,
                seen: Vec::new(),
            });
        }
        // What does not begin with SETTINGS is no HTTP/2: the `h2` library is the judge of it.
        let _ = self.greeting.get_or_init(Greeting::default);
        None
    }

    fn told(&self, settings: Greeting) {
        let _ = self.greeting.get_or_init(|| settings);
        if let Some(streams) = settings.max_streams {
            self.streams.store(streams.into(), Ordering::Relaxed);
        }
    }
}

/// Reads what matters to us of a SETTINGS frame's payload.
fn read_settings(payload: &[u8]) -> Greeting {
    let mut greeting = Greeting::default();
    for setting in payload.chunks_exact(6) {
        if let [i0, i1, v0, v1, v2, v3] = *setting {
            let value = u32::from_be_bytes([v0, v1, v2, v3]);
            match u16::from_be_bytes([i0, i1]) {
                frame_patch::MAX_STREAMS => greeting.max_streams = Some(value),
                0x8 => greeting.connect = value == 1,
                _ => {}
            }
        }
    }
    greeting
}

/// A budget of frames that carry no request and no data: pings, settings, priorities, resets, empty
/// DATA, header continuation and unknown ones. Each frame that carries something earns two, and
/// time earns some, so no client that works runs out.
#[derive(Debug)]
struct FloodBudget(Budget);

/// Frames without content that may come at once.
const CALM_MOST: u32 = 10_000;
/// Frames without content that time earns per second, far above what keep-alive and bandwidth
/// probing need.
const CALM_PER_SECOND: u32 = 1_000;

impl Default for FloodBudget {
    fn default() -> Self {
        Self(Budget::new(CALM_MOST, CALM_PER_SECOND))
    }
}

impl FloodBudget {
    fn bears(&mut self, head: FrameHeader) -> bool {
        match head.kind {
            kind::HEADERS => self.0.earn(2),
            kind::DATA if head.length > 0 || head.flags & frames::END_STREAM != 0 => self.0.earn(2),
            // Credit follows the data we send.
            kind::WINDOW_UPDATE => {}
            // Answers to frames of ours.
            kind::SETTINGS | kind::PING if head.flags & frames::ACK != 0 => {}
            _ => return self.0.spend(),
        }
        true
    }
}

impl Drop for InspectedIo {
    fn drop(&mut self) {
        if self.signs.abort.load(Ordering::Relaxed) {
            self.conn.abort();
        }
    }
}

impl AsyncRead for InspectedIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.signs.flooded.load(Ordering::Relaxed) {
            // Whoever drives the connection finds the sign and says so to the caller.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if this.signs.paused.load(Ordering::Relaxed) {
            // Whoever drives the connection drives the other side as well, and asks again when that
            // has moved.
            return Poll::Pending;
        }
        if !this.held.is_empty() {
            let n = this.held.len().min(buf.remaining());
            buf.put_slice(&this.held.drain(..n).collect::<Vec<_>>());
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        if this.first.is_empty() {
            let read = ready!(Pin::new(&mut this.conn).poll_read(cx, buf));
            if read.is_err() || buf.filled().len() == before {
                this.signs.over.store(true, Ordering::Relaxed);
            }
            read?;
        } else {
            let unread = this.first.unread();
            let n = unread.len().min(buf.remaining());
            buf.put_slice(unread.get(..n).unwrap_or_default());
            this.first.consume(n);
        }
        let parted = this.signs.parts.load(Ordering::Relaxed);
        this.look(buf.filled().get(before..).unwrap_or_default());
        let parts = !parted && this.signs.parts.load(Ordering::Relaxed);
        if parts && this.signs.queued.load(Ordering::Relaxed) {
            // A server that parts asks with a PING whether more streams come, and the library would
            // answer ahead of the requests that it has queued. They are written first.
            this.held = buf.filled().get(before..).unwrap_or_default().to_vec();
            buf.set_filled(before);
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for InspectedIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // The library flushes when it has written whole frames, and whole header sections, and
        // nothing else.
        if this.signs.farewell.load(Ordering::Relaxed) && this.out.at_boundary() {
            this.ours.extend_from_slice(&frames::goaway(MAX_STREAM, 0));
            this.signs.farewell.store(false, Ordering::Relaxed);
        }
        if this.poll_ours(cx)?.is_pending() {
            this.signs.blocked.store(true, Ordering::Relaxed);
            return Poll::Pending;
        }
        let flushed = Pin::new(&mut this.conn).poll_flush(cx);
        this.signs
            .blocked
            .store(flushed.is_pending(), Ordering::Relaxed);
        if flushed.is_ready() {
            this.signs.unsent.store(0, Ordering::Relaxed);
            this.signs.queued.store(false, Ordering::Relaxed);
        }
        flushed
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.lingering.is_none() {
            ready!(this.poll_ours(cx))?;
            ready!(Pin::new(&mut this.conn).poll_shutdown(cx))?;
        }
        if this.signs.lingers.load(Ordering::Relaxed) {
            ready!(this.poll_linger(cx));
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.poll_ours(cx)?.is_pending() {
            return this.noting(Poll::Pending);
        }
        if this.signs.wants_any() {
            let first = bufs
                .iter()
                .find(|buf| !buf.is_empty())
                .map(|buf| &**buf)
                .unwrap_or_default();
            let written = this.poll_write_changed(cx, first);
            return this.noting(written);
        }
        let written = match bufs {
            [one] => Pin::new(&mut this.conn).poll_write(cx, one),
            _ => Pin::new(&mut this.conn).poll_write_vectored(cx, bufs),
        };
        if let Poll::Ready(Ok(mut left)) = written {
            for buf in bufs {
                let part = buf.get(..left.min(buf.len())).unwrap_or_default();
                this.out.follow(part, |_| {});
                left -= part.len();
            }
        }
        this.noting(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.conn.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(entries: &[(u16, u32)]) -> Vec<u8> {
        let length = entries.len() as u32 * 6;
        let mut bytes = FrameHeader {
            length,
            kind: kind::SETTINGS,
            flags: 0,
            stream: 0,
        }
        .encode()
        .to_vec();
        for (id, value) in entries {
            bytes.extend_from_slice(&id.to_be_bytes());
            bytes.extend_from_slice(&value.to_be_bytes());
        }
        bytes
    }

    fn app(end: tokio::io::DuplexStream) -> InspectedIo {
        struct Pipe(tokio::io::DuplexStream);
        impl AsyncRead for Pipe {
            fn poll_read(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buf: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                Pin::new(&mut self.get_mut().0).poll_read(cx, buf)
            }
        }
        impl AsyncWrite for Pipe {
            fn poll_write(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buf: &[u8],
            ) -> Poll<io::Result<usize>> {
                Pin::new(&mut self.get_mut().0).poll_write(cx, buf)
            }
            fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                Pin::new(&mut self.get_mut().0).poll_flush(cx)
            }
            fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                Pin::new(&mut self.get_mut().0).poll_shutdown(cx)
            }
        }
        impl crate::io::conn::Io for Pipe {
            fn abort(&mut self) {}
        }
        InspectedIo::server(Conn::Other(Box::new(Pipe(end))), Buf::default())
    }

    #[tokio::test]
    async fn settings_are_read_once_they_are_complete_and_later_limits_are_followed() {
        let (_far, near) = tokio::io::duplex(1);
        let mut watched = app(near);
        let bytes = settings(&[(3, 100), (4, 65_535), (8, 1)]);
        for byte in &bytes[..bytes.len() - 1] {
            watched.look(&[*byte]);
            assert_eq!(watched.signs.greeting.get(), None);
        }
        watched.look(&bytes[bytes.len() - 1..]);
        assert_eq!(
            watched.signs.greeting.get(),
            Some(&Greeting {
                max_streams: Some(100),
                connect: true
            })
        );
        watched.look(&[settings(&[]), settings(&[(3, 7)])].concat());
        assert_eq!(watched.signs.greeting.get().unwrap().max_streams, Some(100));
        assert_eq!(watched.signs.streams.load(Ordering::Relaxed), 7);
    }

    #[tokio::test]
    async fn what_begins_with_no_settings_says_nothing() {
        let (_far, near) = tokio::io::duplex(1);
        let mut watched = app(near);
        watched.look(b"HTTP/1.1 400 Bad Request");
        assert_eq!(watched.signs.greeting.get(), Some(&Greeting::default()));
    }

    #[test]
    fn frames_without_content_run_out_unless_others_carry_something() {
        let ping = FrameHeader {
            length: 8,
            kind: kind::PING,
            flags: 0,
            stream: 0,
        };
        let headers = FrameHeader {
            length: 8,
            kind: kind::HEADERS,
            flags: frames::END_HEADERS,
            stream: 1,
        };
        let mut calm = FloodBudget::default();
        assert!((0..CALM_MOST).all(|_| calm.bears(ping)));
        let borne = (0..CALM_MOST).take_while(|_| calm.bears(ping)).count();
        assert!(borne < CALM_MOST as usize / 2, "{borne} beyond the budget");
        let mut calm = FloodBudget::default();
        assert!((0..10 * CALM_MOST).all(|_| calm.bears(ping) && calm.bears(headers)));
    }
}
