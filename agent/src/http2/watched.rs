//! A connection below the `h2` library that is watched as its bytes come in: what an app's first SETTINGS say, that
//! it has sent GOAWAY, and that a caller floods us with frames that carry nothing.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::budget::Budget;
use super::frames::{self, HEAD, Head, Tracker, kind};
use crate::buffers::Buf;
use crate::conn::Conn;
use crate::metrics::PortMetrics;

/// What has been seen on a connection, and how it is to be closed.
#[derive(Debug, Default)]
pub(super) struct Signs {
    /// Dropping the connection resets it.
    pub(super) abort: AtomicBool,
    /// The caller sends frames that carry nothing beyond what is sane; nothing more is read.
    pub(super) flooded: AtomicBool,
    /// The peer has sent GOAWAY.
    pub(super) parts: AtomicBool,
    /// The peer has closed its side, or the socket has failed.
    pub(super) over: AtomicBool,
    /// The peer's first SETTINGS.
    pub(super) greeting: OnceLock<Greeting>,
}

/// What matters to a caller of an app's first SETTINGS (RFC 9113 section 6.5.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Greeting {
    /// Streams the app serves at a time; `None` is without limit.
    pub(super) max_streams: Option<u32>,
    /// The app takes extended CONNECT (RFC 8441 section 3).
    pub(super) connect: bool,
}

/// Bytes of an app's first frame that are looked at; SETTINGS are usually a tenth of it.
const GREETING_MAX: usize = 512;

pub(super) struct Watched {
    conn: Conn,
    first: Buf,
    tracker: Tracker,
    watch: Watch,
    /// Where the caller's bytes are counted.
    counted: Option<Arc<PortMetrics>>,
    pub(super) signs: Arc<Signs>,
}

enum Watch {
    Caller(Calm),
    Greeting(Vec<u8>),
    Peer,
}

impl Watched {
    /// The caller's side; `first` was read already and includes the preface.
    pub(super) fn caller(conn: Conn, first: Buf, metrics: Arc<PortMetrics>) -> Self {
        Self::new(conn, first, Tracker::client(), Watch::Caller(Calm::default()), Some(metrics))
    }

    /// The app's or a workstation's side; `first` was read already.
    pub(super) fn server(conn: Conn, first: Buf) -> Self {
        Self::new(conn, first, Tracker::server(), Watch::Greeting(Vec::new()), None)
    }

    fn new(conn: Conn, first: Buf, tracker: Tracker, watch: Watch, counted: Option<Arc<PortMetrics>>) -> Self {
        Self { conn, first, tracker, watch, counted, signs: Arc::default() }
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
            Watch::Greeting(seen) => {
                seen.extend(bytes.iter().take(GREETING_MAX - seen.len()));
                if let Some(greeting) = read_greeting(seen) {
                    // Only this writes it.
                    let _ = signs.greeting.set(greeting);
                    self.watch = Watch::Peer;
                }
                self.follow_server(bytes);
            }
            Watch::Peer => self.follow_server(bytes),
        }
    }

    fn follow_server(&mut self, bytes: &[u8]) {
        let signs = &self.signs;
        self.tracker.follow(bytes, |head| {
            if head.kind == kind::GOAWAY {
                signs.parts.store(true, Ordering::Relaxed);
            }
        });
    }
}

/// Reads the SETTINGS frame at the front; `None` while it is not complete. What is no SETTINGS reads as an empty one:
/// the `h2` library is the judge of it.
fn read_greeting(bytes: &[u8]) -> Option<Greeting> {
    let head = Head::parse(*bytes.first_chunk()?);
    if head.kind != kind::SETTINGS {
        return Some(Greeting::default());
    }
    let length = (head.length as usize).min(GREETING_MAX - HEAD);
    let payload = bytes.get(HEAD..HEAD + length)?;
    let mut greeting = Greeting::default();
    for setting in payload.chunks_exact(6) {
        if let [i0, i1, v0, v1, v2, v3] = *setting {
            let value = u32::from_be_bytes([v0, v1, v2, v3]);
            match u16::from_be_bytes([i0, i1]) {
                0x3 => greeting.max_streams = Some(value),
                0x8 => greeting.connect = value == 1,
                _ => {}
            }
        }
    }
    Some(greeting)
}

/// A budget of frames that carry no request and no data: pings, settings, priorities, resets, empty DATA, header
/// continuation and unknown ones. Each frame that carries something earns two, and time earns some, so no client
/// that works runs out.
#[derive(Debug)]
struct Calm(Budget);

/// Frames without content that may come at once.
const CALM_MOST: u32 = 10_000;
/// Frames without content that time earns per second, far above what keep-alive and bandwidth probing need.
const CALM_PER_SECOND: u32 = 1_000;

impl Default for Calm {
    fn default() -> Self {
        Self(Budget::new(CALM_MOST, CALM_PER_SECOND))
    }
}

impl Calm {
    fn bears(&mut self, head: Head) -> bool {
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

impl Drop for Watched {
    fn drop(&mut self) {
        if self.signs.abort.load(Ordering::Relaxed) {
            self.conn.abort();
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.signs.flooded.load(Ordering::Relaxed) {
            // Whoever drives the connection finds the sign and says so to the caller.
            cx.waker().wake_by_ref();
            return Poll::Pending;
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
        this.look(buf.filled().get(before..).unwrap_or_default());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.conn).poll_write(cx, buf);
        this.count_out(written)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().conn).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().conn).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.conn).poll_write_vectored(cx, bufs);
        this.count_out(written)
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
        let mut bytes = Head { length, kind: kind::SETTINGS, flags: 0, stream: 0 }.encode().to_vec();
        for (id, value) in entries {
            bytes.extend_from_slice(&id.to_be_bytes());
            bytes.extend_from_slice(&value.to_be_bytes());
        }
        bytes
    }

    #[test]
    fn a_greeting_is_read_once_it_is_complete_and_never_earlier() {
        let bytes = settings(&[(3, 100), (4, 65_535), (8, 1)]);
        for cut in 0..bytes.len() {
            assert_eq!(read_greeting(&bytes[..cut]), None, "at {cut}");
        }
        assert_eq!(read_greeting(&bytes), Some(Greeting { max_streams: Some(100), connect: true }));
        assert_eq!(read_greeting(b"HTTP/1.1 400 Bad Request"), Some(Greeting::default()));
    }

    #[test]
    fn frames_without_content_run_out_unless_others_carry_something() {
        let ping = Head { length: 8, kind: kind::PING, flags: 0, stream: 0 };
        let headers = Head { length: 8, kind: kind::HEADERS, flags: frames::END_HEADERS, stream: 1 };
        let mut calm = Calm::default();
        assert!((0..CALM_MOST).all(|_| calm.bears(ping)));
        let borne = (0..CALM_MOST).take_while(|_| calm.bears(ping)).count();
        assert!(borne < CALM_MOST as usize / 2, "{borne} beyond the budget");
        let mut calm = Calm::default();
        assert!((0..10 * CALM_MOST).all(|_| calm.bears(ping) && calm.bears(headers)));
    }
}
