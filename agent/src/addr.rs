//! Address newtypes that cannot be mixed up: the caller's address and the app's.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// The peer address of a downstream connection; the source in a tunnel's connection id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Caller(pub SocketAddr);

/// The app's address as the agent dials it: the pod's address or loopback, with the port that
/// bypasses the redirect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AppAddr(pub SocketAddr);

impl Caller {
    /// Converts a v4-mapped IPv6 address (`::ffff:a.b.c.d`, as a dual-stack listener reports it) to
    /// IPv4, because peers key tunnels by the 13-byte form of IPv4 pairs.
    #[must_use]
    pub fn new(peer: SocketAddr) -> Self {
        Self(SocketAddr::new(unmapped(peer.ip()), peer.port()))
    }
}

fn unmapped(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(ip, IpAddr::V4),
        IpAddr::V4(_) => ip,
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for AppAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_caller_becomes_ipv4() {
        let mapped: SocketAddr = "[::ffff:10.1.2.3]:4711".parse().unwrap();
        assert_eq!(Caller::new(mapped).0, "10.1.2.3:4711".parse().unwrap());
    }
}
