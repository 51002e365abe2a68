//! Relay mode: what one side sent is written to the other as it is, one read and one write at a
//! time, with a walk over the frame headers in between that counts requests and knows which streams
//! are open. It is a loop of its own, beside the crate's general relay, because frames of ours may
//! have to be put between the app's.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::AsyncWrite;
use tokio::sync::watch;

use crate::io::buffers::Buf;
use crate::io::conn::Conn;
use crate::outcome::Ended;
use crate::proxy::context::ConnContext;
use crate::proxy::http2::relay::goaway::{Outgoing, Parting};
use crate::telemetry::metrics::{Limit, PortMetrics};
use traffic_core::http2::frames;
use traffic_core::http2::frames::{FrameHeader, FrameScanner, HEAD, Next, OpenStreams, kind};

/// How long the caller may take to close once all is said, so that closing does not turn into a
/// reset that destroys what it has not read yet.
const LINGER: Duration = Duration::from_secs(2);

/// Relays until both sides have closed, or until all streams have ended after a change of rules (or
/// a drain) asked the caller to leave.
pub(crate) async fn relay(
    down: Conn,
    first: Buf,
    app: Conn,
    said: Buf,
    mut changes: watch::Receiver<u64>,
    lane: &ConnContext,
) -> Ended {
    let mut pair = FrameRelay::new(down, first, app, said, &lane.port.metrics);
    loop {
        let staying = pair.parting.is_none();
        tokio::select! {
            biased;
            done = poll_fn(|cx| pair.poll(cx)) => return pair.finish(done).await,
            changed = changes.changed(), if staying => {
                if changed.is_err() || lane.port.routes.load().needs_requests() {
                    pair.part();
                }
            }
            () = lane.port.drain.draining(), if staying => pair.part(),
        }
    }
}

/// How relaying ended.
enum Done {
    /// Both sides have closed.
    Closed,
    /// Every stream has ended and the caller knows that it has to leave.
    Parted,
    /// The caller's socket failed.
    CallerBroke,
    /// The app's socket failed.
    AppBroke,
    /// A caller that opens streams against GOAWAY continued an older one in a way that can no
    /// longer be relayed.
    Unruly,
}

/// One direction.
struct Direction {
    buf: Buf,
    /// Bytes at the front of `buf` that have been followed and may be written.
    sendable: usize,
    /// Bytes of ours, to be written after these and before the rest.
    patch: Outgoing,
    tracker: FrameScanner,
    /// The rest of the current frame is thrown away.
    dropping: bool,
    /// Something was written and not flushed.
    dirty: bool,
    /// The reader has seen the end.
    ended: bool,
    /// The end was passed on.
    shut: bool,
}

impl Direction {
    fn new(buf: Buf, tracker: FrameScanner) -> Self {
        Self {
            buf,
            sendable: 0,
            patch: Outgoing::NONE,
            tracker,
            dropping: false,
            dirty: false,
            ended: false,
            shut: false,
        }
    }

    fn unsorted(&self) -> &[u8] {
        self.buf.unread().get(self.sendable..).unwrap_or_default()
    }

    /// Lets the next `n` bytes through.
    fn pass(&mut self, n: usize, seen: impl FnMut(FrameHeader)) {
        let bytes = self.buf.unread().get(self.sendable..).unwrap_or_default();
        self.tracker
            .follow(bytes.get(..n).unwrap_or_default(), seen);
        self.sendable += n;
    }

    /// Takes the next `n` bytes out; only where nothing is sendable before them.
    fn take_out(&mut self, n: usize) {
        self.tracker
            .follow(self.buf.unread().get(..n).unwrap_or_default(), |_| {});
        self.buf.consume(n);
    }

    /// Writes what may be written.
    fn poll_write(&mut self, to: &mut Conn, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sendable > 0 {
            let bytes = self.buf.unread().get(..self.sendable).unwrap_or_default();
            let n = wrote(ready!(Pin::new(&mut *to).poll_write(cx, bytes)))?;
            self.buf.consume(n);
            self.sendable -= n;
            self.dirty = true;
        }
        while !self.patch.is_empty() {
            let n = wrote(ready!(
                Pin::new(&mut *to).poll_write(cx, self.patch.bytes())
            ))?;
            self.patch.consume(n);
            self.dirty = true;
        }
        Poll::Ready(Ok(()))
    }

    /// Before waiting for more: TLS may hold records back until it is flushed.
    fn poll_flush(&mut self, to: &mut Conn, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.dirty {
            ready!(Pin::new(to).poll_flush(cx))?;
            self.dirty = false;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shut(&mut self, to: &mut Conn, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.shut {
            ready!(Pin::new(to).poll_shutdown(cx))?;
            self.shut = true;
        }
        Poll::Ready(Ok(()))
    }

    fn is_quiet(&self) -> bool {
        self.buf.is_empty() && self.patch.is_empty() && !self.dirty
    }
}

fn wrote(result: io::Result<usize>) -> io::Result<usize> {
    result.and_then(|n| {
        if n == 0 {
            Err(io::ErrorKind::WriteZero.into())
        } else {
            Ok(n)
        }
    })
}

/// Both directions of a connection.
struct FrameRelay<'m> {
    down: Conn,
    app: Conn,
    /// From the caller to the app.
    up: Direction,
    /// From the app to the caller.
    back: Direction,
    book: OpenStreams,
    /// The app has sent a GOAWAY: the caller leaves by itself.
    app_parts: bool,
    /// The app takes no more bytes.
    deaf: bool,
    /// Set once the caller has to leave.
    parting: Option<Parting>,
    /// A header section was withheld from the app, so it could not understand later ones.
    withheld: bool,
    /// Credit of refused DATA, to be given back to the caller's connection window (RFC 9113 section
    /// 6.8).
    refund: u32,
    metrics: &'m PortMetrics,
}

impl<'m> FrameRelay<'m> {
    fn new(down: Conn, first: Buf, app: Conn, said: Buf, metrics: &'m PortMetrics) -> Self {
        metrics.bytes_in.add(first.len() as u64);
        metrics.bytes_out.add(said.len() as u64);
        Self {
            down,
            app,
            up: Direction::new(first, FrameScanner::client()),
            back: Direction::new(said, FrameScanner::server()),
            book: OpenStreams::default(),
            app_parts: false,
            deaf: false,
            parting: None,
            withheld: false,
            refund: 0,
            metrics,
        }
    }

    fn part(&mut self) {
        // An app that parts does so with its own last id, and its streams end with its connection.
        if !self.app_parts {
            self.parting = Some(Parting::begin(self.book.highest()));
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Done> {
        let up = if self.deaf {
            Poll::Ready(Ok(()))
        } else {
            self.poll_up(cx)
        };
        if matches!(up, Poll::Ready(Err(Done::AppBroke))) {
            // What it said before it broke still belongs to the caller.
            self.deaf = true;
        }
        let mut back = self.poll_back(cx);
        if back.is_pending() && self.goes_on_parting(cx) {
            back = self.poll_back(cx);
        }
        match (up, back) {
            (_, Poll::Ready(Err(done))) => Poll::Ready(done),
            (_, Poll::Ready(Ok(()))) if self.deaf => Poll::Ready(Done::AppBroke),
            (Poll::Ready(Err(done)), _) if !self.deaf => Poll::Ready(done),
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(Done::Closed),
            _ if self.is_over() => Poll::Ready(Done::Parted),
            _ => Poll::Pending,
        }
    }

    /// Takes the next step of parting where it is due; says whether there is something to tell the
    /// caller.
    fn goes_on_parting(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(parting) = &mut self.parting else {
            return false;
        };
        if self.book.open() == Some(0) {
            parting.idle(self.book.highest());
        }
        if parting.poll_patience(cx).is_ready() {
            parting.part(self.book.highest());
        }
        !parting.pending.is_empty()
    }

    /// Caller to app. Ready when the caller has closed and the app knows.
    fn poll_up(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Done>> {
        loop {
            ready!(self.up.poll_write(&mut self.app, cx)).map_err(|_| Done::AppBroke)?;
            if self.sort_up()? {
                continue;
            }
            ready!(self.up.poll_flush(&mut self.app, cx)).map_err(|_| Done::AppBroke)?;
            if self.up.ended {
                return self
                    .up
                    .poll_shut(&mut self.app, cx)
                    .map_err(|_| Done::AppBroke);
            }
            match ready!(self.up.buf.poll_fill(&mut self.down, cx))
                .map_err(|_| Done::CallerBroke)?
            {
                0 => self.up.ended = true,
                n => self.metrics.bytes_in.add(n as u64),
            }
        }
    }

    /// App to caller. Ready when the app has closed and the caller knows.
    fn poll_back(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Done>> {
        loop {
            ready!(self.back.poll_write(&mut self.down, cx)).map_err(|_| Done::CallerBroke)?;
            if self.sort_back() {
                continue;
            }
            ready!(self.back.poll_flush(&mut self.down, cx)).map_err(|_| Done::CallerBroke)?;
            if self.back.ended {
                return self
                    .back
                    .poll_shut(&mut self.down, cx)
                    .map_err(|_| Done::CallerBroke);
            }
            match ready!(self.back.buf.poll_fill(&mut self.app, cx)).map_err(|_| Done::AppBroke)? {
                0 => self.back.ended = true,
                n => self.metrics.bytes_out.add(n as u64),
            }
        }
    }

    /// Looks through what the caller sent; says whether something may be written or was taken out.
    fn sort_up(&mut self) -> Result<bool, Done> {
        let all = self.up.buf.len();
        if self.parting.is_none() || self.up.ended {
            let (book, mut requests) = (&mut self.book, 0);
            self.up
                .pass(all, |head| requests += u64::from(book.from_caller(head)));
            if requests > 0 {
                self.metrics.http2_relayed.add(requests);
            }
            return Ok(all > 0);
        }
        while self.sort_up_once()? {}
        self.give_back();
        Ok(self.up.sendable > 0)
    }

    /// One frame header, or the rest of something, from a caller that has to leave.
    fn sort_up_once(&mut self) -> Result<bool, Done> {
        let unsorted = self.up.unsorted();
        let nothing_before = self.up.sendable == 0;
        match self.up.tracker.peek(unsorted) {
            Next::More | Next::Rest(0) => Ok(false),
            Next::Rest(n) if self.up.dropping => {
                if nothing_before {
                    self.up.take_out(n);
                }
                Ok(nothing_before)
            }
            Next::Rest(n) => {
                self.up.pass(n, |_| {});
                Ok(true)
            }
            Next::Frame(head) => self.sort_up_frame(head, nothing_before),
        }
    }

    fn sort_up_frame(&mut self, head: FrameHeader, nothing_before: bool) -> Result<bool, Done> {
        let Some(parting) = &mut self.parting else {
            return Ok(false);
        };
        if head.kind == kind::PING && head.flags & frames::ACK != 0 && head.length == 8 {
            let Some(payload) = self.up.unsorted().get(HEAD..HEAD + 8) else {
                return Ok(false);
            };
            if parting.is_answer(payload) {
                if nothing_before {
                    parting.answered(self.book.highest());
                    self.up.take_out(HEAD + 8);
                }
                return Ok(nothing_before);
            }
        }
        if parting.refuses(head.stream) {
            if nothing_before {
                self.refuse(head);
            }
            return Ok(nothing_before);
        }
        if self.withheld && head.kind == kind::HEADERS {
            return Err(Done::Unruly);
        }
        self.up.dropping = false;
        if self.book.from_caller(head) {
            self.metrics.http2_relayed.inc();
        }
        self.up.pass(HEAD, |_| {});
        Ok(true)
    }

    /// A frame of a stream that a client must not have opened: it knows that the stream was not
    /// processed.
    fn refuse(&mut self, head: FrameHeader) {
        self.withheld |= matches!(head.kind, kind::HEADERS | kind::CONTINUATION);
        if head.kind == kind::DATA {
            self.refund = self
                .refund
                .saturating_add(head.length)
                .min(frames::MAX_STREAM);
        }
        self.up.dropping = true;
        self.up.take_out(HEAD);
    }

    fn give_back(&mut self) {
        if let Some(parting) = self
            .parting
            .as_mut()
            .filter(|p| self.refund > 0 && p.pending.is_empty())
        {
            parting.pending.push(&frames::window_update(0, self.refund));
            self.refund = 0;
        }
    }

    /// Looks through what the app sent; says whether something may be written.
    fn sort_back(&mut self) -> bool {
        let all = self.back.buf.len() - self.back.sendable;
        if self.parting.is_none() || self.back.ended {
            let (book, parts) = (&mut self.book, &mut self.app_parts);
            self.back.pass(all, |head| {
                book.from_app(head);
                *parts |= head.kind == kind::GOAWAY;
            });
            return all > 0;
        }
        while self.sort_back_once() {}
        self.back.sendable > 0 || !self.back.patch.is_empty()
    }

    /// One frame header or the rest of something towards a caller that has to leave, or a frame of
    /// ours.
    fn sort_back_once(&mut self) -> bool {
        let Some(parting) = &mut self.parting else {
            return false;
        };
        if !self.back.patch.is_empty() {
            return false;
        }
        if !parting.pending.is_empty() && self.back.tracker.at_boundary() && !self.back.ended {
            self.back.patch = parting.take_pending();
            return false;
        }
        let unsorted = self.back.unsorted();
        match self.back.tracker.peek(unsorted) {
            Next::More | Next::Rest(0) => false,
            Next::Rest(n) => {
                self.back.pass(n, |_| {});
                true
            }
            Next::Frame(head) if head.kind == kind::GOAWAY && head.length >= 8 => {
                // The ids of successive GOAWAYs must not grow, and the caller has had one of ours.
                if let (0, Some(&[a, b, c, d, e, f, g, h])) =
                    (self.back.sendable, unsorted.get(HEAD..HEAD + 8))
                {
                    let last = parting.lower(u32::from_be_bytes([a, b, c, d]) & frames::MAX_STREAM);
                    self.back.patch.push(&head.encode());
                    self.back.patch.push(&last.to_be_bytes());
                    self.back.patch.push(&[e, f, g, h]);
                    self.back.take_out(HEAD + 8);
                }
                false
            }
            Next::Frame(head) => {
                self.book.from_app(head);
                self.back.pass(HEAD, |_| {});
                true
            }
        }
    }

    /// Whether the caller has been told to leave and nothing is left to be said on either side.
    fn is_over(&self) -> bool {
        self.parting.as_ref().is_some_and(Parting::is_told)
            && self.book.open() == Some(0)
            && self.up.is_quiet()
            && self.back.is_quiet()
            && self.back.tracker.at_boundary()
    }

    async fn finish(mut self, done: Done) -> Ended {
        match done {
            Done::Closed => Ended::Clean,
            Done::Parted => {
                // A side that fails here has left already.
                let _ = poll_fn(|cx| self.up.poll_shut(&mut self.app, cx)).await;
                let _ = poll_fn(|cx| self.back.poll_shut(&mut self.down, cx)).await;
                let _ = tokio::time::timeout(LINGER, poll_fn(|cx| self.poll_until_left(cx))).await;
                Ended::Clean
            }
            Done::CallerBroke => {
                self.app.abort();
                Ended::CallerReset
            }
            Done::AppBroke => {
                self.down.abort();
                Ended::AppReset
            }
            Done::Unruly => {
                self.metrics.limits.at(Limit::Http2Flood).inc();
                self.down.abort();
                Ended::Limit
            }
        }
    }

    /// Reads and forgets what the caller still sends, until it closes.
    fn poll_until_left(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Ok(1..) = ready!(self.up.buf.poll_fill(&mut self.down, cx)) {
            let n = self.up.buf.len();
            self.up.buf.consume(n);
        }
        Poll::Ready(())
    }
}
