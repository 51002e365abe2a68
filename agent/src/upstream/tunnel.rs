//! A tunnel as a byte stream: data in `Normal` messages, half-close as the role demands, Disconnect
//! for a reset. Errors of a broken peer end only its own stream. One message holds at most
//! [`CHUNK`] bytes and the queue below is bounded, so a workstation that does not read slows its
//! sender.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, timeout, timeout_at};
use traffic_proto::tunnel::frame::Frame;
use traffic_proto::tunnel::{self, Message};

use crate::io::conn::Io;
use crate::telemetry::metrics::{FailOpen, PortMetrics};
use crate::upstream::copy_memory::CopiedBytes;
use crate::upstream::liveness::Liveness;
use crate::upstream::{Gone, Messages, Role, TunnelError, TunnelIo};
use traffic_core::routing::dial_memory::Attempt;
use traffic_core::routing::{Intercept, Stats};

/// Maximum of data in one message: large enough for a small cost per byte, small enough that a full
/// queue stays a few MiB.
pub const CHUNK: usize = 64 * 1024;
/// Messages without data handled in one turn before other tasks run.
const MAX_IGNORED_IN_A_ROW: u32 = 64;
/// Time a call is kept after its tunnel was dropped, for data still queued towards a slow
/// workstation.
const LINGER_TIMEOUT: Duration = Duration::from_secs(60);

/// The reason of a tunnel whose dial was rejected.
const REJECTED: &str = "the workstation could not connect";

/// An open tunnel as a byte stream, or (for UDP) as a stream of datagrams.
pub struct Tunnel {
    /// None when it is left to the task that waits for the end of the call.
    messages: Option<Box<dyn Messages>>,
    /// The peer has ended the call, or it broke.
    call_over: bool,
    role: Role,
    unread: Bytes,
    reading: Reading,
    dialled: bool,
    /// Messages are datagrams, whose borders and emptiness mean something.
    datagrams: bool,
    outgoing_over: bool,
    counted: Option<Counted>,
    /// It carries copies for this wiretap, whose memory is bounded.
    copies: Option<Arc<Stats>>,
    /// The dial whose outcome is to be remembered.
    attempt: Option<(Attempt, Arc<Intercept>)>,
    liveness: Liveness,
}

/// Counts a tunnel as open until dropped.
struct Counted(Arc<PortMetrics>);

impl Counted {
    fn new(metrics: &Arc<PortMetrics>) -> Self {
        metrics.tunnels_active.add(1);
        Self(metrics.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.tunnels_active.add(-1);
    }
}

enum Reading {
    Open,
    Over,
    Failed(io::ErrorKind, &'static str),
}

/// Meaning of the peer's next message.
enum Event {
    Data(Bytes),
    Dialled,
    End,
}

/// Reason a workstation's dial failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DialFailure {
    /// The workstation could not connect.
    #[error("the workstation could not connect to the intercept's target")]
    Rejected,
    /// The stream ended or broke without an answer.
    #[error("the tunnel ended before the workstation had connected: {0}")]
    Lost(String),
    /// The answer did not arrive in time.
    #[error("the workstation did not connect in time")]
    Timeout,
}

impl DialFailure {
    /// Returns the fail-open label of this failure.
    #[must_use]
    pub fn fail_open(&self) -> FailOpen {
        match self {
            Self::Rejected => FailOpen::DialRejected,
            Self::Lost(_) => FailOpen::Lost,
            Self::Timeout => FailOpen::DialTimeout,
        }
    }
}

/// The reason of a rejected dial, for the developer.
pub(crate) fn nothing_listens(intercept: &Intercept) -> String {
    let (host, port) = (&intercept.target_host, intercept.target_port);
    format!("nothing listens on {host}:{port}")
}

impl Tunnel {
    /// Wraps an open stream.
    #[must_use]
    pub fn new(io: TunnelIo) -> Self {
        Self {
            messages: Some(io.messages),
            call_over: false,
            role: io.role,
            unread: Bytes::new(),
            reading: Reading::Open,
            dialled: false,
            datagrams: false,
            outgoing_over: false,
            counted: None,
            copies: None,
            attempt: None,
            liveness: Liveness::default(),
        }
    }

    /// Counts the tunnel as open until dropped.
    pub(crate) fn counted(mut self, metrics: &Arc<PortMetrics>) -> Self {
        self.counted = Some(Counted::new(metrics));
        self
    }

    /// Counts what waits in it as memory of copies if it is a wiretap's.
    pub(crate) fn bounded(mut self, intercept: &Intercept) -> Self {
        self.copies = intercept.wiretap.then(|| Arc::clone(&intercept.stats));
        self
    }

    /// Has the dial's outcome remembered, and what becomes of the tunnel.
    pub(crate) fn remembered(
        mut self,
        intercept: &Arc<Intercept>,
        attempt: Option<Attempt>,
    ) -> Self {
        self.attempt = attempt.map(|attempt| (attempt, Arc::clone(intercept)));
        self.liveness.of(intercept, self.role == Role::Server);
        self
    }

    pub(crate) fn is_through_manager(&self) -> bool {
        self.role == Role::Caller
    }

    pub(crate) fn is_dialled(&self) -> bool {
        self.dialled
    }

    /// Bounds the time until the dial is answered, where the manager stands between: bytes may be
    /// sent before, and it says late that its workstation is gone.
    pub(crate) fn dialled_by(mut self, deadline: Instant) -> Self {
        if self.role == Role::Caller && !self.dialled {
            self.liveness.dialled_by(deadline);
        }
        self
    }

    /// Waits until the workstation has connected; data from it means the same and stays to be read.
    ///
    /// # Errors
    /// The dial failed, the stream ended or broke, or `deadline` passed.
    pub async fn await_dial(&mut self, deadline: Instant) -> Result<(), DialFailure> {
        let answered = poll_fn(|cx| {
            while !self.dialled && self.unread.is_empty() {
                match ready!(self.poll_event(cx)) {
                    Ok(Event::Data(data)) => self.unread = data,
                    Ok(Event::Dialled) => {}
                    Ok(Event::End) => {
                        return Poll::Ready(Err(DialFailure::Lost(
                            "closed by the peer".to_owned(),
                        )));
                    }
                    Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                        return Poll::Ready(Err(DialFailure::Rejected));
                    }
                    Err(e) => return Poll::Ready(Err(DialFailure::Lost(e.to_string()))),
                }
            }
            Poll::Ready(Ok(()))
        });
        timeout_at(deadline, answered)
            .await
            .unwrap_or(Err(DialFailure::Timeout))
    }

    /// Says ahead of the first datagram that a rejection behind it is understood; peers that do not
    /// know that ignore it.
    pub(crate) fn announce_rejections(&mut self) {
        if let Some(messages) = &mut self.messages {
            messages.try_send(Frame::from(&Message::KeepAlive));
        }
    }

    /// Returns true if the peer has said so.
    pub(crate) fn understands_rejections(&self) -> bool {
        self.liveness.has_announced()
    }

    /// Ends the tunnel by a rejection, however much was carried before.
    pub(crate) fn reject(&mut self) {
        self.outgoing_over = true;
        if let Some(messages) = &mut self.messages {
            messages.end(Some(Frame::from(&Message::DialReject)));
        }
    }

    /// Sends one datagram, or drops it (and returns `false`) if the queue is full, the tunnel is
    /// over, or it is too large for a datagram.
    pub fn send_datagram(&mut self, datagram: &[u8]) -> bool {
        // A larger message would be refused by the peer and end the whole flow.
        if datagram.len() > tunnel::MAX_DATAGRAM || self.outgoing_over {
            return false;
        }
        let messages = self.messages.as_mut();
        messages.is_some_and(|it| it.try_send(Frame::data(datagram)))
    }

    /// Receives the next datagram; `None` when the workstation has ended the flow. Cancel-safe.
    ///
    /// # Errors
    /// The dial was rejected, or a datagram later on (`ConnectionRefused`), or the stream broke.
    pub async fn recv_datagram(&mut self) -> io::Result<Option<Bytes>> {
        // From now on empty messages count, because an empty datagram is valid.
        self.datagrams = true;
        poll_fn(|cx| {
            if !self.unread.is_empty() {
                return Poll::Ready(Ok(Some(std::mem::take(&mut self.unread))));
            }
            loop {
                match ready!(self.poll_event(cx))? {
                    Event::Data(datagram) => return Poll::Ready(Ok(Some(datagram))),
                    Event::Dialled => {}
                    Event::End => return Poll::Ready(Ok(None)),
                }
            }
        })
        .await
    }

    /// Returns the next relevant message: data, the dial's success, or the end.
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Event>> {
        match self.reading {
            Reading::Open => {}
            Reading::Over => return Poll::Ready(Ok(Event::End)),
            Reading::Failed(kind, what) => return Poll::Ready(Err(io::Error::new(kind, what))),
        }
        for _ in 0..MAX_IGNORED_IN_A_ROW {
            let Some(messages) = &mut self.messages else {
                return Poll::Ready(Ok(self.ended()));
            };
            let next = match messages.poll_next(cx) {
                Poll::Ready(next) => next,
                Poll::Pending => {
                    let why = ready!(self.liveness.poll_gone(messages.as_mut(), cx));
                    self.abort();
                    return self.fail(io::ErrorKind::TimedOut, why);
                }
            };
            self.call_over = !matches!(next, Some(Ok(_)));
            let message = match next {
                None => return Poll::Ready(Ok(self.ended())),
                Some(Err(TunnelError::Malformed(error))) => {
                    tracing::debug!(error, "tunnel ended for a malformed message");
                    self.abort();
                    return self.fail(io::ErrorKind::InvalidData, "malformed tunnel message");
                }
                Some(Err(error)) => {
                    self.reading = Reading::Failed(io::ErrorKind::BrokenPipe, "the tunnel broke");
                    self.dial_failed(&error.to_string());
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::BrokenPipe, error)));
                }
                Some(Ok(message)) => message,
            };
            if let Poll::Ready(event) = self.take_message(message) {
                return Poll::Ready(event);
            }
        }
        // The limit was reached with messages still queued: yield and continue at once.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Takes one message; pending when it is none that a reader waits for.
    fn take_message(&mut self, message: Message) -> Poll<io::Result<Event>> {
        self.liveness.received(&message);
        match message {
            // An empty datagram is valid; in a stream an empty message means nothing.
            Message::Normal(data) if data.is_empty() && !self.datagrams => {}
            Message::Normal(data) => {
                self.dial_succeeded();
                return Poll::Ready(Ok(Event::Data(data)));
            }
            Message::DialOk => {
                self.dial_succeeded();
                return Poll::Ready(Ok(Event::Dialled));
            }
            // A keep-alive from the dialling end announces that ours are answered.
            Message::KeepAlive => self.liveness.announced(),
            Message::CloseSend => return Poll::Ready(Ok(self.ended())),
            Message::DialReject => {
                return self.fail(io::ErrorKind::ConnectionRefused, REJECTED);
            }
            Message::Disconnect => {
                return self.fail(
                    io::ErrorKind::ConnectionReset,
                    "the workstation's connection was reset",
                );
            }
            Message::Unknown(code, _) => {
                tracing::debug!(code, "unknown tunnel message ignored")
            }
            // Messages of the opening phase, which is over.
            _ => {}
        }
        Poll::Pending
    }

    fn ended(&mut self) -> Event {
        self.reading = Reading::Over;
        self.dial_failed("the tunnel ended before the workstation had connected");
        Event::End
    }

    fn dial_succeeded(&mut self) {
        self.dialled = true;
        self.liveness.dialled();
        if let Some((attempt, _)) = self.attempt.take() {
            let now = Instant::now().into_std();
            match self.datagrams {
                true => attempt.opened(now),
                false => attempt.succeeded(now),
            }
        }
    }

    fn dial_failed(&mut self, why: &str) {
        if let Some((attempt, intercept)) = self.attempt.take() {
            let now = Instant::now().into_std();
            if why == REJECTED {
                attempt.failed(now, &nothing_listens(&intercept));
            } else {
                attempt.failed(now, why);
            }
        }
    }

    fn fail(&mut self, kind: io::ErrorKind, what: &'static str) -> Poll<io::Result<Event>> {
        self.dial_failed(what);
        self.reading = Reading::Failed(kind, what);
        Poll::Ready(Err(io::Error::new(kind, what)))
    }

    /// Waits for a slot in the queue.
    fn poll_slot(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.outgoing_over {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let messages = self.messages.as_mut().ok_or_else(gone)?;
        messages.poll_room(cx).map_err(|Gone| gone())
    }

    /// Puts a message into the slot.
    fn send(&mut self, mut frame: Frame) -> io::Result<()> {
        if let Some(stats) = &self.copies {
            frame = frame.held(|bytes| Bytes::from_owner(CopiedBytes::moved(bytes, stats)));
        }
        self.liveness.sent(frame.data_len());
        let messages = self.messages.as_mut().ok_or_else(gone)?;
        messages.send(frame).map_err(|Gone| gone())
    }

    fn end_outgoing(&mut self) {
        self.outgoing_over = true;
        // A caller's end half-closes the gRPC call.
        if let (Role::Caller, Some(messages)) = (self.role, &mut self.messages) {
            messages.end(None);
        }
    }
}

impl Io for Tunnel {
    /// Sends Disconnect at once, unless a caller has ended our direction before.
    fn abort(&mut self) {
        let told = self.role == Role::Caller && self.outgoing_over;
        if let (false, Some(messages)) = (told, &mut self.messages) {
            messages.end(Some(Frame::from(&Message::Disconnect)));
        }
        self.outgoing_over = true;
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.unread.is_empty() {
            match ready!(self.poll_event(cx))? {
                Event::Data(data) => self.unread = data,
                Event::Dialled => {}
                Event::End => return Poll::Ready(Ok(())),
            }
        }
        // The rest of a message stays for the next read, so no byte is copied twice.
        let n = self.unread.len().min(buf.remaining());
        buf.put_slice(self.unread.get(..n).unwrap_or_default());
        self.unread.advance(n);
        if self.unread.is_empty() {
            // A slice without bytes would still hold the whole message.
            self.unread = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        ready!(self.poll_slot(cx))?;
        let body = buf.get(..CHUNK).unwrap_or(buf);
        self.send(Frame::data(body))?;
        Poll::Ready(Ok(body.len()))
    }

    /// Gathers a head and the start of its body into one message.
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let total = bufs.iter().map(|b| b.len()).sum::<usize>().min(CHUNK);
        if total == 0 {
            return Poll::Ready(Ok(0));
        }
        ready!(self.poll_slot(cx))?;
        self.send(Frame::gathered(bufs, total))?;
        Poll::Ready(Ok(total))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The queue's reader drains it by itself, so there is nothing to flush.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.outgoing_over {
            return Poll::Ready(Ok(()));
        }
        if self.role == Role::Server {
            match ready!(self.poll_slot(cx)) {
                Ok(()) => self.send(Frame::from(&Message::CloseSend))?,
                // The call has ended already, so CloseSend is not needed.
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {}
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
        self.end_outgoing();
        Poll::Ready(Ok(()))
    }
}

impl Drop for Tunnel {
    /// Keeps the call until the peer ends it if our direction was ended by half-close or
    /// Disconnect: a gRPC client that drops the response stream cancels the whole call, including
    /// queued messages.
    fn drop(&mut self) {
        if self.datagrams && !self.outgoing_over {
            self.abort();
        }
        // A server's response stream ends by itself; an open direction was aborted and needs no
        // delivery.
        if self.role == Role::Server || !self.outgoing_over || self.call_over {
            return;
        }
        let Some(mut messages) = self.messages.take() else {
            return;
        };
        crate::drain::afterwards(async move {
            let rest =
                async { while let Some(Ok(_)) = poll_fn(|cx| messages.poll_next(cx)).await {} };
            // A peer that takes longer than this has lost its workstation.
            let _ = timeout(LINGER_TIMEOUT, rest).await;
        });
    }
}

impl std::fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tunnel")
            .field("role", &self.role)
            .field("dialled", &self.dialled)
            .finish_non_exhaustive()
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the tunnel is gone")
}
