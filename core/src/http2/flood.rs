//! Limits on frames that cost the agent something and carry nothing, so that only a caller that
//! does nothing useful for long runs out.

use std::time::{Duration, Instant};

use crate::http2::frames::{END_STREAM, FrameHeader, kind};

/// Frames without content that may come at once.
const MAX_EMPTY_FRAMES: u32 = 10_000;
/// Frames without content that time earns per second, far above what keep-alive and bandwidth
/// probing need.
const EMPTY_FRAMES_PER_SECOND: u32 = 1_000;
/// Requests given up before their answer, beyond those answered, that may come at once: a rapid
/// reset attack makes nothing else.
const MAX_GIVEN_UP: u32 = 5_000;
/// And how many time makes good per second: hedging clients and expired deadlines stay far below.
const GIVEN_UP_PER_SECOND: u32 = 500;

/// A budget that work earns and time earns.
#[derive(Debug)]
struct Budget {
    left: u32,
    most: u32,
    per_second: u32,
    refilled: Option<Instant>,
}

impl Budget {
    fn new(most: u32, per_second: u32) -> Self {
        Self {
            left: most,
            most,
            per_second,
            refilled: None,
        }
    }

    fn earn(&mut self, n: u32) {
        self.left = self.most.min(self.left.saturating_add(n));
    }

    /// Takes one out; `false` when there is none.
    fn spend(&mut self, now: Instant) -> bool {
        if self.left < self.most / 2 {
            self.refill(now);
        }
        let enough = self.left > 0;
        self.left = self.left.saturating_sub(1);
        enough
    }

    fn refill(&mut self, now: Instant) {
        let since = now.saturating_duration_since(*self.refilled.get_or_insert(now));
        if since >= Duration::from_millis(100) {
            // A minute's worth fits, and more than is full is of no use.
            let earned = since.as_secs_f64().min(60.0) * f64::from(self.per_second);
            self.earn(earned as u32);
            self.refilled = Some(now);
        }
    }
}

/// Budgets of one caller.
#[derive(Debug)]
pub struct FloodBudget {
    empty: Budget,
    given_up: Budget,
}

impl Default for FloodBudget {
    fn default() -> Self {
        Self {
            empty: Budget::new(MAX_EMPTY_FRAMES, EMPTY_FRAMES_PER_SECOND),
            given_up: Budget::new(MAX_GIVEN_UP, GIVEN_UP_PER_SECOND),
        }
    }
}

impl FloodBudget {
    /// Takes note of a frame of the caller: pings, settings, priorities, resets, empty DATA, header
    /// continuation and unknown ones carry nothing; each that does earns two. `false` when that was
    /// one too many.
    pub fn allows(&mut self, head: FrameHeader, now: Instant) -> bool {
        match head.kind {
            kind::HEADERS => self.empty.earn(2),
            kind::DATA if head.length > 0 || head.flags & END_STREAM != 0 => self.empty.earn(2),
            // Credit follows the data that was sent.
            kind::WINDOW_UPDATE => {}
            // Answers to frames of the other side.
            _ if head.is_ack() => {}
            _ => return self.empty.spend(now),
        }
        true
    }

    /// A request was answered.
    pub fn answered(&mut self) {
        self.given_up.earn(1);
    }

    /// A request was given up before its answer. `false` when that was one too many.
    pub fn given_up(&mut self, now: Instant) -> bool {
        self.given_up.spend(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(kind: u8, length: u32) -> FrameHeader {
        FrameHeader {
            length,
            kind,
            flags: 0,
            stream: 1,
        }
    }

    #[test]
    fn it_runs_out_unless_work_or_time_earns_it_back() {
        let start = Instant::now();
        let mut budget = Budget::new(1_000, 100);
        assert!((0..1_000).all(|_| budget.spend(start)));
        assert!(!budget.spend(start + Duration::from_millis(50)));
        assert!(budget.spend(start + Duration::from_secs(2)));
        assert_eq!(budget.left, 199);
        budget.spend(start + Duration::from_secs(4_000));
        assert_eq!(budget.left, 999);
        for _ in 0..100_000 {
            assert!(budget.spend(start));
            budget.earn(2);
        }
    }

    #[test]
    fn frames_without_content_run_out_unless_others_carry_something() {
        let now = Instant::now();
        let (ping, data) = (head(kind::PING, 8), head(kind::DATA, 1));
        let mut flood = FloodBudget::default();
        assert!((0..MAX_EMPTY_FRAMES).all(|_| flood.allows(ping, now)));
        assert!(!flood.allows(ping, now) && !flood.allows(head(kind::DATA, 0), now));
        let mut flood = FloodBudget::default();
        let busy = |_| flood.allows(ping, now) && flood.allows(data, now);
        assert!((0..10 * MAX_EMPTY_FRAMES).all(busy));
        assert!((0..2 * MAX_EMPTY_FRAMES).all(|_| flood.allows(head(kind::WINDOW_UPDATE, 4), now)));
    }

    #[test]
    fn requests_given_up_run_out_unless_others_are_answered() {
        let now = Instant::now();
        let mut flood = FloodBudget::default();
        assert!((0..MAX_GIVEN_UP).all(|_| flood.given_up(now)));
        assert!(!flood.given_up(now));
        flood.answered();
        assert!(flood.given_up(now));
    }
}
