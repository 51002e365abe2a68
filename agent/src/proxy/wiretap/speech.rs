//! Protocol of a copy.

use traffic_core::http1::head::{Head, Method};

/// Protocol of a copy, which decides where it ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Speech {
    /// An HTTP/1 request.
    Http1 {
        method: Method,
        /// Its caller means to keep the connection.
        persists: bool,
    },
    /// A whole connection.
    Unread,
}

impl From<&Head> for Speech {
    fn from(head: &Head) -> Self {
        Self::Http1 {
            method: head.method(),
            persists: head.persists(),
        }
    }
}
