//! Rate-limited log lines: repeats within an interval are only counted, and the next line carries
//! the count. A broken app, workstation or caller fails for every request, and a line for each
//! would help nobody.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Interval in which repeated lines of the data path are only counted.
pub const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Lets one line through in each interval.
#[derive(Debug)]
pub struct LogLimiter {
    every: Duration,
    /// Time on the process's clock, in milliseconds, from which the next line may be written.
    next: AtomicU64,
    held_back: AtomicU64,
}

/// Writes a `tracing` line at level `$level` if the [`LogLimiter`] `$lines` allows it, with
/// `repeated` if others were suppressed before. A suppressed line is still written at level debug.
///
/// ```
/// use traffic_agent::telemetry::rate_limit::{LogLimiter, limited};
/// let lines = LogLimiter::default();
/// for port in 0..1000 {
///     limited!(lines, warn, port, "something that happens for each request");
/// }
/// ```
#[macro_export]
macro_rules! limited {
    ($lines:expr, $level:ident, $($line:tt)+) => {
        match $lines.pass() {
            None => tracing::debug!($($line)+),
            Some(0) => tracing::$level!($($line)+),
            Some(repeated) => tracing::$level!(repeated, $($line)+),
        }
    };
}
pub use limited;

impl Default for LogLimiter {
    fn default() -> Self {
        Self::every(LOG_INTERVAL)
    }
}

impl LogLimiter {
    /// Creates a limiter with one line in each `every`.
    #[must_use]
    pub const fn every(every: Duration) -> Self {
        Self {
            every,
            next: AtomicU64::new(0),
            held_back: AtomicU64::new(0),
        }
    }

    /// Returns the number of lines suppressed since the last one if a line may be written now.
    pub fn pass(&self) -> Option<u64> {
        self.pass_at(now())
    }

    /// Implements [`Self::pass`] for a given time of the process's clock.
    fn pass_at(&self, now: u64) -> Option<u64> {
        let next = self.next.load(Ordering::Relaxed);
        let later = now.saturating_add(u64::try_from(self.every.as_millis()).unwrap_or(u64::MAX));
        let first = now >= next
            && self
                .next
                // Of several threads at the same moment only one writes its line.
                .compare_exchange(next, later, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if first {
            return Some(self.held_back.swap(0, Ordering::Relaxed));
        }
        self.held_back.fetch_add(1, Ordering::Relaxed);
        None
    }
}

fn now() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    u64::try_from(START.get_or_init(Instant::now).elapsed().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_in_an_interval_with_the_count_of_the_others() {
        let lines = LogLimiter::every(Duration::from_secs(10));
        assert_eq!(lines.pass_at(0), Some(0));
        assert_eq!((lines.pass_at(1), lines.pass_at(9_999)), (None, None));
        assert_eq!(lines.pass_at(10_000), Some(2));
        assert_eq!(lines.pass_at(25_000), Some(0));
    }
}
