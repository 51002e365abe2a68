//! Dials into the cluster on behalf of workstations: any agent may be asked to, for any
//! destination, TCP and UDP.

use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::net::{TcpStream, UdpSocket};
use traffic_proto::conn_id::ConnId;
use traffic_proto::port::Transport;
use traffic_proto::tunnel::{MAX_DATAGRAM, Message, TCP_IDLE_TIMEOUT, UDP_IDLE_TIMEOUT};

use crate::io::conn::Conn;
use crate::io::relay;
use crate::io::relay::PendingBytes;
use crate::telemetry::metrics::PortMetrics;
use crate::upstream::TunnelIo;
use crate::upstream::tunnel::Tunnel;

/// Default dial timeout, if the request names none.
const DEFAULT_DIAL_TIMEOUT: Duration = Duration::from_secs(3);
/// Maximum dial timeout.
const MAX_DIAL_TIMEOUT: Duration = Duration::from_secs(30);
/// Time the peer gets to end a call whose dial was rejected.
const REJECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Connects to the destination of `conn_id`, reports the result, and carries bytes until either
/// side is done.
pub(crate) async fn dial_and_carry(conn_id: ConnId, dial_timeout: Duration, io: TunnelIo) {
    match conn_id.transport() {
        Transport::Tcp => tcp(conn_id, dial_timeout, io).await,
        Transport::Udp => udp(conn_id, io).await,
    }
}

async fn tcp(conn_id: ConnId, dial_timeout: Duration, io: TunnelIo) {
    let budget = if dial_timeout.is_zero() {
        DEFAULT_DIAL_TIMEOUT
    } else {
        dial_timeout.min(MAX_DIAL_TIMEOUT)
    };
    let connected = tokio::time::timeout(budget, TcpStream::connect(conn_id.destination())).await;
    let socket = match connected {
        Ok(Ok(socket)) => socket,
        Ok(Err(error)) => return reject(io, conn_id, &error.to_string()).await,
        Err(_) => return reject(io, conn_id, "no answer in time").await,
    };
    let _ = socket.set_nodelay(true);
    if io.tx.send(Message::DialOk.encode()).await.is_err() {
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

async fn udp(conn_id: ConnId, io: TunnelIo) {
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
    if io.tx.send(Message::DialOk.encode()).await.is_err() {
        return;
    }
    let mut tunnel = Tunnel::new(io);
    let mut datagram = vec![0; MAX_DATAGRAM];
    loop {
        let moved = tokio::time::timeout(UDP_IDLE_TIMEOUT, async {
            tokio::select! {
                sent = tunnel.recv_datagram() => match sent {
                    Ok(Some(payload)) => {
                        // A datagram the network refuses is lost, as on any network.
                        let _ = socket.send(&payload).await;
                        true
                    }
                    Ok(None) | Err(_) => false,
                },
                received = socket.recv(&mut datagram) => {
                    // An ICMP error of an earlier datagram shows here once.
                    if let Some(payload) = received.ok().and_then(|n| datagram.get(..n)) {
                        tunnel.send_datagram(payload);
                    }
                    true
                }
            }
        });
        if !matches!(moved.await, Ok(true)) {
            return;
        }
    }
}

/// Says that the dial failed, and keeps the call until the peer has ended it: ending it earlier would
/// cancel it together with the message.
async fn reject(io: TunnelIo, conn_id: ConnId, why: &str) {
    tracing::debug!(%conn_id, "dial for a workstation failed: {why}");
    let TunnelIo { tx, mut rx, .. } = io;
    let _ = tx.send(Message::DialReject.encode()).await;
    drop(tx);
    let rest = async { while let Some(Ok(_)) = rx.next().await {} };
    let _ = tokio::time::timeout(REJECT_TIMEOUT, rest).await;
}
