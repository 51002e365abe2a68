//! Connection tracking of the kernel, by netlink: entries of redirected ports are dropped when
//! rules come, and the entry of a probe shows where it was led.

use std::net::{IpAddr, SocketAddr};

use rustix::io::Errno;
use rustix::net::netlink::NETFILTER;

use crate::netlink::{ACK, Attributes, REQUEST, Refusal, Socket, find, message};
use crate::plan::{Pod, PortPlan};
use crate::rule::{Family, Transport};

/// Subsystem of connection tracking, in the upper byte of a message type.
const TRACKING: u16 = 1 << 8;
const GET: u16 = TRACKING | 1;
const DELETE: u16 = TRACKING | 2;

/// Group of the events of new connections, as a bit.
const NEW_CONNECTIONS: u32 = 1;

/// `CTA_TUPLE_ORIG`: the first packet's addresses, as the sender wrote them.
const ORIGINAL: u16 = 1;
/// `CTA_TUPLE_REPLY`: the addresses of an answer.
const REPLY: u16 = 2;
/// `CTA_ID`.
const ID: u16 = 12;
/// `CTA_TUPLE_IP`.
const TUPLE_ADDRESSES: u16 = 1;
/// `CTA_TUPLE_PROTO`.
const TUPLE_TRANSPORT: u16 = 2;
/// `CTA_IP_V4_SRC`.
const V4_SOURCE: u16 = 1;
/// `CTA_IP_V4_DST`.
const V4_DESTINATION: u16 = 2;
/// `CTA_IP_V6_SRC`.
const V6_SOURCE: u16 = 3;
/// `CTA_IP_V6_DST`.
const V6_DESTINATION: u16 = 4;
/// `CTA_PROTO_NUM`.
const TRANSPORT_NUMBER: u16 = 1;
/// `CTA_PROTO_SRC_PORT`.
const SOURCE_PORT: u16 = 2;
/// `CTA_PROTO_DST_PORT`.
const DESTINATION_PORT: u16 = 3;

/// Addresses of one direction of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuple {
    /// Number of the transport.
    pub transport: u8,
    /// Sender.
    pub source: SocketAddr,
    /// Receiver.
    pub destination: SocketAddr,
}

impl Tuple {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let addresses = find(bytes, TUPLE_ADDRESSES)?;
        let transport = find(bytes, TUPLE_TRANSPORT)?;
        let address = |v4, v6| match find(addresses, v4) {
            Some(bytes) => Some(IpAddr::V4(<[u8; 4]>::try_from(bytes).ok()?.into())),
            None => {
                let bytes = <[u8; 16]>::try_from(find(addresses, v6)?).ok()?;
                Some(IpAddr::V6(bytes.into()))
            }
        };
        let port = |kind| {
            let bytes = find(transport, kind)?;
            Some(u16::from_be_bytes(bytes.try_into().ok()?))
        };
        Some(Self {
            transport: *find(transport, TRANSPORT_NUMBER)?.first()?,
            source: SocketAddr::new(address(V4_SOURCE, V6_SOURCE)?, port(SOURCE_PORT)?),
            destination: SocketAddr::new(
                address(V4_DESTINATION, V6_DESTINATION)?,
                port(DESTINATION_PORT)?,
            ),
        })
    }

    fn encode(&self) -> Attributes {
        let addresses = match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => Attributes::default()
                .bytes(V4_SOURCE, &source.octets())
                .bytes(V4_DESTINATION, &destination.octets()),
            (source, destination) => Attributes::default()
                .bytes(V6_SOURCE, &octets(source))
                .bytes(V6_DESTINATION, &octets(destination)),
        };
        let transport = Attributes::default()
            .bytes(TRANSPORT_NUMBER, &[self.transport])
            .bytes(SOURCE_PORT, &self.source.port().to_be_bytes())
            .bytes(DESTINATION_PORT, &self.destination.port().to_be_bytes());
        Attributes::default()
            .nest(TUPLE_ADDRESSES, addresses)
            .nest(TUPLE_TRANSPORT, transport)
    }
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(it) => it.to_ipv6_mapped().octets(),
        IpAddr::V6(it) => it.octets(),
    }
}

/// Fixed part in front of each message.
fn of(family: Family) -> Attributes {
    Attributes::default().fixed(&[family.number(), 0, 0, 0])
}

/// Drops the entries of connections to redirected ports, so that their next packets meet the rules.
/// Gives how many there were.
///
/// Errors: the kernel has no such interface, or refused.
pub fn drop_entries(ports: &[&PortPlan], pod: &Pod) -> Result<usize, Errno> {
    if is_empty() {
        return Ok(0);
    }
    let socket = Socket::open(Some(NETFILTER))?;
    let mut dropped = 0;
    for family in Family::ALL {
        if !pod.addresses.iter().any(|it| Family::of(*it) == family) {
            continue;
        }
        for body in socket.dump(GET, &of(family))? {
            let attributes = body.get(4..).unwrap_or_default();
            let Some(bytes) = find(attributes, ORIGINAL) else {
                continue;
            };
            let Some(tuple) = Tuple::parse(bytes) else {
                continue;
            };
            if is_redirected(&tuple, ports, pod) {
                let mut question = of(family).nest(ORIGINAL, tuple.encode());
                // An entry that came in its place meanwhile has another number.
                if let Some(id) = find(attributes, ID) {
                    question = question.bytes(ID, id);
                }
                match delete(&socket, &question) {
                    Ok(()) => dropped += 1,
                    Err(Errno::NOENT) => {}
                    Err(errno) => return Err(errno),
                }
            }
        }
    }
    Ok(dropped)
}

/// True when the namespace surely has no entry: the list of a whole node need not be read.
fn is_empty() -> bool {
    let count = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count");
    count.is_ok_and(|text| text.trim() == "0")
}

fn delete(socket: &Socket, question: &Attributes) -> Result<(), Errno> {
    let sequence = 1;
    let bytes = message(DELETE, REQUEST | ACK, sequence, question);
    socket
        .transact(&bytes, sequence)
        .map_err(|Refusal { errno, .. }| errno)
}

fn is_redirected(tuple: &Tuple, ports: &[&PortPlan], pod: &Pod) -> bool {
    let to = tuple.destination;
    let to_pod = to.ip().is_loopback() || pod.addresses.contains(&to.ip());
    let to_port = |port: &&PortPlan| {
        (port.container_port, port.transport.number()) == (to.port(), tuple.transport)
    };
    to_pod && ports.iter().any(to_port)
}

/// Follows connections to where the kernel leads them.
pub struct Follower {
    /// Hears of every new connection: one that is refused at once is forgotten at once.
    events: Socket,
    questions: Socket,
}

impl Follower {
    /// Begins to listen.
    ///
    /// Errors: the kernel has no such interface.
    pub fn new() -> Result<Self, Errno> {
        Ok(Self {
            events: Socket::subscribed(Some(NETFILTER), NEW_CONNECTIONS)?,
            questions: Socket::open(Some(NETFILTER))?,
        })
    }

    /// Finds where the kernel led a connection from `source` to `destination`: the address that
    /// answers it. To be asked once the connection is begun.
    ///
    /// Errors: `ENOENT` when the kernel knows no such connection.
    pub fn led_to(
        &self,
        transport: Transport,
        source: SocketAddr,
        destination: SocketAddr,
    ) -> Result<SocketAddr, Errno> {
        let tuple = Tuple {
            transport: transport.number(),
            source,
            destination,
        };
        let heard = self.events.events().unwrap_or_default();
        let told = heard.iter().find_map(|body| answered_from(body, &tuple));
        if let Some(address) = told {
            return Ok(address);
        }
        let question = of(Family::of(destination.ip())).nest(ORIGINAL, tuple.encode());
        let body = self.questions.ask(GET, &question)?;
        answered_from(&body, &tuple).ok_or(Errno::BADMSG)
    }
}

/// Address that answers the connection, when the entry is that of `wanted`.
fn answered_from(body: &[u8], wanted: &Tuple) -> Option<SocketAddr> {
    let attributes = body.get(4..)?;
    let tuple = |kind| find(attributes, kind).and_then(Tuple::parse);
    (tuple(ORIGINAL)? == *wanted).then(|| tuple(REPLY).map(|it| it.source))?
}

/// True when the kernel tells nobody of new connections, so that one that is refused at once cannot
/// be followed.
pub fn is_silent() -> bool {
    let events = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_events");
    events.is_ok_and(|text| text.trim() == "0")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_tuple_is_read_as_it_was_written() {
        for (source, destination) in [
            ("10.0.0.1:1000", "10.0.0.2:8080"),
            ("[fd00::1]:1000", "[fd00::2]:8080"),
        ] {
            let tuple = Tuple {
                transport: 6,
                source: source.parse().unwrap(),
                destination: destination.parse().unwrap(),
            };
            assert_eq!(Tuple::parse(&tuple.encode().0), Some(tuple));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = Tuple::parse(&bytes);
        }
    }
}
