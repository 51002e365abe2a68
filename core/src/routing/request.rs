//! View of a request for routing.

/// Parts of a request that routing reads; implemented for a parsed HTTP/1 head and for an HTTP/2
/// header map.
pub trait Request {
    /// Returns the method as received; nothing where there is none, as in questions about messages.
    fn method(&self) -> &[u8];
    /// Returns the request target as received, with its query; for absolute-form targets the path
    /// and the rest.
    fn target(&self) -> &[u8];
    /// Calls `visit` with name and value of every field line, in any letter case, in order.
    fn visit_headers<'a>(&'a self, visit: &mut dyn FnMut(&'a [u8], &'a [u8]));
}
