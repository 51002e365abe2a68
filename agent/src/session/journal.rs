//! Says once what happened: a condition that comes back again and again is one line a minute, with
//! a count.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::limited::Limited;

/// How long repetitions of a condition are only counted.
const QUIET: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(super) struct Journal(Mutex<HashMap<&'static str, Limited>>);

impl Journal {
    /// Whether `condition` is to be said, and how often it was kept back since it was said last.
    fn admits(&self, condition: &'static str) -> Option<u64> {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        said.entry(condition)
            .or_insert_with(|| Limited::every(QUIET))
            .pass()
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

    #[test]
    fn each_condition_is_said_once_whatever_the_others_are() {
        let journal = Journal::default();
        assert_eq!(journal.admits("lost"), Some(0));
        assert_eq!(journal.admits("lost"), None);
        assert_eq!(journal.admits("connect"), Some(0));
        assert_eq!(
            (journal.admits("lost"), journal.admits("connect")),
            (None, None)
        );
    }
}
