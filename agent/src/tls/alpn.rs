//! The vocabulary of a TLS handshake: ALPN names, what the handshake found, what the app offers.

use std::sync::{Arc, LazyLock};

use futures_util::future::BoxFuture;
use rustls::crypto::CryptoProvider;

use crate::tls::identity::CallerIdentity;

/// The one crypto provider, named wherever a configuration is built: two providers in one program
/// would make the implicit choice panic.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    Arc::clone(&PROVIDER)
}

/// HTTP/2 in ALPN.
pub const H2: &[u8] = b"h2";
/// HTTP/1.1 in ALPN.
pub const HTTP1: &[u8] = b"http/1.1";

/// What the TLS handshake with the caller found; the app is dialled with the same, so that it sees
/// what the caller meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsInfo {
    /// The server name the caller asked for (SNI, RFC 6066 section 3).
    pub server_name: Option<String>,
    /// The protocol both agreed on (ALPN, RFC 7301).
    pub alpn: Option<Vec<u8>>,
    /// The caller's verified certificate, where the port asks callers for one.
    pub identity: Option<Arc<CallerIdentity>>,
}

/// Which of the HTTP protocols the app would agree to; nothing of both means that it takes no part
/// in ALPN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct AlpnOffer {
    /// `h2`.
    pub h2: bool,
    /// `http/1.1`.
    pub http1: bool,
}

/// What the handshake has to know of the app.
pub trait AppTls: Send + Sync + std::fmt::Debug {
    /// What the app offers. It may have to be asked, which takes a round trip once; an error says
    /// that it does not listen, so that the caller is refused as the app would have refused it.
    fn offers(&self) -> BoxFuture<'_, Result<AlpnOffer, AppUnavailable>>;

    /// Whether the app speaks first, in clear text: then no caller of it speaks TLS.
    fn greets(&self) -> BoxFuture<'_, bool>;
}

/// Nothing listens at the app's port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the app does not listen")]
pub struct AppUnavailable {
    /// What it most likely offers when it is back: what it offered before, or what it is declared
    /// to speak.
    pub likely: AlpnOffer,
}
