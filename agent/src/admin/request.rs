//! A request to the admin server, its answer, and the row of the endpoint table that joins them.

use crate::admin::Agent;

/// One request, as far as the admin cares.
#[derive(Debug)]
pub struct AdminRequest<'a> {
    /// Whether the method is POST.
    pub post: bool,
    /// The method, for messages.
    pub method: &'a str,
    /// The path.
    pub path: &'a str,
    /// What follows the question mark.
    pub query: &'a str,
    /// The `Accept` header.
    pub accept: &'a str,
    /// Whether a browser sends it on behalf of another site.
    pub cross_site: bool,
}

/// One answer.
#[derive(Debug)]
pub struct Page {
    /// Status code.
    pub status: u16,
    /// Media type.
    pub content_type: &'static str,
    /// The body.
    pub body: String,
}

/// A path of the admin server and the function that answers it.
pub struct Endpoint {
    /// The path.
    pub path: &'static str,
    /// Whether it changes something, so that only POST is taken.
    pub post: bool,
    /// What it is for.
    pub help: &'static str,
    /// The function that answers.
    pub answer: fn(&AdminRequest<'_>, &Agent) -> Page,
}
