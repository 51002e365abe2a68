//! Where connections on behalf of workstations may lead: anywhere in the cluster, but not back into
//! the process that dials, whose own ports trust who reaches them, and not to link-local addresses,
//! where clouds hand out the credentials of the node.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::str::FromStr;

use crate::port::Transport;

/// Addresses outside the link-local ranges under which clouds serve metadata or credentials.
const METADATA: [IpAddr; 5] = [
    // Alibaba, Azure, Oracle.
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    // Amazon, Google.
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
];

/// A range of addresses: `169.254.20.10`, `169.254.0.0/16`, `fe80::/10`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressRange {
    first: IpAddr,
    length: u8,
}

/// A text that is no range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no address and no range of addresses")]
pub struct NoRange;

/// Reason a destination is not dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DialRefusal {
    /// A port of the process itself.
    OwnPort,
    /// A link-local or metadata address that is not allowed.
    LinkLocal,
}

/// The rules for destinations.
#[derive(Clone, Debug, Default)]
pub struct DialPolicy {
    own_ports: Vec<u16>,
    own_addresses: Vec<IpAddr>,
    allowed: Vec<AddressRange>,
}

impl DialPolicy {
    /// Creates one that allows link-local addresses in `allowed` only.
    #[must_use]
    pub fn new(allowed: Vec<AddressRange>) -> Self {
        Self {
            allowed,
            ..Self::default()
        }
    }

    /// Adds TCP ports of the process itself, and addresses that are its own besides those the
    /// kernel knows.
    #[must_use]
    pub fn with_own(
        mut self,
        ports: impl IntoIterator<Item = u16>,
        addresses: impl IntoIterator<Item = IpAddr>,
    ) -> Self {
        self.own_ports.extend(ports);
        self.own_addresses.extend(addresses);
        self
    }

    /// Decides about a destination.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn check(&self, transport: Transport, destination: SocketAddr) -> Result<(), DialRefusal> {
        let ip = destination.ip().to_canonical();
        if is_link_local(ip) && !self.allowed.iter().any(|range| range.contains(ip)) {
            return Err(DialRefusal::LinkLocal);
        }
        let is_port = transport == Transport::Tcp && self.own_ports.contains(&destination.port());
        if is_port && self.is_here(ip) {
            return Err(DialRefusal::OwnPort);
        }
        Ok(())
    }

    /// Returns true if connections to `ip` stay on this host.
    fn is_here(&self, ip: IpAddr) -> bool {
        ip.is_loopback()
            // The kernel takes it for loopback.
            || ip.is_unspecified()
            || self.own_addresses.contains(&ip)
            // Only an address of this host can be bound, whatever interface or route it comes from.
            || UdpSocket::bind((ip, 0)).is_ok()
    }
}

/// Returns true for link-local and metadata addresses, also those that IPv6 carries inside.
fn is_link_local(ip: IpAddr) -> bool {
    METADATA.contains(&ip)
        || match ip {
            IpAddr::V4(ip) => ip.is_link_local(),
            IpAddr::V6(ip) => {
                ip.is_unicast_link_local()
                    || carried(ip).is_some_and(|inside| is_link_local(inside.into()))
            }
        }
}

/// The IPv4 address that a translator or tunnel would take from `ip`: 64:ff9b::/96, 2002::/16, and
/// the old compatible form.
fn carried(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let from = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Some(Ipv4Addr::new(a, b, c, d))
    };
    match ip.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => from(high, low),
        [0x2002, high, low, ..] => from(high, low),
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 => from(high, low),
        _ => None,
    }
}

impl AddressRange {
    /// Returns true if `ip` lies in the range.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        match (self.first, ip) {
            (IpAddr::V4(first), IpAddr::V4(ip)) => {
                let differ = u32::from(first) ^ u32::from(ip);
                differ.leading_zeros() >= u32::from(self.length)
            }
            (IpAddr::V6(first), IpAddr::V6(ip)) => {
                let differ = u128::from(first) ^ u128::from(ip);
                differ.leading_zeros() >= u32::from(self.length)
            }
            _ => false,
        }
    }
}

impl FromStr for AddressRange {
    type Err = NoRange;

    fn from_str(text: &str) -> Result<Self, NoRange> {
        let (ip, length) = match text.trim().split_once('/') {
            Some((ip, length)) => (ip, Some(length.parse::<u8>().map_err(|_| NoRange)?)),
            None => (text.trim(), None),
        };
        let first: IpAddr = ip.parse().map_err(|_| NoRange)?;
        let most = if first.is_ipv4() { 32 } else { 128 };
        let length = length.unwrap_or(most);
        if length > most {
            return Err(NoRange);
        }
        Ok(Self { first, length })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(policy: &DialPolicy, destination: &str) -> Result<(), DialRefusal> {
        policy.check(Transport::Tcp, destination.parse().unwrap())
    }

    #[test]
    fn own_ports_are_refused_under_every_address_of_this_host() {
        let policy = DialPolicy::default().with_own([19000], ["10.1.2.3".parse().unwrap()]);
        for own in [
            "127.0.0.1:19000",
            "127.9.9.9:19000",
            "0.0.0.0:19000",
            "[::1]:19000",
            "[::]:19000",
            "[::ffff:127.0.0.1]:19000",
            "[::ffff:0.0.0.0]:19000",
            "10.1.2.3:19000",
            "[::ffff:10.1.2.3]:19000",
        ] {
            assert_eq!(check(&policy, own), Err(DialRefusal::OwnPort), "{own}");
        }
        for other in ["127.0.0.1:8080", "10.1.2.4:19000", "192.0.2.1:19000"] {
            assert_eq!(check(&policy, other), Ok(()), "{other}");
        }
        let udp = policy.check(Transport::Udp, "127.0.0.1:19000".parse().unwrap());
        assert_eq!(udp, Ok(()));
    }

    #[test]
    fn link_local_addresses_are_refused_unless_allowed() {
        let ranges = ["169.254.20.0/24", "fe80::1"].map(|range| range.parse().unwrap());
        let policy = DialPolicy::new(ranges.to_vec());
        for refused in [
            "169.254.169.254:80",
            "[::ffff:169.254.169.254]:80",
            "[64:ff9b::a9fe:a9fe]:80",
            "[2002:a9fe:a9fe::1]:80",
            "[::a9fe:a9fe]:80",
            "[fe80::2]:80",
            "[fd00:ec2::254]:80",
            "100.100.100.200:80",
            "168.63.129.16:80",
        ] {
            assert_eq!(
                check(&policy, refused),
                Err(DialRefusal::LinkLocal),
                "{refused}"
            );
        }
        for fine in [
            "169.254.20.10:53",
            "[fe80::1]:80",
            "10.0.0.1:80",
            "[2001:db8::1]:80",
        ] {
            assert_eq!(check(&policy, fine), Ok(()), "{fine}");
        }
    }

    #[test]
    fn ranges_are_read_strictly() {
        for wrong in [
            "",
            "10.0.0.0/33",
            "10.0.0/8",
            "::/129",
            "host",
            "10.0.0.0/-1",
        ] {
            assert_eq!(wrong.parse::<AddressRange>(), Err(NoRange), "{wrong}");
        }
        let all: AddressRange = "0.0.0.0/0".parse().unwrap();
        assert!(all.contains("169.254.1.1".parse().unwrap()));
        assert!(!all.contains("fe80::1".parse().unwrap()));
    }
}
