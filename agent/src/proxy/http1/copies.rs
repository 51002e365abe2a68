//! Copies of requests for wiretaps, taken from the bytes that are marked to be sent.

use std::sync::Arc;

use crate::proxy::http1::connection::Connection;
use crate::proxy::http1::pipe::Pipe;
use crate::proxy::wiretap::lanes::Copies;
use crate::proxy::wiretap::speech::Speech;
use traffic_core::http1::body::Body;
use traffic_core::http1::head::Head;
use traffic_core::routing::Intercept;

impl Connection {
    /// Begins copies of a request for `wiretaps` with what has arrived of it.
    pub(crate) fn copy_to(&mut self, wiretaps: &[Arc<Intercept>], head: &Head, body: &Body) {
        let lanes = self.lanes.get_or_insert_default();
        let begun = lanes.begin(wiretaps, &Speech::from(head), &self.context);
        self.copies = begun.map(Box::new);
        follow(&mut self.copies, &self.request, body);
    }
}

/// Copies the bytes that have just been marked as sendable; a complete body completes the copies.
pub(crate) fn follow(copies: &mut Option<Box<Copies>>, request: &Pipe, body: &Body) {
    let Some(open) = copies else { return };
    if !open.push(request.sendable()) {
        *copies = None;
    } else if body.is_done()
        && let Some(complete) = copies.take()
    {
        complete.finish();
    }
}
