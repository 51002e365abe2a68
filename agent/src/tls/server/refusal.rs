//! Refused handshakes: the cause for counter, record and log, and the alert for the caller.

use tokio::net::TcpStream;

use crate::outcome::{Ended, Stage};
use crate::telemetry::metrics::TlsFailure;

/// Reason a caller was refused.
#[derive(Debug, thiserror::Error)]
#[error("TLS handshake: {detail}")]
pub struct HandshakeRefused {
    /// Counter to increment.
    pub cause: Option<TlsFailure>,
    /// Outcome of the connection.
    pub ended: Ended,
    /// Detail for the log.
    pub detail: String,
}

impl HandshakeRefused {
    pub(crate) fn new(cause: TlsFailure, detail: impl Into<String>) -> Self {
        let ended = match cause {
            TlsFailure::Timeout => Ended::TimedOut(Stage::Handshake),
            TlsFailure::Closed => Ended::CallerLeft,
            _ => Ended::Handshake,
        };
        Self {
            cause: Some(cause),
            ended,
            detail: detail.into(),
        }
    }
}

/// A failed handshake and the alert still to be sent.
pub(crate) struct FailedHandshake {
    pub(crate) refused: HandshakeRefused,
    pub(crate) alert: Vec<u8>,
    pub(crate) socket: Option<TcpStream>,
}

impl From<HandshakeRefused> for FailedHandshake {
    fn from(refused: HandshakeRefused) -> Self {
        Self {
            refused,
            alert: Vec::new(),
            socket: None,
        }
    }
}
