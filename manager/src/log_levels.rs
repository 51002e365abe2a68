//! The level of the manager's own log, which can be changed while it runs.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::sleep;
use tokio_util::task::TaskTracker;
use tracing::Level;
use traffic_proto::LogLevel;
use traffic_proto::manager::LogLevelRequest;
use traffic_proto::sync::lock;

/// The log's level. Clones share it.
#[derive(Clone)]
pub struct LogLevels {
    apply: Arc<dyn Fn(Level) + Send + Sync>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    configured: Level,
    current: Level,
    /// Number of changes; a later one keeps a temporary one from being undone.
    changes: u64,
}

impl LogLevels {
    /// A log at its configured level, and the way to change it.
    pub fn new(configured: Level, apply: impl Fn(Level) + Send + Sync + 'static) -> Self {
        Self {
            apply: Arc::new(apply),
            state: Arc::new(Mutex::new(State {
                configured,
                current: configured,
                changes: 0,
            })),
        }
    }

    /// The level in force.
    pub(crate) fn current(&self) -> Level {
        lock(&self.state).current
    }

    /// Changes the level.
    pub(crate) fn set(&self, level: Level) -> u64 {
        let mut state = lock(&self.state);
        state.current = level;
        state.changes += 1;
        (self.apply)(level);
        state.changes
    }

    /// Does what a client asks for, some of which lasts for a time only. An empty level is the
    /// configured one.
    pub(crate) fn request(&self, request: &LogLevelRequest, tasks: &TaskTracker) {
        let configured = lock(&self.state).configured;
        let level = match request.log_level.as_str() {
            "" => configured,
            word => level(word),
        };
        let change = self.set(level);
        tracing::info!(level = %level, "log level changed");
        let lasts = request.duration.as_ref();
        let lasts = lasts.and_then(|it| Duration::try_from(*it).ok());
        let Some(lasts) = lasts.filter(|it| !it.is_zero()) else {
            return;
        };
        let this = self.clone();
        tasks.spawn(async move {
            sleep(lasts).await;
            if lock(&this.state).changes == change {
                this.set(configured);
            }
        });
    }
}

impl Default for LogLevels {
    /// A log that others look after.
    fn default() -> Self {
        Self::new(Level::INFO, |_| {})
    }
}

impl fmt::Debug for LogLevels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LogLevels({:?})", lock(&self.state))
    }
}

/// The level that a word means; unknown ones mean `info`.
pub fn level(word: &str) -> Level {
    match LogLevel::lenient(word) {
        LogLevel::Off | LogLevel::Critical | LogLevel::Error => Level::ERROR,
        LogLevel::Warning => Level::WARN,
        LogLevel::Info => Level::INFO,
        LogLevel::Debug => Level::DEBUG,
        LogLevel::Trace => Level::TRACE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_temporary_level_ends_unless_another_one_came() {
        let levels = LogLevels::new(Level::WARN, |_| {});
        let tasks = TaskTracker::new();
        let ask = |word: &str, seconds: u64| LogLevelRequest {
            log_level: word.into(),
            duration: (seconds > 0).then(|| prost_types::Duration {
                seconds: i64::try_from(seconds).unwrap(),
                nanos: 0,
            }),
        };
        levels.request(&ask("debug", 10), &tasks);
        assert_eq!(levels.current(), Level::DEBUG);
        sleep(Duration::from_secs(11)).await;
        assert_eq!(levels.current(), Level::WARN);
        levels.request(&ask("debug", 10), &tasks);
        levels.request(&ask("trace", 0), &tasks);
        sleep(Duration::from_secs(11)).await;
        assert_eq!(levels.current(), Level::TRACE);
        levels.request(&ask("", 0), &tasks);
        assert_eq!(levels.current(), Level::WARN);
    }
}
