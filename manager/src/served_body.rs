//! The body of an answer; its connection counts as in use until the body is sent or given up.

use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::{Body, Frame, SizeHint};

use crate::connections::Serving;

/// A body with its request's hold on the connection.
pub(crate) struct ServedBody<B> {
    body: B,
    #[expect(dead_code, reason = "held until the answer is over")]
    serving: Option<Serving>,
}

impl<B> ServedBody<B> {
    pub(crate) fn new(body: B, serving: Option<Serving>) -> Self {
        Self { body, serving }
    }
}

impl<B: Body + Unpin> Body for ServedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
