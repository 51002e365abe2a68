//! How a relayed connection ends when its streams have to be told apart: a GOAWAY in two steps (RFC
//! 9113 section 6.8), put between the app's frames.
//!
//! The first GOAWAY names the largest possible stream. Clients open no stream after they have read
//! it; streams that were on their way, or waiting in the client's own queues, still go to the app
//! like every stream that began before the rule. PINGs find out when no more of them come: the
//! second GOAWAY names the highest stream that was really relayed, and is sent when no stream is
//! open and two PINGs in a row have been answered without a stream in between. Two, because some
//! clients answer a PING ahead of requests that they have queued.
//!
//! A single GOAWAY with the highest id so far would be simpler, but a stream that crosses it on the
//! wire is refused, and common clients (those built on hyper) report that to their user instead of
//! trying again. Refusing it would also mean to withhold its header section from the app, whose
//! header decompression would then disagree with the caller's in every later section. Only a client
//! that goes on opening streams for [`GOAWAY_TIMEOUT`] is treated that way.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Sleep, sleep};

use traffic_core::http2::frames;
use traffic_core::http2::frames::MAX_STREAM;

/// How long a caller that has been told to leave may still open streams.
pub(crate) const GOAWAY_TIMEOUT: Duration = Duration::from_secs(5);

/// The PING's payload, by which the answer is told from answers to the app's own PINGs.
const MARK: [u8; 8] = *b"\xd3parting";

/// Frames of ours on their way to the caller.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outgoing {
    bytes: [u8; 34],
    from: usize,
    to: usize,
}

impl Outgoing {
    pub(crate) const NONE: Self = Self {
        bytes: [0; 34],
        from: 0,
        to: 0,
    };

    pub(crate) fn is_empty(&self) -> bool {
        self.from == self.to
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.bytes.get(self.from..self.to).unwrap_or_default()
    }

    pub(crate) fn consume(&mut self, n: usize) {
        self.from = self.to.min(self.from + n);
    }

    /// Appends as long as there is room, which holds for what [`Parting`] ever has pending at a
    /// time.
    pub(crate) fn push(&mut self, frame: &[u8]) {
        if self.is_empty() {
            (self.from, self.to) = (0, 0);
        }
        if let Some(room) = self.bytes.get_mut(self.to..self.to + frame.len()) {
            room.copy_from_slice(frame);
            self.to += frame.len();
        }
    }
}

#[derive(Debug)]
enum Step {
    /// The first GOAWAY waits for a gap between the app's frames.
    Warning,
    /// The caller has been told; streams that it opened before it knew may still arrive.
    Warned(Pin<Box<Sleep>>),
    /// The second GOAWAY is out or on its way; streams above this one are refused.
    Parted(u32),
}

/// The two steps, and what is pending to be put between frames to the caller.
#[derive(Debug)]
pub(crate) struct Parting {
    step: Step,
    /// The lowest last-stream id the caller was told, by us or by the app.
    announced: u32,
    /// The highest stream when the PING under way was sent.
    asked_at: Option<u32>,
    /// PINGs answered in a row without a new stream.
    calm: u32,
    /// What goes into the next gap.
    pub(crate) pending: Outgoing,
}

impl Parting {
    /// `highest` is the highest stream so far.
    pub(crate) fn begin(highest: u32) -> Self {
        let mut pending = Outgoing::NONE;
        pending.push(&frames::goaway(MAX_STREAM, 0));
        pending.push(&frames::ping(MARK, 0));
        Self {
            step: Step::Warning,
            announced: MAX_STREAM,
            asked_at: Some(highest),
            calm: 0,
            pending,
        }
    }

    /// Whether `payload` of a PING answer is that of one of ours.
    pub(crate) fn is_answer(&self, payload: &[u8]) -> bool {
        self.asked_at.is_some() && payload == MARK
    }

    /// The caller has answered our PING, when `highest` was the highest stream.
    pub(crate) fn answered(&mut self, highest: u32) {
        self.calm = if self.asked_at.take() == Some(highest) {
            self.calm + 1
        } else {
            0
        };
    }

    /// Goes on when no stream is open: asks again, or parts.
    pub(crate) fn idle(&mut self, highest: u32) {
        if self.asked_at.is_some() || !matches!(self.step, Step::Warned(_)) {
            return;
        }
        if self.calm >= 2 {
            self.part(highest);
        } else {
            self.asked_at = Some(highest);
            self.pending.push(&frames::ping(MARK, 0));
        }
    }

    /// What goes into the gap that has come.
    pub(crate) fn take_pending(&mut self) -> Outgoing {
        if matches!(self.step, Step::Warning) {
            self.step = Step::Warned(Box::pin(sleep(GOAWAY_TIMEOUT)));
        }
        std::mem::replace(&mut self.pending, Outgoing::NONE)
    }

    /// Names the last stream: `highest`, which was relayed; what comes after it is refused.
    pub(crate) fn part(&mut self, highest: u32) {
        if !matches!(self.step, Step::Parted(_)) {
            self.announced = self.announced.min(highest);
            self.pending.push(&frames::goaway(self.announced, 0));
            self.step = Step::Parted(highest);
        }
    }

    /// Ready when the caller's time is over.
    pub(crate) fn poll_patience(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.step {
            Step::Warned(sleep) => sleep.as_mut().poll(cx),
            Step::Warning | Step::Parted(_) => Poll::Pending,
        }
    }

    /// Whether a client's stream is one that the second GOAWAY refused.
    pub(crate) fn refuses(&self, stream: u32) -> bool {
        matches!(self.step, Step::Parted(highest) if stream > highest && stream % 2 == 1)
    }

    /// Whether the caller has been told everything.
    pub(crate) fn is_told(&self) -> bool {
        matches!(self.step, Step::Parted(_)) && self.pending.is_empty()
    }

    /// The id that may stand in a GOAWAY of the app's that names `last`: ids must not grow from one
    /// GOAWAY to the next.
    pub(crate) fn lower(&mut self, last: u32) -> u32 {
        self.announced = self.announced.min(last);
        self.announced
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(parting: &mut Parting) -> Vec<u8> {
        parting.take_pending().bytes().to_vec()
    }

    #[tokio::test]
    async fn parting_takes_two_quiet_pings_after_the_last_stream() {
        let mut parting = Parting::begin(5);
        parting.idle(5);
        assert_eq!(
            told(&mut parting),
            [frames::goaway(MAX_STREAM, 0), frames::ping(MARK, 0)].concat()
        );
        // A stream came before the answer: it does not count.
        parting.answered(7);
        for _ in 0..2 {
            parting.idle(7);
            parting.idle(7);
            assert_eq!(told(&mut parting), frames::ping(MARK, 0));
            assert!(parting.is_answer(&MARK) && !parting.is_answer(b"another!"));
            parting.answered(7);
            assert!(!parting.is_answer(&MARK), "only once for each PING");
        }
        parting.idle(7);
        assert!(parting.refuses(9) && !parting.refuses(7) && !parting.refuses(8));
        assert!(!parting.is_told());
        assert_eq!(told(&mut parting), frames::goaway(7, 0));
        assert!(parting.is_told());
        assert_eq!((parting.lower(9), parting.lower(3)), (7, 3));
    }
}
