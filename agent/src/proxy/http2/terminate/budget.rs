//! A budget that work earns and time earns, so that only a caller that does nothing useful for long
//! runs out.

use std::time::{Duration, Instant};

/// What is left to a caller.
#[derive(Debug)]
pub(crate) struct Budget {
    left: u32,
    most: u32,
    per_second: u32,
    refilled: Option<Instant>,
}

impl Budget {
    /// Starts full, with `most`, and earns `per_second` by time alone.
    pub(crate) fn new(most: u32, per_second: u32) -> Self {
        Self {
            left: most,
            most,
            per_second,
            refilled: None,
        }
    }

    pub(crate) fn earn(&mut self, n: u32) {
        self.left = self.most.min(self.left + n);
    }

    /// Takes one out; `false` when there is none.
    pub(crate) fn spend(&mut self) -> bool {
        // The clock is asked only when the budget runs low.
        if self.left < self.most / 2 {
            self.refill(Instant::now());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_runs_out_unless_work_or_time_earns_it_back() {
        let mut budget = Budget::new(1_000, 100);
        assert!((0..1_000).all(|_| budget.spend()));
        assert!((0..1_000).take_while(|_| budget.spend()).count() < 500);
        let mut budget = Budget::new(1_000, 100);
        for _ in 0..100_000 {
            assert!(budget.spend());
            budget.earn(2);
        }
        let mut budget = Budget::new(1_000, 100);
        let start = Instant::now();
        budget.refilled = Some(start);
        budget.left = 0;
        budget.refill(start + Duration::from_millis(50));
        assert_eq!(budget.left, 0);
        budget.refill(start + Duration::from_secs(2));
        assert_eq!(budget.left, 200);
        budget.refill(start + Duration::from_secs(4_000));
        assert_eq!(budget.left, 1_000);
    }
}
