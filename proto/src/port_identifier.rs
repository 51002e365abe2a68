//! Port identifiers as users write them: `<name|number>[/TCP|/UDP]`; and the further ports of an
//! intercept.

use std::fmt;
use std::str::FromStr;

use crate::port::Transport;

/// A port by name or number, with an optional transport.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PortIdentifier {
    /// Name or number of the port.
    pub port: NameOrNumber,
    /// Transport, if written. It restricts only then; see [`PortIdentifier::transport_or_tcp`] for
    /// a default.
    pub transport: Option<Transport>,
}

/// The part before the slash.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum NameOrNumber {
    /// Name of a service or container port.
    Name(String),
    /// Port number, not 0.
    Number(u16),
}

/// A further port of an intercept as its spec has it: `PORT[:LOCAL][/TCP|/UDP]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FurtherPort {
    /// Port of the pod.
    pub identifier: PortIdentifier,
    /// Local port as written; without one it has the number of the pod's.
    pub local: Option<String>,
}

/// Error in a port identifier.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortIdentifierError {
    /// The part before the slash is empty.
    #[error(
        "port identifier {0:?} without a name or number; write name, number, or either with /TCP \
        or /UDP"
    )]
    Empty(String),
    /// A number that no port has.
    #[error("port identifier {0:?} with a number out of range; write 1 to 65535")]
    Number(String),
    /// An unknown transport after the slash.
    #[error("port identifier {0:?} with an unknown protocol; write /TCP or /UDP")]
    Transport(String),
}

impl PortIdentifier {
    /// Returns the transport, TCP by default.
    pub fn transport_or_tcp(&self) -> Transport {
        self.transport.unwrap_or(Transport::Tcp)
    }

    /// Returns true if this means the port with this name, number and transport.
    pub fn names(&self, name: &str, number: Option<u16>, transport: Transport) -> bool {
        self.transport.is_none_or(|wanted| wanted == transport)
            && match &self.port {
                NameOrNumber::Name(wanted) => wanted == name,
                NameOrNumber::Number(wanted) => Some(*wanted) == number,
            }
    }
}

impl FromStr for PortIdentifier {
    type Err = PortIdentifierError;

    fn from_str(text: &str) -> Result<Self, PortIdentifierError> {
        let (port, transport) = match text.split_once('/') {
            None => (text, None),
            Some((port, transport)) => match transport.parse() {
                Ok(transport) => (port, Some(transport)),
                Err(_) => return Err(PortIdentifierError::Transport(text.to_owned())),
            },
        };
        let port = if port.is_empty() {
            return Err(PortIdentifierError::Empty(text.to_owned()));
        } else if port.bytes().all(|byte| byte.is_ascii_digit()) {
            match port.parse() {
                Ok(number) if number != 0 => NameOrNumber::Number(number),
                _ => return Err(PortIdentifierError::Number(text.to_owned())),
            }
        } else {
            NameOrNumber::Name(port.to_owned())
        };
        Ok(Self { port, transport })
    }
}

impl FromStr for FurtherPort {
    type Err = PortIdentifierError;

    fn from_str(text: &str) -> Result<Self, PortIdentifierError> {
        let (ports, transport) = match text.split_once('/') {
            Some((ports, transport)) => (ports, format!("/{transport}")),
            None => (text, String::new()),
        };
        let (port, local) = match ports.split_once(':') {
            Some((port, local)) => (port, Some(local.to_owned())),
            None => (ports, None),
        };
        let identifier = format!("{port}{transport}").parse()?;
        Ok(Self { identifier, local })
    }
}

impl fmt::Display for FurtherPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PortIdentifier { port, transport } = &self.identifier;
        port.fmt(f)?;
        if let Some(local) = &self.local {
            write!(f, ":{local}")?;
        }
        match transport {
            Some(transport) => write!(f, "/{transport}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for PortIdentifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.port.fmt(f)?;
        match self.transport {
            Some(transport) => write!(f, "/{transport}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for NameOrNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Number(number) => number.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parsed(text: &str) -> PortIdentifier {
        text.parse().unwrap()
    }

    #[test]
    fn names_and_numbers_with_and_without_transport_are_read() {
        let port = parsed("http");
        assert_eq!(port.port, NameOrNumber::Name("http".to_owned()));
        assert_eq!(port.transport, None);
        assert_eq!(port.transport_or_tcp(), Transport::Tcp);
        let port = parsed("8080/UDP");
        assert_eq!(port.port, NameOrNumber::Number(8080));
        assert_eq!(port.transport, Some(Transport::Udp));
        assert_eq!(parsed("dns/udp").to_string(), "dns/UDP");
        assert_eq!(parsed("8o80").port, NameOrNumber::Name("8o80".to_owned()));
    }

    #[test]
    fn what_names_no_port_is_refused_with_the_reason() {
        use PortIdentifierError::*;
        for text in ["", "/TCP"] {
            assert_eq!(text.parse::<PortIdentifier>(), Err(Empty(text.to_owned())));
        }
        for text in ["0", "65536/TCP", "99999999999999999999"] {
            assert_eq!(text.parse::<PortIdentifier>(), Err(Number(text.to_owned())));
        }
        for text in ["http/", "80/SCTP", "80/TCP/UDP"] {
            assert_eq!(
                text.parse::<PortIdentifier>(),
                Err(Transport(text.to_owned()))
            );
        }
    }

    #[test]
    fn an_unwritten_transport_names_both() {
        for transport in [Transport::Tcp, Transport::Udp] {
            assert!(parsed("53").names("dns", Some(53), transport));
            assert!(parsed("dns").names("dns", Some(53), transport));
        }
        assert!(!parsed("53/TCP").names("dns", Some(53), Transport::Udp));
        assert!(!parsed("53").names("53", None, Transport::Udp));
        assert!(!parsed("web").names("dns", Some(53), Transport::Tcp));
    }

    #[test]
    fn further_ports_are_read_and_printed() {
        for (text, port, local) in [
            ("admin:9001", "admin", Some("9001")),
            ("53:5353/udp", "53/UDP", Some("5353")),
            ("70/TCP", "70/TCP", None),
        ] {
            let further: FurtherPort = text.parse().unwrap();
            assert_eq!(further.identifier, parsed(port));
            assert_eq!(further.local.as_deref(), local);
            assert_eq!(further.to_string().parse(), Ok(further));
        }
        for text in ["", ":80", "80:81/SCTP", "0:80"] {
            assert!(text.parse::<FurtherPort>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_the_same(text in "[a-z0-9-]{1,8}(/(TCP|UDP))?|.*") {
            if let Ok(port) = text.parse::<PortIdentifier>() {
                prop_assert_eq!(parsed(&port.to_string()), port);
            }
        }
    }
}
