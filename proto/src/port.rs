//! Port newtypes that cannot be mixed up, and the transport they belong to.
//!
//! A pod has three kinds: the app port, the agent port, and the proxy port, an unused number by
//! which the agent's own traffic reaches the app past the redirect.

use std::fmt;
use std::num::NonZeroU16;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

macro_rules! port {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(NonZeroU16);

        impl $name {
            /// Creates the port; none for 0.
            pub const fn new(number: u16) -> Option<Self> {
                match NonZeroU16::new(number) {
                    Some(number) => Some(Self(number)),
                    None => None,
                }
            }

            /// Returns the number.
            pub const fn get(self) -> u16 {
                self.0.get()
            }
        }

        impl From<NonZeroU16> for $name {
            fn from(number: NonZeroU16) -> Self {
                Self(number)
            }
        }

        impl From<$name> for u16 {
            fn from(port: $name) -> Self {
                port.get()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
    };
}

port!(
    /// Port the app container listens on.
    AppPort
);
port!(
    /// Port the agent listens on in the app's stead.
    AgentPort
);
port!(
    /// Port the agent dials to reach the app past the pod's redirect: the redirect maps it back to
    /// the app's port, and no process listens on it.
    ProxyPort
);

/// The transport protocol of a port or a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Transport {
    /// Written `TCP`, IP protocol 6.
    Tcp,
    /// Written `UDP`, IP protocol 17.
    Udp,
}

impl Transport {
    /// Returns the IP protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }

    /// Returns the transport with this IP protocol number, if tunnels carry it.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            _ => None,
        }
    }

    /// Returns `TCP` or `UDP`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Error: the text names no transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown transport protocol; write TCP or UDP")]
pub struct UnknownTransport;

impl FromStr for Transport {
    type Err = UnknownTransport;

    /// Parses `TCP` or `UDP` in any letter case.
    fn from_str(text: &str) -> Result<Self, UnknownTransport> {
        [Self::Tcp, Self::Udp]
            .into_iter()
            .find(|transport| transport.name().eq_ignore_ascii_case(text))
            .ok_or(UnknownTransport)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_zero_does_not_exist() {
        assert_eq!(AppPort::new(0), None);
        assert!(serde_json::from_str::<AgentPort>("0").is_err());
    }

    #[test]
    fn ports_read_and_print_as_numbers() {
        let port = AgentPort::new(9900).unwrap();
        assert_eq!(port.to_string(), "9900");
        assert_eq!(format!("{port:?}"), "AgentPort(9900)");
        assert_eq!(serde_json::to_string(&port).unwrap(), "9900");
        assert_eq!(serde_json::from_str::<AgentPort>("9900").unwrap(), port);
    }

    #[test]
    fn transports_are_written_in_capitals_and_read_in_any_case() {
        assert_eq!(Transport::Udp.to_string(), "UDP");
        assert_eq!("tcp".parse(), Ok(Transport::Tcp));
        assert_eq!("Udp".parse(), Ok(Transport::Udp));
        assert_eq!("sctp".parse::<Transport>(), Err(UnknownTransport));
        assert_eq!(serde_json::to_string(&Transport::Tcp).unwrap(), "\"TCP\"");
        assert_eq!(Transport::from_number(17), Some(Transport::Udp));
        assert_eq!(Transport::from_number(1), None);
    }
}
