//! Whom a request claims to ask, and on whose behalf. A page of a foreign site can make a browser
//! send requests here under a name of its own that leads to this address (DNS rebinding); such a
//! name is none of ours, and neither is the page's origin.

use std::net::IpAddr;

/// Names of this program beyond loopback: the pod's and its addresses.
#[derive(Clone, Debug, Default)]
pub struct OwnNames {
    names: Vec<String>,
    addresses: Vec<IpAddr>,
}

impl OwnNames {
    /// Takes the pod's name and address.
    #[must_use]
    pub fn new(pod: &str, address: Option<IpAddr>) -> Self {
        let names = [pod.to_owned()].into_iter().filter(|name| !name.is_empty());
        Self {
            names: names.collect(),
            addresses: address.into_iter().collect(),
        }
    }

    /// Adds the address a connection arrived at.
    #[must_use]
    pub fn with_address(&self, address: Option<IpAddr>) -> Self {
        let mut names = self.clone();
        names.addresses.extend(address.map(|ip| ip.to_canonical()));
        names
    }

    /// Returns true if `authority`, a host with or without a port, is a name of this program.
    #[must_use]
    pub fn contain(&self, authority: &str) -> bool {
        let Some(host) = host_of(authority) else {
            return false;
        };
        if let Ok(ip) = host.parse::<IpAddr>() {
            let ip = ip.to_canonical();
            return ip.is_loopback() || self.addresses.contains(&ip);
        }
        let host = host.strip_suffix('.').unwrap_or(host);
        let is = |name: &str| name.eq_ignore_ascii_case(host);
        is("localhost") || self.names.iter().any(|name| is(name))
    }
}

/// Returns true if the origin of a page is the server that `authority` names.
#[must_use]
pub fn is_same_origin(origin: &str, authority: &str) -> bool {
    let of_page = origin
        .strip_prefix("http://")
        .or_else(|| origin.strip_prefix("https://"));
    // Browsers leave out the port of the scheme alike in both.
    of_page.is_some_and(|of_page| !of_page.is_empty() && of_page.eq_ignore_ascii_case(authority))
}

/// The host of `host:port`, without the brackets of an IPv6 address; `None` if it is malformed.
fn host_of(authority: &str) -> Option<&str> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']')?;
            host.parse::<std::net::Ipv6Addr>().ok()?;
            (host, port)
        }
        None => {
            let end = authority.find(':').unwrap_or(authority.len());
            authority.split_at(end)
        }
    };
    let is_port = match port.strip_prefix(':') {
        Some(digits) => digits.bytes().all(|digit| digit.is_ascii_digit()),
        None => port.is_empty(),
    };
    is_port.then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_and_the_pods_own_names_are_ours() {
        let own = OwnNames::new("web-1", Some("10.0.0.5".parse().unwrap()))
            .with_address(Some("::ffff:10.0.0.6".parse().unwrap()));
        for ours in [
            "localhost",
            "LOCALHOST:19000",
            "localhost.",
            "127.0.0.1:19000",
            "127.8.8.8",
            "[::1]:19000",
            "[::1]",
            "[::ffff:127.0.0.1]:1",
            "10.0.0.5:19000",
            "10.0.0.6",
            "web-1:19000",
        ] {
            assert!(own.contain(ours), "{ours}");
        }
        for foreign in [
            "",
            "evil.example",
            "localhost.evil.example:19000",
            "evil.localhost",
            "10.0.0.7",
            "0.0.0.0:19000",
            "127.0.0.1.nip.io",
            "127.0.0.1@evil.example",
            "localhost:80:80",
            "[::1",
            "[localhost]",
            "[::1]x",
            "2130706433",
            "[::]:19000",
        ] {
            assert!(!own.contain(foreign), "{foreign}");
        }
        assert!(!OwnNames::new("", None).contain(""));
    }

    #[test]
    fn an_origin_is_compared_with_its_port() {
        assert!(is_same_origin("http://localhost:19000", "localhost:19000"));
        for foreign in [
            "null",
            "",
            "http://",
            "http://localhost:3000",
            "http://evil.example",
            "localhost:19000",
            "file://localhost:19000",
        ] {
            assert!(!is_same_origin(foreign, "localhost:19000"), "{foreign}");
        }
    }
}
