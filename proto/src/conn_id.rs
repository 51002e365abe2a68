//! Id of a tunnelled connection: source, destination and transport, packed.
//!
//! Both ends use the packed bytes as a key, so an id read from the wire is kept and sent back byte
//! for byte, even where we would have packed the same addresses otherwise.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::Bytes;

use crate::port::Transport;

/// Length with IPv4 addresses: twice address and port, and the IP protocol number.
const SHORT: usize = 13;
/// Length with IPv6 addresses, IPv4 ones as `::ffff:a.b.c.d`.
const LONG: usize = 37;

/// Identity of a tunnelled connection or flow. Equal ids have equal bytes.
#[derive(Clone, Copy)]
pub struct ConnId {
    long: bool,
    bytes: [u8; LONG],
}

/// Error in the bytes of a connection id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnIdError {
    /// Length of neither form.
    #[error("a connection id has {SHORT} or {LONG} bytes, this one has {0}")]
    Length(usize),
    /// The last byte, the IP protocol number, is neither 6 (TCP) nor 17 (UDP).
    #[error("connection id with IP protocol {0}, expected 6 (TCP) or 17 (UDP)")]
    Protocol(u8),
}

impl ConnId {
    /// Packs a connection. The short form is used when both addresses are IPv4, also when a
    /// dual-stack socket reported them as v4-mapped IPv6; port 0 is packed as it is.
    pub fn new(transport: Transport, source: SocketAddr, destination: SocketAddr) -> Self {
        // Both ends must pack a v4-mapped address as IPv4, because they compare bytes.
        let (from, to) = (source.ip().to_canonical(), destination.ip().to_canonical());
        let (source_port, destination_port) = (
            source.port().to_be_bytes(),
            destination.port().to_be_bytes(),
        );
        let mut bytes = [0; LONG];
        let long = match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                bytes[..4].copy_from_slice(&from.octets());
                bytes[4..6].copy_from_slice(&source_port);
                bytes[6..10].copy_from_slice(&to.octets());
                bytes[10..12].copy_from_slice(&destination_port);
                bytes[SHORT - 1] = transport.number();
                false
            }
            (from, to) => {
                bytes[..16].copy_from_slice(&sixteen(from));
                bytes[16..18].copy_from_slice(&source_port);
                bytes[18..34].copy_from_slice(&sixteen(to));
                bytes[34..36].copy_from_slice(&destination_port);
                bytes[LONG - 1] = transport.number();
                true
            }
        };
        Self { long, bytes }
    }

    /// Parses an id from the wire; `as_bytes` returns the same bytes.
    pub fn parse(wire: &[u8]) -> Result<Self, ConnIdError> {
        let long = match wire.len() {
            SHORT => false,
            LONG => true,
            other => return Err(ConnIdError::Length(other)),
        };
        let protocol = wire[wire.len() - 1];
        if Transport::from_number(protocol).is_none() {
            return Err(ConnIdError::Protocol(protocol));
        }
        let mut bytes = [0; LONG];
        // Byte for byte, even if we would have packed the addresses differently.
        bytes[..wire.len()].copy_from_slice(wire);
        Ok(Self { long, bytes })
    }

    /// Returns the packed form.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..if self.long { LONG } else { SHORT }]
    }

    /// Returns the packed form in a buffer of its own.
    pub fn to_bytes(&self) -> Bytes {
        Bytes::copy_from_slice(self.as_bytes())
    }

    /// Returns the transport.
    pub fn transport(&self) -> Transport {
        match self.as_bytes().last() {
            Some(&number) if number == Transport::Udp.number() => Transport::Udp,
            _ => Transport::Tcp,
        }
    }

    /// Returns the address that opened the connection; a v4-mapped one as IPv4.
    pub fn source(&self) -> SocketAddr {
        self.address(0)
    }

    /// Returns the address to connect to; a v4-mapped one as IPv4.
    pub fn destination(&self) -> SocketAddr {
        self.address(1)
    }

    /// Returns address and port of the first (0) or second (1) half.
    fn address(&self, half: usize) -> SocketAddr {
        let bytes = &self.bytes;
        if self.long {
            // 16 bytes of address and 2 of port.
            let at = half * 18;
            let mut octets = [0; 16];
            octets.copy_from_slice(&bytes[at..at + 16]);
            let port = u16::from_be_bytes([bytes[at + 16], bytes[at + 17]]);
            SocketAddr::new(IpAddr::V6(Ipv6Addr::from(octets)).to_canonical(), port)
        } else {
            // 4 bytes of address and 2 of port.
            let at = half * 6;
            let ip = Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]);
            let port = u16::from_be_bytes([bytes[at + 4], bytes[at + 5]]);
            SocketAddr::new(IpAddr::V4(ip), port)
        }
    }
}

fn sixteen(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

impl PartialEq for ConnId {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for ConnId {}

impl Hash for ConnId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

/// Formats as `TCP 10.1.2.3:50000 -> 127.0.0.1:8080`.
impl fmt::Display for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {} -> {}",
            self.transport(),
            self.source(),
            self.destination()
        )
    }
}

impl fmt::Debug for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConnId({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    // 10.1.2.3 -> 0a 01 02 03, port 50000 -> c3 50, 192.168.0.1 -> c0 a8 00 01, port 8080 -> 1f 90,
    // TCP -> 06.
    const V4: [u8; 13] = [
        0x0a, 0x01, 0x02, 0x03, 0xc3, 0x50, 0xc0, 0xa8, 0x00, 0x01, 0x1f, 0x90, 0x06,
    ];

    // 2001:db8::1 -> 20 01 0d b8, eleven zeros, 01; port 53 -> 00 35; ::1 -> fifteen zeros, 01;
    // port 65535 -> ff ff; UDP -> 11.
    const V6: [u8; 37] = [
        0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x01, 0x00, 0x35, //
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x01, 0xff, 0xff, //
        0x11,
    ];

    // Source 10.1.2.3:50000 as ten zeros, ff ff, 0a 01 02 03, c3 50; destination [2001:db8::1]:80
    // with port 00 50; TCP -> 06.
    const MIXED: [u8; 37] = [
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0x0a, 0x01, 0x02, 0x03, 0xc3, 0x50, //
        0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x01, 0x00, 0x50, //
        0x06,
    ];

    #[test]
    fn ipv4_pairs_pack_into_thirteen_bytes() {
        let id = ConnId::new(
            Transport::Tcp,
            addr("10.1.2.3:50000"),
            addr("192.168.0.1:8080"),
        );
        assert_eq!(id.as_bytes(), V4);
        assert_eq!(id.to_string(), "TCP 10.1.2.3:50000 -> 192.168.0.1:8080");
    }

    #[test]
    fn v4_mapped_sides_pack_like_ipv4() {
        for (from, to) in [
            ("[::ffff:10.1.2.3]:50000", "192.168.0.1:8080"),
            ("10.1.2.3:50000", "[::ffff:192.168.0.1]:8080"),
            ("[::ffff:10.1.2.3]:50000", "[::ffff:192.168.0.1]:8080"),
        ] {
            let id = ConnId::new(Transport::Tcp, addr(from), addr(to));
            assert_eq!(id.as_bytes(), V4, "{from} {to}");
        }
    }

    #[test]
    fn ipv6_pairs_pack_into_thirty_seven_bytes() {
        let id = ConnId::new(
            Transport::Udp,
            addr("[2001:db8::1]:53"),
            addr("[::1]:65535"),
        );
        assert_eq!(id.as_bytes(), V6);
        assert_eq!(id.transport(), Transport::Udp);
    }

    #[test]
    fn mixed_pairs_store_the_ipv4_side_v4_mapped_and_give_it_back_as_ipv4() {
        let id = ConnId::new(
            Transport::Tcp,
            addr("10.1.2.3:50000"),
            addr("[2001:db8::1]:80"),
        );
        assert_eq!(id.as_bytes(), MIXED);
        assert_eq!(id.source(), addr("10.1.2.3:50000"));
        assert_eq!(id.destination(), addr("[2001:db8::1]:80"));
    }

    #[test]
    fn a_long_form_of_two_ipv4_addresses_keeps_its_bytes() {
        let mut wire = MIXED;
        wire[18..34].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xc0, 0xa8, 0, 1]);
        let id = ConnId::parse(&wire).unwrap();
        assert_eq!(id.as_bytes(), wire);
        assert_eq!(id.destination(), addr("192.168.0.1:80"));
        let short = ConnId::new(Transport::Tcp, id.source(), id.destination());
        assert_ne!(id, short, "the bytes are the key, not the addresses");
    }

    #[test]
    fn other_lengths_and_protocols_are_refused() {
        for length in (0..64).filter(|length| ![13, 37].contains(length)) {
            assert_eq!(
                ConnId::parse(&vec![6; length]),
                Err(ConnIdError::Length(length))
            );
        }
        let mut icmp = V4;
        icmp[12] = 1;
        assert_eq!(ConnId::parse(&icmp), Err(ConnIdError::Protocol(1)));
    }

    proptest! {
        #[test]
        fn packing_and_reading_are_inverse(
            udp: bool, from: IpAddr, from_port: u16, to: IpAddr, to_port: u16,
        ) {
            let transport = if udp { Transport::Udp } else { Transport::Tcp };
            let id = ConnId::new(
                transport,
                SocketAddr::new(from, from_port),
                SocketAddr::new(to, to_port),
            );
            prop_assert_eq!(id.transport(), transport);
            prop_assert_eq!(id.source(), SocketAddr::new(from.to_canonical(), from_port));
            prop_assert_eq!(id.destination(), SocketAddr::new(to.to_canonical(), to_port));
            let again = ConnId::parse(id.as_bytes()).unwrap();
            prop_assert_eq!(again, id);
            prop_assert_eq!(again.as_bytes(), id.as_bytes());
        }

        #[test]
        fn whatever_is_accepted_keeps_its_bytes(mut wire in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Some(last) = wire.last_mut() {
                *last = if *last % 2 == 0 { 6 } else { *last };
            }
            if let Ok(id) = ConnId::parse(&wire) {
                prop_assert_eq!(id.as_bytes(), &wire[..]);
                let _ = id.to_string();
            }
        }
    }
}
