//! Waiting for events, with a generous deadline that only failures reach.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Time any event may take before a test fails: machines are slow and noisy.
pub const WAIT_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause between two looks.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Polls `ask` until it returns a value; panics with `what` if it does not in time.
pub fn until<T>(what: &str, ask: impl FnMut() -> Option<T>) -> T {
    until_within(WAIT_TIMEOUT, what, ask)
}

/// The same with another deadline.
pub fn until_within<T>(limit: Duration, what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited {limit:?} for {what}");
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Sets a flag when dropped, also by a panic: threads that run until the flag is set end when the
/// test that waits for them fails.
#[derive(Debug)]
pub struct SetAtEnd<'a>(pub &'a AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
