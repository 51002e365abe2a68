//! Requests to the admin server, its responses, and the endpoint type that joins them.

use crate::admin::Agent;

/// Parts of a request that the admin uses.
#[derive(Debug)]
pub struct AdminRequest<'a> {
    /// The method is POST.
    pub post: bool,
    /// Method, for messages.
    pub method: &'a str,
    /// Path without the query.
    pub path: &'a str,
    /// Query after the question mark.
    pub query: &'a str,
    /// The `Accept` header.
    pub accept: &'a str,
    /// A browser sends it on behalf of another site.
    pub cross_site: bool,
}

/// A response.
#[derive(Debug)]
pub struct Page {
    /// Status code.
    pub status: u16,
    /// Media type.
    pub content_type: &'static str,
    /// Response body.
    pub body: String,
}

/// A path of the admin server and its handler.
pub struct Endpoint {
    /// Path that selects the endpoint.
    pub path: &'static str,
    /// The endpoint changes something, so only POST is accepted.
    pub post: bool,
    /// Description on the index page.
    pub help: &'static str,
    /// Handler of the endpoint.
    pub answer: fn(&AdminRequest<'_>, &Agent) -> Page,
}
