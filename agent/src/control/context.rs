//! State shared by all sessions of this process, and the reasons a session ends for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tonic::Status;
use traffic_proto::log_level::LogLevel;

use crate::control::config::{AgentIdentity, LevelSwitch};
use crate::control::dialer::Dialer;
use crate::control::dns::Dns;
use crate::control::intercepts::publisher::RoutePublisher;
use crate::control::log_once::LogOnce;
use crate::control::tunnels::Tunnels;
use crate::drain::Drain;
use crate::telemetry::metrics::ControlMetrics;

/// State shared by all sessions of this process.
pub(crate) struct SessionContext {
    pub(crate) identity: AgentIdentity,
    pub(crate) publisher: RoutePublisher,
    pub(crate) tunnels: Tunnels,
    pub(crate) dns: Arc<Dns>,
    pub(crate) dialer: Arc<Dialer>,
    pub(crate) control: Drain,
    pub(crate) metrics: Arc<ControlMetrics>,
    pub(crate) log_once: LogOnce,
    pub(crate) levels: Arc<LevelRequests>,
}

/// Log level overrides by the manager, numbered so that one with a duration ends only itself.
pub(crate) struct LevelRequests {
    pub(crate) switch: LevelSwitch,
    pub(crate) count: AtomicU64,
}

/// Reason a session attempt ended.
#[derive(Debug)]
pub(crate) enum SessionLost {
    /// Connecting failed.
    Connect(String),
    /// The manager's version is invalid.
    Version(String),
    /// The manager refused the arrival.
    Refused(Status),
    /// The session was established and lost.
    Ended(String),
}

impl LevelRequests {
    /// Sets a level and returns the number of the override.
    pub(crate) fn set(&self, level: Option<LogLevel>) -> u64 {
        // Only equality matters, so no ordering with other memory is needed.
        let number = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        (self.switch.0)(level);
        number
    }

    /// Removes the override unless a later one replaced it.
    pub(crate) fn restore_after(&self, number: u64) {
        // A later override has a higher number and must stay.
        if self.count.load(Ordering::Relaxed) == number {
            (self.switch.0)(None);
        }
    }
}

/// Formats an error and its causes; transports repeat themselves, so repeated parts are left out.
pub(crate) fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        source = cause.source();
    }
    text
}
