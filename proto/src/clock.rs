//! Wall-clock time.

use std::time::{SystemTime, UNIX_EPOCH};

/// Returns the seconds since 1970; 0 where the clock stands before that.
#[must_use]
pub fn now_unix() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
