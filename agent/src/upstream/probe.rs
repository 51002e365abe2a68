//! Probes an undeclared app: TLS handshake, its HTTP protocol by ALPN, an HTTP/2 preface in clear
//! text, and whether it speaks first. Each probe is a connection of its own.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::tls;
use crate::upstream::AppError;
use crate::upstream::app::AppAddrs;

/// Time for an unknown app to answer a ClientHello. It usually answers in milliseconds; a busy one
/// must not be taken for a clear-text app.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// Time for a whole clear-text probe.
const CLEAR_TEXT_TIMEOUT: Duration = Duration::from_secs(1);

/// The app's answer to a TLS handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsAnswer {
    /// TLS, with the protocol chosen from those offered.
    Tls(Option<Vec<u8>>),
    /// TLS, but this handshake was refused by an alert.
    Refused,
    /// Other bytes: not TLS.
    NotTls,
    /// Closed without a byte: it rejected the ClientHello or is not ready yet.
    Closed,
    /// Accepted and silent: it may still be starting.
    Silent,
}

/// Performs a handshake with what `config` offers; `patience` covers an app that accepts before it
/// is ready.
///
/// # Errors
/// The app does not listen.
pub async fn tls(
    app: &AppAddrs,
    config: &Arc<ClientConfig>,
    name: &ServerName<'static>,
    patience: Duration,
) -> Result<TlsAnswer, AppError> {
    let (conn, _own) = app.connect_marked().await?;
    let connector = TlsConnector::from(Arc::clone(config));
    Ok(
        match timeout(patience, connector.connect(name.clone(), conn)).await {
            Ok(Ok(stream)) => {
                TlsAnswer::Tls(stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec))
            }
            Ok(Err(error)) => read_failure(&error),
            Err(_) => TlsAnswer::Silent,
        },
    )
}

/// Classifies a failed handshake: it may still show that the peer speaks TLS.
pub(crate) fn read_failure(error: &io::Error) -> TlsAnswer {
    use rustls::Error as E;
    match error.get_ref().and_then(|inner| inner.downcast_ref::<E>()) {
        None => TlsAnswer::Closed,
        // An echo server answers a ClientHello with a ClientHello: well-formed, but not TLS.
        Some(
            E::InvalidMessage(_)
            | E::InappropriateMessage { .. }
            | E::InappropriateHandshakeMessage { .. },
        ) => TlsAnswer::NotTls,
        Some(_) => TlsAnswer::Refused,
    }
}

/// Returns true if the app answers an HTTP/2 preface in clear text with its SETTINGS (RFC 9113
/// sections 3.3 and 3.4). `None` if it accepted and stayed silent.
///
/// # Errors
/// The app does not listen.
pub async fn h2c(app: &AppAddrs) -> Result<Option<bool>, AppError> {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    const SETTINGS_ACK: &[u8] = b"\0\0\0\x04\x01\0\0\0\0";
    const GOAWAY: &[u8] = b"\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let (mut conn, _own) = app.connect_marked().await?;
    let question = async {
        conn.write_all(PREFACE).await?;
        let mut header = [0; 9];
        conn.read_exact(&mut header).await?;
        let [l0, l1, l2, kind, flags, stream @ ..] = header;
        let length = u32::from_be_bytes([0, l0, l1, l2]);
        let settings = kind == 4
            && flags == 0
            && stream == [0; 4]
            && length.is_multiple_of(6)
            && length <= 1024;
        if settings {
            // Closing properly keeps errors out of the app's log; it has answered already.
            let mut payload = vec![0; usize::try_from(length).unwrap_or_default()];
            conn.read_exact(&mut payload).await?;
            conn.write_all(SETTINGS_ACK).await?;
            conn.write_all(GOAWAY).await?;
        }
        io::Result::Ok(settings)
    };
    match timeout(CLEAR_TEXT_TIMEOUT, question).await {
        Ok(answer) => Ok(Some(answer.unwrap_or(false))),
        Err(_) => Ok(None),
    }
}

/// Protocol of an undeclared app.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    /// TLS with any protocol inside.
    Tls,
    /// HTTP/2 in clear text.
    H2c,
    /// Other.
    Other,
}

/// Probes for TLS first, then for HTTP/2 in clear text. `None` if the app accepted and stayed
/// silent both times.
///
/// # Errors
/// The app does not listen.
pub async fn speaks(app: &AppAddrs) -> Result<Option<Speaks>, AppError> {
    let name = ServerName::IpAddress(app.configured().0.ip().into());
    let config = tls::client::config::anonymous(&[tls::alpn::H2, tls::alpn::HTTP1]);
    let config = config.map_err(|e| AppError::Tls {
        addr: app.configured(),
        source: io::Error::other(e),
    })?;
    match self::tls(app, &config, &name, PROBE_TIMEOUT).await? {
        TlsAnswer::Tls(_) | TlsAnswer::Refused => return Ok(Some(Speaks::Tls)),
        TlsAnswer::NotTls | TlsAnswer::Closed | TlsAnswer::Silent => {}
    }
    Ok(h2c(app)
        .await?
        .map(|yes| if yes { Speaks::H2c } else { Speaks::Other }))
}

/// Returns true if the app sends bytes on a fresh connection before it receives any.
///
/// # Errors
/// The app does not listen.
pub async fn speaks_first(app: &AppAddrs) -> Result<bool, AppError> {
    let (mut conn, _own) = app.connect_marked().await?;
    let mut first = [0; 1];
    Ok(matches!(
        timeout(CLEAR_TEXT_TIMEOUT, conn.read(&mut first)).await,
        Ok(Ok(1))
    ))
}
