//! Backoff of watches while the API server is away: they begin again within seconds of its return.

use std::time::Duration;

use kube::runtime::utils::Backoff;

/// First delay before a watch begins again.
const FIRST_DELAY: Duration = Duration::from_millis(500);
/// Longest delay. The library's is 30 s, which is how long everything would be late after a
/// restart of the API server.
const LONGEST_DELAY: Duration = Duration::from_secs(2);

/// Delays between the tries of a watch: half a second, doubled up to two.
#[derive(Debug, Default)]
pub(super) struct WatchBackoff {
    tries: u32,
}

impl Iterator for WatchBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let delay = FIRST_DELAY.saturating_mul(1 << self.tries.min(8));
        self.tries = self.tries.saturating_add(1);
        Some(delay.min(LONGEST_DELAY))
    }
}

impl Backoff for WatchBackoff {
    fn reset(&mut self) {
        self.tries = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_two_seconds_and_begin_again_after_a_success() {
        let mut backoff = WatchBackoff::default();
        let first: Vec<_> = backoff.by_ref().take(4).map(|it| it.as_millis()).collect();
        assert_eq!(first, [500, 1000, 2000, 2000]);
        assert_eq!(backoff.nth(1000), Some(LONGEST_DELAY));
        backoff.reset();
        assert_eq!(backoff.next(), Some(FIRST_DELAY));
    }
}
