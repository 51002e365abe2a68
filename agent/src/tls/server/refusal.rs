//! HandshakeRefused handshakes: the cause for counter, record and log, and the alert for the caller.

use tokio::net::TcpStream;

use crate::outcome::{Ended, Stage};
use crate::telemetry::metrics::TlsFailure;

/// The reason why a caller was turned away.
#[derive(Debug, thiserror::Error)]
#[error("TLS handshake: {detail}")]
pub struct HandshakeRefused {
    /// For the counter.
    pub cause: Option<TlsFailure>,
    /// For the connection's record.
    pub ended: Ended,
    /// For the log.
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

/// A failed handshake, and what is left to be said to the caller.
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
