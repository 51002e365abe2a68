//! The handshake a port's secret asks for; ALPN as the app would offer it.

pub mod store;

/// What the TLS handshake with the caller found; the app is dialled with the same, so that it sees what the caller
/// meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hello {
    /// The server name the caller asked for (SNI, RFC 6066 section 3).
    pub server_name: Option<String>,
    /// The protocol both agreed on (ALPN, RFC 7301).
    pub alpn: Option<Vec<u8>>,
    /// The caller's verified certificate, where the port asks callers for one.
    pub identity: Option<std::sync::Arc<Identity>>,
}

/// Who a verified caller is, by its certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The value of the header that hands the identity on.
    pub header_value: String,
}

/// What one port needs to terminate TLS: its certificates and limits.
#[derive(Debug, Default)]
pub struct Port {}
