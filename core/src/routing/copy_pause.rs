//! Pause of a wiretap whose workstation does not keep up: each copy that is tried then would leave
//! more bytes on a way that moves none.

use std::sync::atomic::{AtomicU64, Ordering};

/// Seconds of the first pause.
const FIRST: u64 = 1;
/// Seconds of the longest.
const LONGEST: u64 = 30;

/// Pauses that become longer until the workstation answers; times are seconds of any clock.
#[derive(Debug, Default)]
pub struct CopyPause {
    until: AtomicU64,
    length: AtomicU64,
}

impl CopyPause {
    /// Returns true if no copy is to be tried.
    #[must_use]
    pub fn is_on(&self, now: u64) -> bool {
        now < self.until.load(Ordering::Relaxed)
    }

    /// Begins a pause, twice as long as the one before.
    pub fn begin(&self, now: u64) {
        if self.is_on(now) {
            return;
        }
        let before = self.length.load(Ordering::Relaxed);
        let length = (before * 2).clamp(FIRST, LONGEST);
        self.length.store(length, Ordering::Relaxed);
        self.until.store(now + length, Ordering::Relaxed);
    }

    /// Notes that the workstation keeps up, so that the next pause is short.
    pub fn keeps_up(&self) {
        self.length.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_until_the_workstation_keeps_up() {
        let pause = CopyPause::default();
        assert!(!pause.is_on(100));
        for (now, until) in [
            (100, 101),
            (101, 103),
            (103, 107),
            (107, 115),
            (115, 131),
            (131, 161),
        ] {
            pause.begin(now);
            // Others that find out meanwhile change nothing.
            pause.begin(now);
            assert!(pause.is_on(until - 1) && !pause.is_on(until), "{now}");
        }
        pause.begin(161);
        assert!(pause.is_on(190) && !pause.is_on(191), "no longer than that");
        pause.keeps_up();
        pause.begin(200);
        assert!(!pause.is_on(201));
    }
}
