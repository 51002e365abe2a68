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

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::PollSender;
use traffic_proto::tunnel::{self, Message};

use crate::addr::Caller;
use crate::io::conn::Io;
use crate::telemetry::metrics::{FailOpen, PortMetrics};
use crate::upstream::{OpenTunnel, Role, Transport, TunnelError, TunnelIo};
use traffic_core::routing::Intercept;

/// Maximum of data in one message: large enough for a small cost per byte, small enough that a full
/// queue stays a few MiB.
pub const CHUNK: usize = 64 * 1024;
/// Messages without data handled in one turn before other tasks run.
const MAX_IGNORED_IN_A_ROW: u32 = 64;
/// Default dial timeout, if the intercept's spec has none.
const DEFAULT_DIAL_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum dial timeout, because a caller is waiting.
const MAX_DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// Time a call is kept after its tunnel was dropped, for data still queued towards a slow
/// workstation.
const LINGER_TIMEOUT: Duration = Duration::from_secs(60);

type Incoming = Pin<Box<dyn Stream<Item = Result<Bytes, TunnelError>> + Send>>;

/// An open tunnel as a byte stream, or (for UDP) as a stream of datagrams.
pub struct Tunnel {
    tx: PollSender<Bytes>,
    /// Queue slot reserved for a Disconnect, so that a reset can be sent into a full queue.
    /// Released once our direction is over, since holding it would keep the call from half-closing.
    farewell: Option<mpsc::OwnedPermit<Bytes>>,
    rx: Option<Incoming>,
    role: Role,
    unread: Bytes,
    reading: Reading,
    dialled: bool,
    outgoing_over: bool,
    counted: Option<Counted>,
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

/// Returns the time to wait for an intercept's DialOK: its dial timeout plus latency, at most 5 s;
/// 2 s if it has no dial timeout.
#[must_use]
pub fn dial_budget(intercept: &Intercept) -> Duration {
    if intercept.dial_timeout.is_zero() {
        return DEFAULT_DIAL_TIMEOUT;
    }
    intercept
        .dial_timeout
        .saturating_add(intercept.roundtrip_latency)
        .min(MAX_DIAL_TIMEOUT)
}

/// Opens a tunnel for `intercept` and counts it, or its failure.
///
/// # Errors
/// The error of [`OpenTunnel::open`].
pub async fn open(
    tunnels: &dyn OpenTunnel,
    metrics: &Arc<PortMetrics>,
    intercept: &Arc<Intercept>,
    caller: Caller,
    transport: Transport,
) -> Result<Tunnel, TunnelError> {
    match tunnels.open(intercept.clone(), caller, transport).await {
        Ok(io) => {
            metrics.tunnels.inc();
            let mut tunnel = Tunnel::new(io);
            tunnel.counted = Some(Counted::new(metrics));
            Ok(tunnel)
        }
        Err(error) => {
            metrics.tunnel_failures.inc();
            Err(error)
        }
    }
}

impl Tunnel {
    /// Wraps an open stream.
    #[must_use]
    pub fn new(io: TunnelIo) -> Self {
        // A queue of one slot has none to keep aside.
        let farewell = if io.tx.max_capacity() > 1 {
            io.tx.clone().try_reserve_owned().ok()
        } else {
            None
        };
        Self {
            tx: PollSender::new(io.tx),
            farewell,
            rx: Some(io.rx),
            role: io.role,
            unread: Bytes::new(),
            reading: Reading::Open,
            dialled: false,
            outgoing_over: false,
            counted: None,
        }
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

    /// Sends one datagram, or drops it (and returns `false`) if the queue is full, the tunnel is
    /// over, or it is too large for a datagram.
    pub fn send_datagram(&mut self, datagram: &[u8]) -> bool {
        if datagram.len() > tunnel::MAX_DATAGRAM || datagram.is_empty() || self.outgoing_over {
            return false;
        }
        self.tx
            .get_ref()
            .is_some_and(|tx| tx.try_send(tunnel::normal_from(datagram)).is_ok())
    }

    /// Receives the next datagram; `None` when the workstation has ended the flow. Cancel-safe.
    ///
    /// # Errors
    /// The dial was rejected, or the stream broke.
    pub async fn recv_datagram(&mut self) -> io::Result<Option<Bytes>> {
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
            let next = match &mut self.rx {
                Some(rx) => ready!(rx.as_mut().poll_next(cx)),
                None => None,
            };
            let message = match next {
                None => {
                    self.rx = None;
                    self.reading = Reading::Over;
                    return Poll::Ready(Ok(Event::End));
                }
                Some(Err(error)) => {
                    self.rx = None;
                    self.reading = Reading::Failed(io::ErrorKind::BrokenPipe, "the tunnel broke");
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::BrokenPipe, error)));
                }
                Some(Ok(payload)) => Message::decode(payload),
            };
            match message {
                Ok(Message::Normal(data)) if data.is_empty() => {}
                Ok(Message::Normal(data)) => {
                    self.dialled = true;
                    return Poll::Ready(Ok(Event::Data(data)));
                }
                Ok(Message::DialOk) => {
                    self.dialled = true;
                    return Poll::Ready(Ok(Event::Dialled));
                }
                Ok(Message::CloseSend) => {
                    self.reading = Reading::Over;
                    return Poll::Ready(Ok(Event::End));
                }
                Ok(Message::DialReject) => {
                    return self.fail(
                        io::ErrorKind::ConnectionRefused,
                        "the workstation could not connect",
                    );
                }
                Ok(Message::Disconnect) => {
                    return self.fail(
                        io::ErrorKind::ConnectionReset,
                        "the workstation's connection was reset",
                    );
                }
                Ok(Message::Unknown(code, _)) => {
                    tracing::debug!(code, "unknown tunnel message ignored")
                }
                // Keep-alives, and messages that belong to the opening, which is over.
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(%error, "tunnel ended for a malformed message");
                    self.abort();
                    return self.fail(io::ErrorKind::InvalidData, "malformed tunnel message");
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn fail(&mut self, kind: io::ErrorKind, what: &'static str) -> Poll<io::Result<Event>> {
        self.reading = Reading::Failed(kind, what);
        Poll::Ready(Err(io::Error::new(kind, what)))
    }

    /// Waits for a slot in the queue.
    fn poll_slot(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.outgoing_over {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        self.tx.poll_reserve(cx).map_err(|_| gone())
    }

    /// Puts a message into the reserved slot.
    fn send(&mut self, payload: Bytes) -> io::Result<()> {
        self.tx.send_item(payload).map_err(|_| gone())
    }

    fn end_outgoing(&mut self) {
        self.outgoing_over = true;
        if self.role == Role::Caller {
            self.farewell = None;
            self.tx.close();
        }
    }
}

impl Io for Tunnel {
    /// Sends Disconnect at once if a slot is free (one is reserved until our direction is over).
    fn abort(&mut self) {
        if let Some(slot) = self.farewell.take() {
            slot.send(Message::Disconnect.encode());
        } else if let Some(tx) = self.tx.get_ref().filter(|_| self.role == Role::Server) {
            let _ = tx.try_send(Message::Disconnect.encode());
        }
        self.outgoing_over = true;
        self.tx.close();
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
        self.send(tunnel::normal_from(body))?;
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
        let mut payload = BytesMut::with_capacity(1 + total);
        tunnel::begin_normal(&mut payload);
        for buf in bufs {
            let room = 1 + total - payload.len();
            payload.put_slice(buf.get(..room).unwrap_or(buf));
        }
        self.send(payload.freeze())?;
        Poll::Ready(Ok(total))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Whoever drains the queue does so as soon as it can.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.outgoing_over {
            return Poll::Ready(Ok(()));
        }
        if self.role == Role::Server {
            match ready!(self.poll_slot(cx)) {
                Ok(()) => self.send(Message::CloseSend.encode())?,
                // The call is over already, which says more than CloseSend would.
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
        if self.role == Role::Server || !self.outgoing_over {
            return;
        }
        let Some(mut rx) = self.rx.take() else { return };
        crate::drain::afterwards(async move {
            let rest = async { while let Some(Ok(_)) = rx.next().await {} };
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
