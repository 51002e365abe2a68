//! How a relayed connection ends when its streams have to be told apart: a GOAWAY in two steps (RFC 9113 section
//! 6.8), put between the app's frames.
//!
//! The first GOAWAY names the largest possible stream and is followed by a PING. Clients open no stream after
//! reading it; streams that were on their way meanwhile still go to the app, like every stream that began before the
//! rule. The answer to the PING proves that nothing more is on its way, so the second GOAWAY can name the highest
//! stream that was really relayed. A single GOAWAY with that id would be simpler, but a stream that crosses it on
//! the wire is refused, and common clients (those built on hyper) report that to their caller instead of trying
//! again. Refusing it would also need its header section to be withheld from the app, whose header decompression
//! would then disagree with the caller's in every later section.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Sleep, sleep};

use super::frames::{self, MAX_STREAM};

/// How long a caller may take to answer the PING. One that is slower has its later streams refused.
const PATIENCE: Duration = Duration::from_secs(5);

/// The PING's payload, by which the answer is told from answers to the app's own PINGs.
const MARK: [u8; 8] = *b"\xd3parting";

/// Frames of ours on their way to the caller.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outgoing {
    bytes: [u8; 34],
    from: usize,
    to: usize,
}

impl Outgoing {
    pub(super) const NONE: Self = Self { bytes: [0; 34], from: 0, to: 0 };

    pub(super) fn is_empty(&self) -> bool {
        self.from == self.to
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.get(self.from..self.to).unwrap_or_default()
    }

    pub(super) fn consume(&mut self, n: usize) {
        self.from = self.to.min(self.from + n);
    }

    /// Appends as long as there is room, which holds for what [`Parting`] ever has pending at a time.
    pub(super) fn push(&mut self, frame: &[u8]) {
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
    /// The first GOAWAY and the PING wait for a gap, or for the caller to read them.
    Warning,
    /// The caller has been told; streams that it opened before it knew may still arrive.
    Warned(Pin<Box<Sleep>>),
    /// The second GOAWAY is out or on its way; streams above this one are refused.
    Parted(u32),
}

/// The two steps, and what is pending to be put between frames to the caller.
#[derive(Debug)]
pub(super) struct Parting {
    step: Step,
    /// The lowest last-stream id the caller was told, by us or by the app.
    announced: u32,
    /// What goes into the next gap.
    pub(super) pending: Outgoing,
}

impl Parting {
    pub(super) fn begin() -> Self {
        let mut pending = Outgoing::NONE;
        pending.push(&frames::goaway(MAX_STREAM, 0));
        pending.push(&frames::ping(MARK, 0));
        Self { step: Step::Warning, announced: MAX_STREAM, pending }
    }

    /// Whether `payload` of a PING answer is the one we are waiting for.
    pub(super) fn is_answer(&self, payload: &[u8]) -> bool {
        matches!(self.step, Step::Warned(_)) && payload == MARK
    }

    /// What goes into the gap that has come.
    pub(super) fn take_pending(&mut self) -> Outgoing {
        if matches!(self.step, Step::Warning) {
            self.step = Step::Warned(Box::pin(sleep(PATIENCE)));
        }
        std::mem::replace(&mut self.pending, Outgoing::NONE)
    }

    /// The caller has answered, or its time is over; `highest` is the last stream that was relayed.
    pub(super) fn part(&mut self, highest: u32) {
        if !matches!(self.step, Step::Parted(_)) {
            self.announced = self.announced.min(highest);
            self.pending.push(&frames::goaway(self.announced, 0));
            self.step = Step::Parted(highest);
        }
    }

    /// Ready when the caller's time to answer is over.
    pub(super) fn poll_patience(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.step {
            Step::Warned(sleep) => sleep.as_mut().poll(cx),
            Step::Warning | Step::Parted(_) => Poll::Pending,
        }
    }

    /// Whether a client's stream is one that the second GOAWAY refused.
    pub(super) fn refuses(&self, stream: u32) -> bool {
        matches!(self.step, Step::Parted(highest) if stream > highest && stream % 2 == 1)
    }

    /// Whether the caller has been told everything.
    pub(super) fn is_told(&self) -> bool {
        matches!(self.step, Step::Parted(_)) && self.pending.is_empty()
    }

    /// The id that may stand in a GOAWAY of the app's that names `last`: ids must not grow from one GOAWAY to the
    /// next.
    pub(super) fn lower(&mut self, last: u32) -> u32 {
        self.announced = self.announced.min(last);
        self.announced
    }
}
