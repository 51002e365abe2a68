//! Log lines by condition: a condition that repeats is one line a minute, with a count.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use crate::telemetry::rate_limit::LogLimiter;
use traffic_proto::sync::lock;

/// Period in which repeats of a condition are only counted.
const QUIET_PERIOD: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(crate) struct LogOnce(Mutex<HashMap<&'static str, LogLimiter>>);

impl LogOnce {
    /// Returns the number of suppressed repeats if `condition` may be logged now.
    fn admits(&self, condition: &'static str) -> Option<u64> {
        let mut said = lock(&self.0);
        said.entry(condition)
            .or_insert_with(|| LogLimiter::every(QUIET_PERIOD))
            .pass()
    }

    pub(crate) fn warn(&self, condition: &'static str, text: &str) {
        match self.admits(condition) {
            None => tracing::debug!("{text}"),
            Some(0) => tracing::warn!("{text}"),
            Some(more) => tracing::warn!("{text} (repeated {more} times)"),
        }
    }

    pub(crate) fn info(&self, condition: &'static str, text: &str) {
        match self.admits(condition) {
            None => tracing::debug!("{text}"),
            Some(0) => tracing::info!("{text}"),
            Some(more) => tracing::info!("{text} (repeated {more} times)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_condition_is_said_once_whatever_the_others_are() {
        let log_once = LogOnce::default();
        assert_eq!(log_once.admits("lost"), Some(0));
        assert_eq!(log_once.admits("lost"), None);
        assert_eq!(log_once.admits("connect"), Some(0));
        assert_eq!(
            (log_once.admits("lost"), log_once.admits("connect")),
            (None, None)
        );
    }
}
