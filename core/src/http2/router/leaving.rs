//! Asks a caller to leave without losing a request that crosses the asking (RFC 9113 section
//! 6.8): in two steps, with frames of ours between the app's.
//!
//! The first GOAWAY names the largest possible stream. Clients open no stream after they have read
//! it; streams that were on their way, or waiting in the client's own queues, are still served.
//! PINGs find out when no more of them come: the second GOAWAY names the highest stream that was
//! served, and is sent when no stream is open and two PINGs in a row have been answered without a
//! stream in between. Two, because some clients answer a PING ahead of requests that they have
//! queued.
//!
//! A single GOAWAY with the highest id so far would be simpler, but a stream that crosses it on the
//! wire is refused, and common clients (those built on hyper) report that to their user instead of
//! trying again. Only a client that goes on opening streams for [`GOAWAY_TIMEOUT`] is treated that
//! way.

use std::time::{Duration, Instant};

use crate::http2::frames::{self, MAX_STREAM, code};

/// Time in which a caller that has been told to leave may still open streams.
pub const GOAWAY_TIMEOUT: Duration = Duration::from_secs(5);

/// PINGs answered in a row without a stream in between, after which no more streams are expected.
const QUIET_PINGS: u32 = 2;

/// The PING's payload, by which the answer is told from answers to the app's own PINGs.
const MARK: [u8; 8] = *b"\xd3goaway?";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LeavePhase {
    /// The caller has been told; streams that it opened before it knew may still arrive.
    Warned { until: Instant },
    /// Streams above this one are refused.
    Final(u32),
}

/// A caller that has been asked to leave.
#[derive(Debug)]
pub(super) struct Leaving {
    phase: LeavePhase,
    /// The lowest last-stream id that the caller was told, by us or by the app.
    announced: u32,
    /// The highest stream when the PING under way was sent.
    asked_at: Option<u32>,
    quiet: u32,
}

impl Leaving {
    /// The first step. `highest` is the highest stream so far.
    pub(super) fn begin(now: Instant, highest: u32, out: &mut Vec<u8>) -> Self {
        out.extend_from_slice(&frames::goaway(MAX_STREAM, code::NO_ERROR));
        out.extend_from_slice(&frames::ping(MARK, 0));
        Self {
            phase: LeavePhase::Warned {
                until: now + GOAWAY_TIMEOUT,
            },
            announced: MAX_STREAM,
            asked_at: Some(highest),
            quiet: 0,
        }
    }

    /// Both steps at once, where nothing more can be served.
    pub(super) fn at_once(highest: u32, out: &mut Vec<u8>) -> Self {
        out.extend_from_slice(&frames::goaway(highest, code::NO_ERROR));
        Self {
            phase: LeavePhase::Final(highest),
            announced: highest,
            asked_at: None,
            quiet: 0,
        }
    }

    /// Takes the payload of a PING's answer; `false` where it answers none of ours.
    pub(super) fn answered(&mut self, payload: &[u8], highest: u32) -> bool {
        let Some(at) = self.asked_at.filter(|_| payload == MARK) else {
            return false;
        };
        self.asked_at = None;
        self.quiet = if at == highest { self.quiet + 1 } else { 0 };
        true
    }

    /// Goes on where that is due. `idle` says that no stream is open.
    pub(super) fn advance(&mut self, now: Instant, highest: u32, idle: bool, out: &mut Vec<u8>) {
        let LeavePhase::Warned { until } = self.phase else {
            return;
        };
        if now >= until || (idle && self.quiet >= QUIET_PINGS) {
            self.announced = self.announced.min(highest);
            out.extend_from_slice(&frames::goaway(self.announced, code::NO_ERROR));
            self.phase = LeavePhase::Final(highest);
        } else if idle && self.asked_at.is_none() {
            self.asked_at = Some(highest);
            out.extend_from_slice(&frames::ping(MARK, 0));
        }
    }

    /// Returns the lowest last-stream id that the caller was told.
    pub(super) fn announced(&self) -> u32 {
        self.announced
    }

    /// Returns the end of the caller's time.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.phase {
            LeavePhase::Warned { until } => Some(until),
            LeavePhase::Final(_) => None,
        }
    }

    /// Returns true if a stream is one that the second GOAWAY refused.
    pub(super) fn refuses(&self, stream: u32) -> bool {
        matches!(self.phase, LeavePhase::Final(highest) if stream > highest)
    }

    /// Returns true if the caller has been told everything.
    pub(super) fn is_final(&self) -> bool {
        matches!(self.phase, LeavePhase::Final(_))
    }

    /// The id that may stand in a GOAWAY of the app's that names `last`: ids must not grow from one
    /// GOAWAY to the next.
    pub(super) fn lower(&mut self, last: u32) -> u32 {
        self.announced = self.announced.min(last);
        self.announced
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(out: &mut Vec<u8>) -> Vec<u8> {
        std::mem::take(out)
    }

    #[test]
    fn leaving_takes_two_quiet_pings_after_the_last_stream() {
        let (now, mut out) = (Instant::now(), Vec::new());
        let mut leaving = Leaving::begin(now, 5, &mut out);
        leaving.advance(now, 5, true, &mut out);
        assert_eq!(
            told(&mut out),
            [frames::goaway(MAX_STREAM, 0), frames::ping(MARK, 0)].concat()
        );
        // A stream came before the answer: it does not count.
        assert!(leaving.answered(&MARK, 7));
        for _ in 0..2 {
            leaving.advance(now, 7, false, &mut out);
            assert!(out.is_empty());
            leaving.advance(now, 7, true, &mut out);
            leaving.advance(now, 7, true, &mut out);
            assert_eq!(told(&mut out), frames::ping(MARK, 0));
            assert!(!leaving.answered(b"another!", 7));
            assert!(leaving.answered(&MARK, 7) && !leaving.answered(&MARK, 7));
        }
        assert!(!leaving.is_final() && leaving.deadline() == Some(now + GOAWAY_TIMEOUT));
        leaving.advance(now, 7, true, &mut out);
        assert_eq!(told(&mut out), frames::goaway(7, 0));
        assert!(leaving.refuses(9) && !leaving.refuses(7) && leaving.is_final());
        assert_eq!((leaving.lower(9), leaving.lower(3)), (7, 3));
    }

    #[test]
    fn a_caller_that_never_comes_to_rest_has_its_time() {
        let (now, mut out) = (Instant::now(), Vec::new());
        let mut leaving = Leaving::begin(now, 5, &mut out);
        told(&mut out);
        leaving.advance(now + GOAWAY_TIMEOUT, 9, false, &mut out);
        assert_eq!(told(&mut out), frames::goaway(9, 0));
        assert!(leaving.refuses(11));
    }
}
