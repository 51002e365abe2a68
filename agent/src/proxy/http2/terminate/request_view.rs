//! An HTTP/2 request as routing sees it.

use http::Request;

/// The request's path and header lines. `:authority` is shown, and as `host` where there is no such
/// line, because that is what it is for (RFC 9113 section 8.3.1).
pub(crate) struct View<'r, B>(pub(crate) &'r Request<B>);

impl<B> traffic_core::routing::Request for View<'_, B> {
    fn target(&self) -> &[u8] {
        self.0
            .uri()
            .path_and_query()
            .map_or(b"", |p| p.as_str().as_bytes())
    }

    fn visit_headers<'a>(&'a self, visit: &mut dyn FnMut(&'a [u8], &'a [u8])) {
        if let Some(authority) = self.0.uri().authority() {
            visit(b":authority", authority.as_str().as_bytes());
            if !self.0.headers().contains_key(http::header::HOST) {
                visit(b"host", authority.as_str().as_bytes());
            }
        }
        for (name, value) in self.0.headers() {
            visit(name.as_str().as_bytes(), value.as_bytes());
        }
    }
}
