//! The view of a request that routing needs.

/// The parts of a request that routing reads; implemented over a parsed HTTP/1 head and over an HTTP/2 header
/// map.
pub trait Request {
    /// The request target as received, query included; for absolute-form targets the path and what
    /// follows.
    fn target(&self) -> &[u8];
    /// Calls `visit` with name and value of every field line, in any letter case, in order.
    fn visit_headers<'a>(&'a self, visit: &mut dyn FnMut(&'a [u8], &'a [u8]));
}
