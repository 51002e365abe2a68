//! What a declared app protocol says of TLS.

use super::plan::ToApp;

/// Returns true if a declared app protocol means clear text.
#[must_use]
pub fn is_clear_text(app_protocol: &str) -> bool {
    let lower = app_protocol.to_ascii_lowercase();
    matches!(
        lower.strip_prefix("kubernetes.io/").unwrap_or(&lower),
        "http"
            | "http1"
            | "http1.0"
            | "http1.1"
            | "http/1.0"
            | "http/1.1"
            | "h2c"
            | "ws"
            | "tcp"
            | "udp"
    )
}

/// Returns true if a declared app protocol means TLS. HTTP/2 and gRPC mean neither.
#[must_use]
pub fn is_tls(app_protocol: &str) -> bool {
    let lower = app_protocol.to_ascii_lowercase();
    matches!(
        lower.strip_prefix("kubernetes.io/").unwrap_or(&lower),
        "https" | "tls" | "wss"
    )
}

/// Decides TLS towards the app: declared clear text is believed unless an annotation gives this
/// very port a client certificate, which only makes sense with TLS; then the app is probed.
pub(super) fn to_app(app_protocol: &str, client_certificate_for_this_port: bool) -> ToApp {
    if is_tls(app_protocol) {
        ToApp::Tls
    } else if is_clear_text(app_protocol) && !client_certificate_for_this_port {
        ToApp::Clear
    } else {
        ToApp::Ask
    }
}
