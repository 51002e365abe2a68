//! Says once what happened: a condition that comes back again and again is one line a minute, with a count.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How long repetitions of a condition are only counted.
const QUIET: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(super) struct Journal(Mutex<HashMap<&'static str, Said>>);

#[derive(Debug)]
struct Said {
    at: Instant,
    suppressed: u64,
}

impl Journal {
    /// Whether `condition` is to be said, and how often it was kept back since it was said last.
    fn admits(&self, condition: &'static str) -> Option<u64> {
        let now = Instant::now();
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match said.get_mut(condition) {
            Some(last) if now.duration_since(last.at) < QUIET => {
                last.suppressed += 1;
                None
            }
            Some(last) => {
                last.at = now;
                Some(std::mem::take(&mut last.suppressed))
            }
            None => {
                said.insert(condition, Said { at: now, suppressed: 0 });
                Some(0)
            }
        }
    }

    pub(super) fn warn(&self, condition: &'static str, text: &str) {
        match self.admits(condition) {
            None => tracing::debug!("{text}"),
            Some(0) => tracing::warn!("{text}"),
            Some(more) => tracing::warn!("{text} (and {more} times before, unsaid)"),
        }
    }

    pub(super) fn info(&self, condition: &'static str, text: &str) {
        match self.admits(condition) {
            None => tracing::debug!("{text}"),
            Some(0) => tracing::info!("{text}"),
            Some(more) => tracing::info!("{text} (and {more} times before, unsaid)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_condition_is_said_once_a_minute_with_what_was_kept_back() {
        let journal = Journal::default();
        assert_eq!(journal.admits("lost"), Some(0));
        assert_eq!(journal.admits("lost"), None);
        assert_eq!(journal.admits("connect"), Some(0));
        tokio::time::advance(QUIET / 2).await;
        assert_eq!(journal.admits("lost"), None);
        tokio::time::advance(QUIET).await;
        assert_eq!(journal.admits("lost"), Some(2));
        assert_eq!(journal.admits("lost"), None);
    }
}
