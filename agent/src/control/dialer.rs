//! Dials into the cluster on behalf of workstations: any agent may be asked to, for any
//! destination, TCP and UDP, but for its own ports and link-local addresses. Dials and the
//! connections they made are bounded, because callers need descriptors too.

use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use traffic_proto::conn_id::ConnId;
use traffic_proto::dial_policy::{DialPolicy, DialRefusal};
use traffic_proto::port::Transport;
use traffic_proto::tunnel::frame::Frame;
use traffic_proto::tunnel::{MAX_DATAGRAM, Message, TCP_IDLE_TIMEOUT, UDP_IDLE_TIMEOUT};

use crate::io::conn::Conn;
use crate::io::relay;
use crate::io::relay::PendingBytes;
use crate::limits::Limits;
use crate::telemetry::metrics::{ControlLimit, ControlMetrics, PortMetrics};
use crate::telemetry::rate_limit::limited;
use crate::upstream::TunnelIo;
use crate::upstream::tunnel::Tunnel;

/// Default dial timeout, if the request names none.
const DEFAULT_DIAL_TIMEOUT: Duration = Duration::from_secs(3);
/// Maximum dial timeout.
const MAX_DIAL_TIMEOUT: Duration = Duration::from_secs(30);
/// Time the peer gets to end a call whose dial was rejected.
const REJECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Dials and carries connections for workstations.
#[derive(Debug)]
pub struct Dialer {
    policy: DialPolicy,
    files: FilePorts,
    /// Connections that are open or being opened.
    places: Arc<Semaphore>,
    /// Connections that are being opened.
    under_way: Semaphore,
    /// Calls that wait for the peer to take a refusal.
    refusals: Arc<Semaphore>,
    metrics: Arc<ControlMetrics>,
}

/// The file servers' ports, which workstations reach by the pod's address alone. They are announced
/// with the agent and not only with an intercept: `telepresence ingest` mounts volumes without one.
#[derive(Clone, Copy, Debug, Default)]
pub struct FilePorts {
    address: Option<IpAddr>,
    ports: [u16; 2],
}

impl FilePorts {
    /// Ports at the pod's address, if it has one; 0 stands for none.
    #[must_use]
    pub fn new(address: Option<IpAddr>, ports: [u16; 2]) -> Self {
        Self {
            address: address.map(|it| it.to_canonical()),
            ports,
        }
    }

    fn contain(self, conn_id: ConnId) -> bool {
        let destination = conn_id.destination();
        conn_id.transport() == Transport::Tcp
            && destination.port() != 0
            && self.ports.contains(&destination.port())
            && self.address == Some(destination.ip().to_canonical())
    }
}

/// A place among the dialled connections, kept until the connection ends, or among those that are
/// refused.
pub(crate) enum DialPlace {
    /// To be dialled.
    Connection(#[expect(dead_code, reason = "held until dropped")] OwnedSemaphorePermit),
    /// Too many at once: the peer is told so.
    Refusal(#[expect(dead_code, reason = "held until dropped")] OwnedSemaphorePermit),
}

impl Dialer {
    /// Creates one; the file servers' ports belong to `policy` too.
    #[must_use]
    pub fn new(
        policy: DialPolicy,
        files: FilePorts,
        limits: &Limits,
        metrics: Arc<ControlMetrics>,
    ) -> Self {
        Self {
            policy,
            files,
            places: Arc::new(Semaphore::new(limits.dialled_connections)),
            under_way: Semaphore::new(limits.dials),
            refusals: Arc::new(Semaphore::new(limits.dials)),
            metrics,
        }
    }

    /// Takes a place for a connection; one for a refusal, counted and said, if there are too many;
    /// none if those are too many as well.
    pub(crate) fn place(&self) -> Option<DialPlace> {
        if let Ok(place) = Arc::clone(&self.places).try_acquire_owned() {
            return Some(DialPlace::Connection(place));
        }
        self.metrics
            .limits
            .at(ControlLimit::DialledConnections)
            .inc();
        limited!(
            self.metrics.lines.dials,
            warn,
            "dial refused: too many connections for workstations; raise dialledConnections"
        );
        let refusal = Arc::clone(&self.refusals).try_acquire_owned();
        refusal.ok().map(DialPlace::Refusal)
    }

    /// Connects to the destination of `conn_id`, reports the result, and carries bytes until
    /// either side is done.
    pub(crate) async fn serve(
        &self,
        place: DialPlace,
        conn_id: ConnId,
        dial_timeout: Duration,
        io: TunnelIo,
    ) {
        if matches!(place, DialPlace::Refusal(_)) {
            return reject(io, conn_id, "too many connections for workstations").await;
        }
        if let Err(refusal) = self.check(conn_id) {
            let text = self.refused(conn_id, refusal);
            return reject(io, conn_id, text).await;
        }
        // A dial that waits for its turn would look like a slow destination.
        let Ok(under_way) = self.under_way.try_acquire() else {
            self.metrics.limits.at(ControlLimit::Dials).inc();
            let text = "dial refused: too many dials are under way; raise dials";
            limited!(self.metrics.lines.dials, warn, "{text}");
            return reject(io, conn_id, text).await;
        };
        match conn_id.transport() {
            Transport::Tcp => {
                let dialled = dial(conn_id, dial_timeout).await;
                drop(under_way);
                match dialled {
                    Ok(socket) => tcp(conn_id, socket, io).await,
                    Err(why) => reject(io, conn_id, &why).await,
                }
            }
            // A datagram socket connects at once, so there is nothing to limit.
            Transport::Udp => {
                drop(under_way);
                udp(conn_id, io).await;
            }
        }
    }

    fn check(&self, conn_id: ConnId) -> Result<(), DialRefusal> {
        let destination = conn_id.destination();
        // They are ports of this agent, and meant for workstations all the same.
        if self.files.contain(conn_id) {
            return Ok(());
        }
        self.policy.check(conn_id.transport(), destination)
    }

    fn refused(&self, conn_id: ConnId, refusal: DialRefusal) -> &'static str {
        let (limit, text) = match refusal {
            DialRefusal::OwnPort => (
                ControlLimit::DialOwnPort,
                "dial refused: the destination is a port of this agent",
            ),
            DialRefusal::LinkLocal => (
                ControlLimit::DialLinkLocal,
                "dial refused: the destination is a link-local or metadata address; dial.allow \
                permits it",
            ),
        };
        self.metrics.limits.at(limit).inc();
        limited!(
            self.metrics.lines.dials,
            warn,
            destination = %conn_id.destination(),
            "{text}"
        );
        text
    }
}

async fn dial(conn_id: ConnId, dial_timeout: Duration) -> Result<TcpStream, String> {
    let budget = if dial_timeout.is_zero() {
        DEFAULT_DIAL_TIMEOUT
    } else {
        dial_timeout.min(MAX_DIAL_TIMEOUT)
    };
    match tokio::time::timeout(budget, TcpStream::connect(conn_id.destination())).await {
        Ok(connected) => connected.map_err(|error| error.to_string()),
        Err(_) => Err("no answer in time".to_owned()),
    }
}

async fn tcp(conn_id: ConnId, socket: TcpStream, mut io: TunnelIo) {
    // The workstation's own socket decides how bytes are gathered.
    let _ = socket.set_nodelay(true);
    if io.send(&Message::DialOk).await.is_err() {
        return;
    }
    let metrics = PortMetrics::default();
    let (mut workstation, mut destination) =
        (Conn::Other(Box::new(Tunnel::new(io))), Conn::Tcp(socket));
    let carried = relay::both(
        &mut workstation,
        &mut destination,
        PendingBytes::default(),
        &metrics,
    );
    let was_idle = tokio::select! {
        ended = carried => {
            tracing::debug!(%conn_id, in_ = ended.bytes_in, out = ended.bytes_out, "dialled connection ended");
            false
        }
        () = idle(&metrics, TCP_IDLE_TIMEOUT) => {
            tracing::debug!(%conn_id, "dialled connection was idle for {TCP_IDLE_TIMEOUT:?}");
            true
        }
    };
    // A reset tells the workstation that this was no orderly end.
    if was_idle {
        workstation.abort();
    }
}

/// Resolves when nothing moved for `limit`; checked twice in that time.
async fn idle(metrics: &PortMetrics, limit: Duration) {
    let moved = || metrics.bytes_in.get() + metrics.bytes_out.get();
    let mut seen = moved();
    let mut quiet = Duration::ZERO;
    while quiet < limit {
        tokio::time::sleep(limit / 2).await;
        quiet = if moved() == seen {
            quiet + limit / 2
        } else {
            Duration::ZERO
        };
        seen = moved();
    }
}

async fn udp(conn_id: ConnId, mut io: TunnelIo) {
    let destination = conn_id.destination();
    let any: std::net::SocketAddr = if destination.is_ipv4() {
        ([0, 0, 0, 0], 0).into()
    } else {
        (std::net::Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let socket = match UdpSocket::bind(any).await {
        Ok(socket) => socket,
        Err(error) => return reject(io, conn_id, &error.to_string()).await,
    };
    if let Err(error) = socket.connect(destination).await {
        return reject(io, conn_id, &error.to_string()).await;
    }
    if io.send(&Message::DialOk).await.is_err() {
        return;
    }
    let mut tunnel = Tunnel::new(io);
    let mut datagram = vec![0; MAX_DATAGRAM];
    // Whether the peer knows what to do with a rejection; its first datagram settles that.
    let mut rejects = None;
    loop {
        let moved = tokio::time::timeout(UDP_IDLE_TIMEOUT, async {
            tokio::select! {
                sent = tunnel.recv_datagram() => match sent {
                    Ok(Some(payload)) => {
                        let knows = *rejects.get_or_insert(tunnel.understands_rejections());
                        send_datagram(&socket, &payload, knows).await
                    }
                    Ok(None) | Err(_) => Moved::Over,
                },
                received = receive(&socket, &mut datagram) => match received {
                    Ok(length) => {
                        tunnel.send_datagram(datagram.get(..length).unwrap_or_default());
                        Moved::On
                    }
                    Err(error) if is_refusal(&error) => Moved::Refused,
                    // An ICMP error of an earlier datagram shows here once.
                    Err(_) => Moved::On,
                }
            }
        });
        match moved.await {
            Ok(Moved::On) => {}
            Ok(Moved::Refused) if rejects == Some(true) => return reject_rest(tunnel).await,
            // The flow goes on: somebody may listen when the next datagram comes.
            Ok(Moved::Refused) => {}
            Ok(Moved::Over) | Err(_) => return,
        }
    }
}

/// Result of waiting for a datagram of either side.
enum Moved {
    On,
    /// Nothing listens at the destination.
    Refused,
    /// The workstation has ended the flow.
    Over,
}

/// Receives a datagram.
async fn receive(socket: &UdpSocket, datagram: &mut [u8]) -> io::Result<usize> {
    loop {
        // An error alone makes a socket not readable.
        if socket
            .ready(Interest::READABLE | Interest::ERROR)
            .await?
            .is_error()
        {
            let mut error = None;
            // It has to be said that there is no error any more.
            let _ = socket.try_io(Interest::ERROR, || {
                error = socket.take_error()?;
                Err::<(), _>(io::ErrorKind::WouldBlock.into())
            });
            if let Some(error) = error {
                return Err(error);
            }
        }
        match socket.try_recv(datagram) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            received => return received,
        }
    }
}

/// Sends a datagram. Where the first try only reports that an earlier one was refused, it is sent
/// again, unless the flow ends by that. One that the network refuses is lost, as on any network.
async fn send_datagram(socket: &UdpSocket, payload: &[u8], rejects: bool) -> Moved {
    let sent = socket.send(payload).await;
    if !sent.is_err_and(|error| is_refusal(&error)) {
        return Moved::On;
    }
    if !rejects {
        let _ = socket.send(payload).await;
    }
    Moved::Refused
}

fn is_refusal(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionRefused
}

/// Says that nothing takes the datagrams of a flow, and keeps the call until the peer has ended it.
async fn reject_rest(mut tunnel: Tunnel) {
    tunnel.reject();
    let rest = async { while let Ok(Some(_)) = tunnel.recv_datagram().await {} };
    let _ = tokio::time::timeout(REJECT_TIMEOUT, rest).await;
}

/// Says that the dial failed, and keeps the call until the peer has ended it: ending it earlier
/// would cancel it together with the message.
async fn reject(mut io: TunnelIo, conn_id: ConnId, why: &str) {
    tracing::debug!(%conn_id, "dial for a workstation failed: {why}");
    io.messages.end(Some(Frame::from(&Message::DialReject)));
    let rest = async { while let Some(Ok(_)) = poll_fn(|cx| io.messages.poll_next(cx)).await {} };
    let _ = tokio::time::timeout(REJECT_TIMEOUT, rest).await;
}
