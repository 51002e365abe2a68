//! Vocabulary of a TLS handshake: ALPN names, the handshake's result, the app's ALPN offer.

use std::sync::{Arc, LazyLock};

use futures_util::future::BoxFuture;
use rustls::crypto::CryptoProvider;

use crate::tls::identity::CallerIdentity;

/// Returns the only crypto provider, named explicitly for every configuration: with two providers
/// in one program the implicit choice panics.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    Arc::clone(&PROVIDER)
}

/// ALPN name of HTTP/2.
pub const H2: &[u8] = b"h2";
/// ALPN name of HTTP/1.1.
pub const HTTP1: &[u8] = b"http/1.1";

/// Result of the TLS handshake with the caller; the app is dialled with the same parameters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsInfo {
    /// Server name from the ClientHello (SNI, RFC 6066 section 3).
    pub server_name: Option<String>,
    /// Negotiated protocol (ALPN, RFC 7301).
    pub alpn: Option<Vec<u8>>,
    /// Verified certificate of the caller, if the port asks callers for one.
    pub identity: Option<Arc<CallerIdentity>>,
}

/// HTTP protocols the app would agree to; neither means that it does not use ALPN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct AlpnOffer {
    /// The app accepts `h2`.
    pub h2: bool,
    /// The app accepts `http/1.1`.
    pub http1: bool,
}

/// Facts about the app that the handshake with a caller needs.
pub trait AppTls: Send + Sync + std::fmt::Debug {
    /// Returns the app's ALPN offer. It may have to be probed, which takes a round trip once; an
    /// error means that the app does not listen, so the caller is refused as by the app.
    fn offers(&self) -> BoxFuture<'_, Result<AlpnOffer, AppUnavailable>>;

    /// Returns true if the app speaks first, in clear text; its callers then never speak TLS.
    fn speaks_first(&self) -> BoxFuture<'_, bool>;
}

/// The app's port refuses connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the app does not listen")]
pub struct AppUnavailable {
    /// Most likely offer once the app is back: its previous one, or the declared one.
    pub likely: AlpnOffer,
}
