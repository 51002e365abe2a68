//! The dialling end of a tunnel stream: a workstation, or a manager that connects by itself.
//!
//! It dials the destination of the connection id, reports the result, and copies in both directions
//! at once, including half-closes. Bytes are read from one side only as fast as the other takes
//! them, so a slow reader slows only its own sender, and no more than a few messages are held.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::Status;

use crate::conn_id::ConnId;
use crate::manager::TunnelMessage;
use crate::port::Transport;
use crate::tunnel::{Message, TCP_IDLE_TIMEOUT, begin_normal};

mod datagrams;
mod life;

use datagrams::copy_udp;
pub use datagrams::{DatagramObserver, Refused};
use life::{Activity, Pulse};

/// Default dial timeout if the stream names none.
pub const DEFAULT_DIAL_TIMEOUT: Duration = Duration::from_secs(3);
/// Size of one read from a socket, and so of one message: large enough for bulk, small beside a
/// queue of them.
const READ_SIZE: usize = 64 << 10;
/// Interval of signs of life while the target does not take what came for it.
const BEAT_INTERVAL: Duration = Duration::from_secs(4);
/// Time the peer gets to end a stream that is over for us.
const LINGER_TIMEOUT: Duration = Duration::from_secs(10);

/// Sending half of a tunnel stream. The end of data is signalled differently by the two ends of a
/// gRPC call: a client half-closes, a server sends a message.
pub struct Outgoing<T> {
    tx: Option<mpsc::Sender<T>>,
    wrap: fn(TunnelMessage) -> T,
    server: bool,
    finished: bool,
    announces_life: bool,
}

impl Outgoing<TunnelMessage> {
    /// Creates it for the gRPC client; `tx` feeds the request stream.
    pub fn caller(tx: mpsc::Sender<TunnelMessage>) -> Self {
        Self {
            tx: Some(tx),
            wrap: |message| message,
            server: false,
            finished: false,
            announces_life: false,
        }
    }
}

impl<T> Outgoing<T> {
    /// Says behind the dial's answer, by a keep-alive, that keep-alives are answered here; peers
    /// that do not know that ignore it.
    #[must_use]
    pub fn announcing_life(mut self) -> Self {
        self.announces_life = true;
        self
    }
}

impl Outgoing<Result<TunnelMessage, Status>> {
    /// Creates it for the gRPC server; `tx` feeds the response stream.
    pub fn server(tx: mpsc::Sender<Result<TunnelMessage, Status>>) -> Self {
        Self {
            tx: Some(tx),
            wrap: Ok,
            server: true,
            finished: false,
            announces_life: false,
        }
    }
}

/// Outcome of a tunnel that carried data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carried {
    /// Both directions ended properly.
    Whole,
    /// The dialled side was lost.
    TargetLost,
    /// Nothing listens where datagrams were sent, and the peer was told by a rejection.
    Refused,
    /// The tunnel was lost; the dialled side was reset.
    TunnelLost,
    /// Idle timeout: nothing moved.
    Idle,
}

/// Error: the destination could not be reached; the peer has been told.
#[derive(Debug, thiserror::Error)]
#[error("{destination} cannot be reached: {source}; is something listening there?")]
pub struct DialError {
    /// Address that was dialled.
    pub destination: std::net::SocketAddr,
    /// Cause of the failure.
    pub source: io::Error,
}

/// Reason copying stopped before both directions ended.
enum Broken {
    Target,
    Refused,
    Tunnel,
    Idle,
}

/// Dials the destination of `conn` within `dial_timeout` (zero means the default) and copies until
/// both directions have ended. `datagrams` hears what becomes of those of a UDP flow. To be called
/// once the stream is open: after `StreamInfo` and `StreamOk`. A peer that has sent a keep-alive
/// ahead of its first datagram gets a rejection, late as it is, where nothing listens at the
/// destination.
pub async fn serve<S, T>(
    conn: ConnId,
    dial_timeout: Duration,
    mut incoming: S,
    mut outgoing: Outgoing<T>,
    datagrams: &impl DatagramObserver,
) -> Result<Carried, DialError>
where
    S: Stream<Item = Result<TunnelMessage, Status>> + Unpin,
{
    let destination = conn.destination();
    let dial_timeout = if dial_timeout.is_zero() {
        DEFAULT_DIAL_TIMEOUT
    } else {
        dial_timeout
    };
    let dialled = match conn.transport() {
        Transport::Tcp => timeout(dial_timeout, TcpStream::connect(destination))
            .await
            .map(|it| it.map(Socket::Tcp)),
        // A UDP connect sends nothing, so it needs no timeout.
        Transport::Udp => Ok(udp(destination).await.map(Socket::Udp)),
    };
    match dialled.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Err(source) => {
            reject(&mut incoming, outgoing).await;
            Err(DialError {
                destination,
                source,
            })
        }
        Ok(socket) => {
            if outgoing.send(Message::DialOk.encode()).await.is_err() {
                return Ok(Carried::TunnelLost);
            }
            if outgoing.announces_life {
                // A broken stream shows again at once.
                let _ = outgoing.send(Message::KeepAlive.encode()).await;
            }
            Ok(match socket {
                Socket::Tcp(stream) => copy_tcp(stream, &mut incoming, &mut outgoing).await,
                Socket::Udp(socket) => {
                    copy_udp(socket, &mut incoming, &mut outgoing, datagrams, true).await
                }
            })
        }
    }
}

/// Copies between a connection that is there and a tunnel that the far end dials, until both
/// directions have ended. To be called after `StreamInfo` and `StreamOk`.
pub async fn carry<S, T>(stream: TcpStream, mut incoming: S, mut outgoing: Outgoing<T>) -> Carried
where
    S: Stream<Item = Result<TunnelMessage, Status>> + Unpin,
{
    copy_tcp(stream, &mut incoming, &mut outgoing).await
}

/// Copies between a socket that is connected to its peer and a tunnel that the far end dials, until
/// one is gone or no datagram has come for a while. To be called after `StreamInfo` and `StreamOk`.
pub async fn carry_datagrams<S, T>(
    socket: UdpSocket,
    mut incoming: S,
    mut outgoing: Outgoing<T>,
) -> Carried
where
    S: Stream<Item = Result<TunnelMessage, Status>> + Unpin,
{
    copy_udp(socket, &mut incoming, &mut outgoing, &(), false).await
}

/// Rejects the stream without a dial, and stays until the peer has received that.
pub async fn reject<S, T>(incoming: &mut S, mut outgoing: Outgoing<T>)
where
    S: Stream<Item = Result<TunnelMessage, Status>> + Unpin,
{
    reject_rest(incoming, &mut outgoing).await;
}

/// Rejects what the peer has sent and sends, and stays until it has received that.
async fn reject_rest<S, T>(incoming: &mut S, outgoing: &mut Outgoing<T>)
where
    S: Stream<Item = Result<TunnelMessage, Status>> + Unpin,
{
    let rejection = outgoing.send(Message::DialReject.encode());
    let _ = timeout(LINGER_TIMEOUT, rejection).await;
    outgoing.close();
    until_ended(incoming, LINGER_TIMEOUT).await;
}

enum Socket {
    Tcp(TcpStream),
    Udp(UdpSocket),
}

async fn udp(destination: std::net::SocketAddr) -> io::Result<UdpSocket> {
    // The local address has to be of the destination's family.
    let any: std::net::IpAddr = match destination {
        std::net::SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        std::net::SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(destination).await?;
    Ok(socket)
}

impl<T> Outgoing<T> {
    async fn send(&self, payload: Bytes) -> Result<(), Broken> {
        let Some(tx) = &self.tx else {
            return Err(Broken::Tunnel);
        };
        tx.send((self.wrap)(TunnelMessage { payload }))
            .await
            .map_err(|_| Broken::Tunnel)
    }

    /// Reserves a place in the queue before reading, so that bytes read are never dropped.
    async fn place(&self) -> Result<mpsc::Permit<'_, T>, Broken> {
        let Some(tx) = &self.tx else {
            return Err(Broken::Tunnel);
        };
        tx.reserve().await.map_err(|_| Broken::Tunnel)
    }

    /// Signals the end of data.
    async fn finish(&mut self) -> Result<(), Broken> {
        self.finished = true;
        if self.server {
            return self.send(Message::CloseSend.encode()).await;
        }
        self.close();
        Ok(())
    }

    /// The way to answer keep-alives beside the data; it does not keep the stream open.
    fn pulse(&self) -> Pulse<T> {
        Pulse::new(self.tx.as_ref().map(mpsc::Sender::downgrade), self.wrap)
    }

    /// Resolves when the receiver is gone.
    async fn gone(&self) {
        if let Some(tx) = &self.tx {
            tx.closed().await;
        }
    }

    fn close(&mut self) {
        self.tx = None;
    }
}

async fn copy_tcp<S, T>(
    mut stream: TcpStream,
    incoming: &mut S,
    outgoing: &mut Outgoing<T>,
) -> Carried
where
    S: Stream<Item = Result<TunnelMessage, Status>> + Unpin,
{
    // Fails only on a socket that is gone already, which the first read or write reports.
    let _ = stream.set_nodelay(true);
    let activity = Activity::new(TCP_IDLE_TIMEOUT);
    let pulse = outgoing.pulse();
    let (mut read, mut write) = stream.split();
    let ended = {
        let both = async {
            tokio::try_join!(
                target_to_tunnel(&mut read, outgoing, &activity),
                tunnel_to_target(incoming, &mut write, &activity, &pulse)
            )
        };
        tokio::select! {
            ended = both => ended.map(|_| ()),
            Err(idle) = activity.stale() => Err(idle),
        }
    };
    match ended {
        Ok(()) => {
            outgoing.close();
            // Without a short limit: a slow reader at the far end may still be receiving what we
            // sent.
            until_ended(incoming, TCP_IDLE_TIMEOUT).await;
            Carried::Whole
        }
        Err(Broken::Target | Broken::Refused) => {
            let rest = send_rest(&mut read, outgoing, &activity);
            tokio::join!(rest, until_ended(incoming, LINGER_TIMEOUT));
            Carried::TargetLost
        }
        Err(Broken::Tunnel) => {
            // An abrupt end is passed on as a reset: the target must not see an orderly close.
            let _ = stream.set_zero_linger();
            Carried::TunnelLost
        }
        Err(Broken::Idle) => {
            give_up(incoming, outgoing).await;
            Carried::Idle
        }
    }
}

/// Sends what a target that no longer reads has written before: it still belongs to the caller. Its
/// end may look orderly even after a reset, because a reset shows only once.
async fn send_rest<T>(read: &mut ReadHalf<'_>, outgoing: &mut Outgoing<T>, activity: &Activity) {
    if !outgoing.finished {
        let _ = timeout(LINGER_TIMEOUT, read_all(read, outgoing, activity)).await;
    }
    break_off(outgoing).await;
}

/// Copies until the target half-closes, and signals that.
async fn target_to_tunnel<T>(
    read: &mut ReadHalf<'_>,
    outgoing: &mut Outgoing<T>,
    activity: &Activity,
) -> Result<(), Broken> {
    read_all(read, outgoing, activity).await?;
    outgoing.finish().await
}

/// Copies until the target half-closes. Can be dropped at any time without losing bytes.
async fn read_all<T>(
    read: &mut ReadHalf<'_>,
    outgoing: &Outgoing<T>,
    activity: &Activity,
) -> Result<(), Broken> {
    loop {
        // No buffer is held while waiting for readability.
        tokio::select! {
            ready = read.readable() => ready.map_err(|_| Broken::Target)?,
            () = outgoing.gone() => return Err(Broken::Tunnel),
        }
        // Reserved before reading, so that a full queue stops the target and no byte is lost.
        let place = outgoing.place().await?;
        let mut message = BytesMut::with_capacity(READ_SIZE);
        begin_normal(&mut message);
        match read.try_read_buf(&mut message) {
            Ok(0) => return Ok(()),
            Ok(_) => place.send((outgoing.wrap)(TunnelMessage {
                payload: message.freeze(),
            })),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return Err(Broken::Target),
        }
        activity.touch();
    }
}

/// Copies until the tunnel's peer has no more data.
async fn tunnel_to_target<S, T>(
    incoming: &mut S,
    write: &mut WriteHalf<'_>,
    activity: &Activity,
    pulse: &Pulse<T>,
) -> Result<(), Broken>
where
    S: Stream<Item = Result<TunnelMessage, Status>> + Unpin,
{
    while let Some(data) = next_data(incoming, activity, pulse).await? {
        let mut writing = std::pin::pin!(write.write_all(&data));
        // With a target that does not read, keep-alives are queued like data; the peer must not
        // take that for the end of this side.
        let written = loop {
            match timeout(BEAT_INTERVAL, &mut writing).await {
                Ok(written) => break written,
                Err(_) => pulse.beat(),
            }
        };
        written.map_err(|_| Broken::Target)?;
        activity.touch();
    }
    // A target that has closed already needs no shutdown.
    let _ = write.shutdown().await;
    Ok(())
}

/// Returns the next data for the target; `None` after the last.
async fn next_data<S, T>(
    incoming: &mut S,
    activity: &Activity,
    pulse: &Pulse<T>,
) -> Result<Option<Bytes>, Broken>
where
    S: Stream<Item = Result<TunnelMessage, Status>> + Unpin,
{
    loop {
        let Some(message) = incoming.next().await else {
            return Ok(None);
        };
        activity.touch();
        let message = message.map_err(|_| Broken::Tunnel)?;
        match Message::decode(message.payload).map_err(|_| Broken::Tunnel)? {
            Message::Normal(data) => return Ok(Some(data)),
            // The peer's half-close; our direction continues.
            Message::CloseSend => return Ok(None),
            Message::Disconnect | Message::DialReject => return Err(Broken::Tunnel),
            Message::KeepAlive => pulse.answer(),
            _ => {}
        }
    }
}

/// Breaks the stream off and waits for the peer to end it.
async fn give_up<S, T>(incoming: &mut S, outgoing: &mut Outgoing<T>)
where
    S: Stream<Item = Result<TunnelMessage, Status>> + Unpin,
{
    break_off(outgoing).await;
    until_ended(incoming, LINGER_TIMEOUT).await;
}

/// Tells the peer that the stream is over.
async fn break_off<T>(outgoing: &mut Outgoing<T>) {
    let _ = timeout(LINGER_TIMEOUT, outgoing.send(Message::Disconnect.encode())).await;
    outgoing.close();
}

/// Waits until the peer has ended the stream: dropping it earlier cancels the call, including our
/// own messages still queued.
async fn until_ended<S>(incoming: &mut S, patience: Duration)
where
    S: Stream<Item = Result<TunnelMessage, Status>> + Unpin,
{
    let end = async { while let Some(Ok(_)) = incoming.next().await {} };
    let _ = timeout(patience, end).await;
}
