//! Connections from this machine to a port of a pod: each is a tunnel through the manager, which
//! the pod's agent dials at its end. It does so at the pod's address, and where nothing listens
//! there at its loopback, as what is meant for the app's container alone listens there.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::StreamExt as _;
use tonic::{Status, Streaming};
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

/// Time for a rejection of a first datagram.
const REJECTION_TIMEOUT: Duration = Duration::from_secs(1);

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

    /// Carries a connection to the first of some places of the pod that takes it, to its end.
    pub(crate) async fn carry(
        self,
        stream: TcpStream,
        places: &[SocketAddr],
    ) -> anyhow::Result<Carried> {
        let mut places = places.iter().peekable();
        while let Some(place) = places.next() {
            let (mut incoming, tx) = self.open(Transport::Tcp, *place).await?;
            let outgoing = Outgoing::caller(tx);
            // What becomes of the last one shows in the connection.
            if places.peek().is_none() {
                return Ok(dialer::carry(stream, incoming, outgoing).await);
            }
            let verdict = timeout(DIAL_TIMEOUT + ROUNDTRIP_TIMEOUT, incoming.next()).await?;
            if !is_rejection(verdict.as_ref()) {
                let incoming = tokio_stream::iter(verdict).chain(incoming);
                return Ok(dialer::carry(stream, incoming, outgoing).await);
            }
        }
        anyhow::bail!("the pod has no address")
    }

    /// Carries the datagrams of a socket that is connected to its peer, after a first one, to the
    /// first of some places of the pod that does not refuse that, until none has come for a while.
    pub(crate) async fn carry_datagrams(
        self,
        socket: UdpSocket,
        first: Bytes,
        places: &[SocketAddr],
    ) -> anyhow::Result<Carried> {
        for place in places {
            let (mut incoming, tx) = self.open(Transport::Udp, *place).await?;
            // The keep-alive says ahead that a rejection is understood.
            for message in [Message::KeepAlive, Message::Normal(first.clone())] {
                let payload = message.encode();
                tx.send(TunnelMessage { payload }).await?;
            }
            let telling = async {
                loop {
                    let next = incoming.next().await;
                    let tells = next.as_ref().is_none_or(|next| !is_before_answer(next));
                    if tells {
                        return next;
                    }
                }
            };
            // A server that answers nothing tells nothing either, and no more does an agent that
            // knows no rejections.
            let told = timeout(REJECTION_TIMEOUT, telling)
                .await
                .unwrap_or_default();
            if !is_rejection(told.as_ref()) {
                let incoming = tokio_stream::iter(told).chain(incoming);
                return Ok(dialer::carry_datagrams(socket, incoming, Outgoing::caller(tx)).await);
            }
        }
        anyhow::bail!("nothing listens at {places:?} of the pod")
    }

    async fn open(
        &self,
        transport: Transport,
        destination: SocketAddr,
    ) -> anyhow::Result<(Streaming<TunnelMessage>, mpsc::Sender<TunnelMessage>)> {
        let conn = ConnId::new(transport, source(destination.ip()), destination);
        let (tx, rx) = mpsc::channel(QUEUE_CAPACITY);
        let info = StreamInfo::new(conn, &self.session, ROUNDTRIP_TIMEOUT, DIAL_TIMEOUT);
        let payload = Message::StreamInfo(info).encode();
        // The queue is empty, so this never waits.
        tx.send(TunnelMessage { payload }).await?;
        let opened = open(Via::Manager(self.manager.clone()), rx);
        Ok((timeout(ROUNDTRIP_TIMEOUT, opened).await??, tx))
    }
}

/// Returns where the ports of a pod may be, in the order to try: at its address, and at its
/// loopback unless that is this machine's, where the agent would find nothing but the ports that
/// are opened here.
pub(crate) fn addresses(pod: IpAddr) -> Vec<IpAddr> {
    let is_here = std::net::UdpSocket::bind((pod, 0)).is_ok();
    let loopback = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let loopback = loopback.into_iter().filter(|_| !is_here);
    std::iter::once(pod).chain(loopback).collect()
}

fn is_rejection(message: Option<&Result<TunnelMessage, Status>>) -> bool {
    matches!(message, Some(Ok(message)) if is(message, &Message::DialReject))
}

/// Returns true for what comes whether somebody listens or not.
fn is_before_answer(message: &Result<TunnelMessage, Status>) -> bool {
    let told = [Message::DialOk, Message::KeepAlive];
    matches!(message, Ok(message) if told.iter().any(|it| is(message, it)))
}

fn is(message: &TunnelMessage, wanted: &Message) -> bool {
    Message::decode(message.payload.clone()).is_ok_and(|message| message == *wanted)
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

    #[test]
    fn a_loopback_that_is_this_machine_s_is_no_pod_s() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(addresses(ip("127.7.0.9")), [ip("127.7.0.9")]);
        let pod = ip("192.0.2.1");
        assert_eq!(addresses(pod), [pod, ip("127.0.0.1"), ip("::1")]);
    }
}
