//! The first step of a handshake: TLS detection, reading the ClientHello within its limits,
//! and sending alerts.

use std::io;
use std::time::Duration;

use rustls::server::{Accepted, Acceptor};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::telemetry::metrics::TlsFailure;
use crate::tls::alpn::{H2, HTTP1, TlsInfo};
use crate::tls::failure::classify;
use crate::tls::server::refusal::FailedHandshake;
use crate::tls::server::refusal::HandshakeRefused;

/// Kind of a connection's first bytes.
pub(crate) enum RecordKind {
    /// The beginning of a handshake.
    Tls,
    /// Clear text. `TlsInfo` holds the ALPN with which to dial an app that wants TLS.
    Clear(Option<TlsInfo>),
}

impl RecordKind {
    /// Classifies the first bytes: a handshake record (RFC 8446 section 5.1) starts with 22, which
    /// no text protocol does.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        match bytes {
            [22, 3, ..] | [22] => Self::Tls,
            [b'P', b'R', b'I', ..] => Self::Clear(Some(TlsInfo {
                alpn: Some(H2.to_vec()),
                ..TlsInfo::default()
            })),
            [b'A'..=b'Z', b'A'..=b'Z', ..] => Self::Clear(Some(TlsInfo {
                alpn: Some(HTTP1.to_vec()),
                ..TlsInfo::default()
            })),
            _ => Self::Clear(None),
        }
    }
}

/// Fatal alert 70 (RFC 8446 section 6.2), for callers without TLS 1.2: it says more than the
/// general alert they would get.
const PROTOCOL_VERSION: &[u8] = &[21, 3, 1, 0, 2, 2, 70];

/// Reads a ClientHello of at most `limit` bytes.
pub(crate) async fn read_hello(
    socket: &mut TcpStream,
    limit: usize,
) -> Result<Accepted, FailedHandshake> {
    let quiet = |cause, detail: String| FailedHandshake::from(HandshakeRefused::new(cause, detail));
    let closed = |detail| quiet(TlsFailure::Closed, detail);
    let malformed = |detail| quiet(TlsFailure::Malformed, detail);
    let mut acceptor = Acceptor::default();
    let mut chunk = [0; 2048];
    let mut total = 0;
    loop {
        let n = match socket.read(&mut chunk).await {
            Ok(0) => return Err(closed("the caller closed in its ClientHello".into())),
            Ok(n) => n,
            Err(error) => return Err(closed(error.to_string())),
        };
        total += n;
        let mut bytes = chunk.get(..n).unwrap_or_default();
        while !bytes.is_empty() {
            if acceptor.read_tls(&mut bytes).is_err() {
                return Err(malformed("the ClientHello is too large".into()));
            }
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => return Ok(accepted),
            Ok(None) if total > limit => {
                let detail = format!("the ClientHello has more than {limit} bytes");
                return Err(malformed(detail));
            }
            Ok(None) => {}
            Err((error, mut alert)) => {
                let cause = classify(&error);
                let mut bytes = Vec::new();
                match cause {
                    TlsFailure::Version => bytes.extend_from_slice(PROTOCOL_VERSION),
                    // Writing to a vector does not fail.
                    _ => drop(alert.write_all(&mut bytes)),
                }
                let refused = HandshakeRefused::new(cause, error.to_string());
                return Err(FailedHandshake {
                    alert: bytes,
                    ..refused.into()
                });
            }
        }
    }
}

/// Sends the alert and waits briefly for the caller's end: closing over unread bytes would be a
/// reset, which can overtake the alert.
pub(crate) async fn send_alert_and_close(mut socket: TcpStream, alert: &[u8]) {
    let goodbye = async {
        if !alert.is_empty() {
            socket.write_all(alert).await?;
        }
        socket.shutdown().await?;
        let mut rest = [0; 1024];
        let mut patience = 64;
        while patience > 0 && socket.read(&mut rest).await? > 0 {
            patience -= 1;
        }
        io::Result::Ok(())
    };
    let _ = timeout(Duration::from_millis(500), goodbye).await;
}
