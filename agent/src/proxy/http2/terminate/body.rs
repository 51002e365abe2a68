//! One direction of one stream: data as the receiver's window allows, then trailers. Nothing is
//! collected: a chunk is held until it can be sent on, and only then is its sender given new
//! credit.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};

/// A direction under way.
pub(crate) struct Pump {
    from: RecvStream,
    to: SendStream<Bytes>,
    held: Bytes,
    data_over: bool,
    done: bool,
    moved: u64,
}

/// Why a direction ended before its sender had said all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// The sender reset the stream; for this reason, when it told one.
    BySender(Option<Reason>),
    /// The receiver reset the stream, or its connection broke.
    ByReceiver(Option<Reason>),
}

impl Pump {
    pub(crate) fn new(from: RecvStream, to: SendStream<Bytes>) -> Self {
        Self {
            from,
            to,
            held: Bytes::new(),
            data_over: false,
            done: false,
            moved: 0,
        }
    }

    /// For a direction whose end was sent with its beginning.
    pub(crate) fn finished(from: RecvStream, to: SendStream<Bytes>) -> Self {
        Self {
            done: true,
            ..Self::new(from, to)
        }
    }

    /// Bytes handed on so far.
    pub(crate) fn moved(&self) -> u64 {
        self.moved
    }

    pub(crate) fn is_done(&self) -> bool {
        self.done
    }

    pub(crate) fn reset(&mut self, reason: Reason) {
        self.to.send_reset(reason);
    }

    /// The reason for which the receiver reset the stream, or `None` where its connection broke.
    pub(crate) fn poll_receiver_gone(&mut self, cx: &mut Context<'_>) -> Poll<Option<Reason>> {
        self.to.poll_reset(cx).map(Result::ok)
    }

    /// Ready when everything, end of stream included, has been handed on.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Cut>> {
        while !self.done {
            if !self.held.is_empty() {
                ready!(self.poll_send(cx))?;
            } else if self.data_over {
                let trailers =
                    ready!(self.from.poll_trailers(cx)).map_err(|e| Cut::BySender(e.reason()))?;
                self.done = true;
                match trailers {
                    Some(trailers) => self.to.send_trailers(trailers),
                    None => self.to.send_data(Bytes::new(), true),
                }
                .map_err(|_| Cut::ByReceiver(None))?;
            } else {
                match self.from.poll_data(cx) {
                    Poll::Ready(Some(Ok(chunk))) if chunk.is_empty() => self.send(chunk)?,
                    Poll::Ready(Some(Ok(chunk))) => self.held = chunk,
                    Poll::Ready(Some(Err(e))) => {
                        return Poll::Ready(Err(Cut::BySender(e.reason())));
                    }
                    Poll::Ready(None) => self.data_over = true,
                    Poll::Pending => {
                        let gone = ready!(self.poll_receiver_gone(cx));
                        return Poll::Ready(Err(Cut::ByReceiver(gone)));
                    }
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Sends as much of what is held as the receiver takes.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Cut>> {
        self.to.reserve_capacity(self.held.len());
        let mut room = self.to.capacity();
        if room == 0 {
            match self.to.poll_capacity(cx) {
                Poll::Ready(Some(Ok(n))) => room = n,
                Poll::Ready(_) => return Poll::Ready(Err(Cut::ByReceiver(self.reset_reason(cx)))),
                Poll::Pending => {
                    // A sender that gives up is noticed even while the receiver does not take what
                    // is held.
                    let gone = ready!(self.poll_receiver_gone(cx));
                    return Poll::Ready(Err(Cut::ByReceiver(gone)));
                }
            }
        }
        let part = self.held.split_to(room.min(self.held.len()));
        let n = part.len();
        self.send(part)?;
        // An error says that the stream is gone, which the next poll finds out as well.
        let _ = self.from.flow_control().release_capacity(n);
        Poll::Ready(Ok(()))
    }

    fn send(&mut self, part: Bytes) -> Result<(), Cut> {
        let end = self.held.is_empty() && self.from.is_end_stream();
        self.done = end;
        self.moved += part.len() as u64;
        self.to
            .send_data(part, end)
            .map_err(|_| Cut::ByReceiver(None))
    }

    fn reset_reason(&mut self, cx: &mut Context<'_>) -> Option<Reason> {
        match self.poll_receiver_gone(cx) {
            Poll::Ready(reason) => reason,
            Poll::Pending => None,
        }
    }
}
