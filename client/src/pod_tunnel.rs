//! Connections from this machine to a port of a pod: each is a tunnel through the manager, which the
//! pod's agent dials at its end.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::Streaming;
use traffic_proto::ConnId;
use traffic_proto::dialer::{self, Carried, Outgoing};
use traffic_proto::manager::{SessionInfo, TunnelMessage};
use traffic_proto::port::Transport;
use traffic_proto::tunnel::{Message, StreamInfo};

use crate::session::Manager;
use crate::tunnels::{QUEUE_CAPACITY, Via, open};

/// Time for the agent to dial a port of its pod.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for the way there and back, in addition.
const ROUNDTRIP_TIMEOUT: Duration = Duration::from_secs(5);

/// The way to the pod that has an attachment.
#[derive(Clone, Debug)]
pub(crate) struct PodWay {
    manager: Manager,
    session: String,
}

impl PodWay {
    pub(crate) fn new(manager: Manager, session: &SessionInfo) -> Self {
        Self {
            manager,
            session: session.session_id.clone(),
        }
    }

    /// Carries a connection to an address of the pod, to its end.
    pub(crate) async fn carry(
        self,
        stream: TcpStream,
        destination: SocketAddr,
    ) -> anyhow::Result<Carried> {
        let (incoming, tx) = self.open(Transport::Tcp, destination).await?;
        Ok(dialer::carry(stream, incoming, Outgoing::caller(tx)).await)
    }

    /// Carries the datagrams of a socket that is connected to its peer, after a first one, until
    /// none has come for a while.
    pub(crate) async fn carry_datagrams(
        self,
        socket: UdpSocket,
        first: Bytes,
        destination: SocketAddr,
    ) -> anyhow::Result<Carried> {
        let (incoming, tx) = self.open(Transport::Udp, destination).await?;
        let payload = Message::Normal(first).encode();
        tx.send(TunnelMessage { payload }).await?;
        Ok(dialer::carry_datagrams(socket, incoming, Outgoing::caller(tx)).await)
    }

    async fn open(
        self,
        transport: Transport,
        destination: SocketAddr,
    ) -> anyhow::Result<(Streaming<TunnelMessage>, mpsc::Sender<TunnelMessage>)> {
        let conn = ConnId::new(transport, source(destination.ip()), destination);
        let (tx, rx) = mpsc::channel(QUEUE_CAPACITY);
        let info = StreamInfo::new(conn, &self.session, ROUNDTRIP_TIMEOUT, DIAL_TIMEOUT);
        let payload = Message::StreamInfo(info).encode();
        // The queue is empty, so this never waits.
        tx.send(TunnelMessage { payload }).await?;
        let opened = open(Via::Manager(self.manager), rx);
        Ok((timeout(ROUNDTRIP_TIMEOUT, opened).await??, tx))
    }
}

/// Makes up an address to call from. The manager joins streams by both addresses, so those of two
/// workstations must differ.
fn source(destination: IpAddr) -> SocketAddr {
    let chance = RandomState::new().hash_one(destination);
    let [a, b, c, d, e, ..] = chance.to_be_bytes();
    let port = u16::from_be_bytes([d, e]).max(1);
    match destination.to_canonical() {
        IpAddr::V4(_) => (Ipv4Addr::new(127, a, b, c), port).into(),
        IpAddr::V6(_) => {
            let ends = |first, second| u16::from_be_bytes([first, second]);
            let ip = Ipv6Addr::new(0xfd00, ends(a, b), ends(c, 0), 0, 0, 0, 0, 1);
            (ip, port).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_up_addresses_differ_and_are_of_the_destinations_family() {
        let v4 = IpAddr::from([10, 0, 0, 1]);
        let all: std::collections::HashSet<_> = (0..32).map(|_| source(v4)).collect();
        assert!(all.len() > 16);
        assert!(all.iter().all(|it| it.ip().is_loopback() && it.port() != 0));
        assert!(source("fd00::1".parse().unwrap()).is_ipv6());
    }
}
