//! Patience with an API server that is away: watches begin again within seconds of its return.

use std::time::Duration;

use kube::runtime::utils::Backoff;

/// First pause before a watch begins again.
const FIRST_DELAY: Duration = Duration::from_millis(500);
/// Longest pause. The library's is 30 s, which is how long everything would be late after a
/// restart of the API server.
const LONGEST_DELAY: Duration = Duration::from_secs(2);

/// Pauses between the tries of a watch: half a second, doubled up to two.
#[derive(Debug, Default)]
pub(super) struct WatchPauses {
    tries: u32,
}

impl Iterator for WatchPauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = FIRST_DELAY.saturating_mul(1 << self.tries.min(8));
        self.tries = self.tries.saturating_add(1);
        Some(pause.min(LONGEST_DELAY))
    }
}

impl Backoff for WatchPauses {
    fn reset(&mut self) {
        self.tries = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_two_seconds_and_begin_again_after_a_success() {
        let mut pauses = WatchPauses::default();
        let first: Vec<_> = pauses.by_ref().take(4).map(|it| it.as_millis()).collect();
        assert_eq!(first, [500, 1000, 2000, 2000]);
        assert_eq!(pauses.nth(1000), Some(LONGEST_DELAY));
        pauses.reset();
        assert_eq!(pauses.next(), Some(FIRST_DELAY));
    }
}
