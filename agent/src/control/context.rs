//! The state that all sessions of this process share, and the reasons a session ends for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::mpsc;
use tonic::Status;
use traffic_proto::log_level::LogLevel;
use traffic_proto::manager::TunnelMetrics;

use crate::control::config::{AgentIdentity, LevelSwitch};
use crate::control::dns::Dns;
use crate::control::intercepts::publisher::RoutePublisher;
use crate::control::log_once::LogOnce;
use crate::control::tunnels::Tunnels;
use crate::drain::Drain;
use crate::telemetry::metrics::ControlMetrics;

/// What all sessions of this process share.
pub(crate) struct SessionContext {
    pub(crate) identity: AgentIdentity,
    pub(crate) keeper: RoutePublisher,
    pub(crate) tunnels: Tunnels,
    pub(crate) dns: Arc<Dns>,
    pub(crate) control: Drain,
    pub(crate) metrics: Arc<ControlMetrics>,
    pub(crate) journal: LogOnce,
    pub(crate) levels: Arc<LevelRequests>,
    pub(crate) reports: tokio::sync::Mutex<mpsc::Receiver<TunnelMetrics>>,
}

/// The manager's wishes for the log level, numbered so that one with a duration ends only itself.
pub(crate) struct LevelRequests {
    pub(crate) switch: LevelSwitch,
    pub(crate) wishes: AtomicU64,
}

/// Why an attempt came to its end.
#[derive(Debug)]
pub(crate) enum SessionLost {
    /// No connection.
    Connect(String),
    /// The manager's version is no version.
    Version(String),
    /// The manager did not let us in.
    Refused(Status),
    /// The session was there and is gone.
    Ended(String),
}

impl LevelRequests {
    /// Sets a level and answers the wish's number.
    pub(crate) fn set(&self, level: Option<LogLevel>) -> u64 {
        let number = self.wishes.fetch_add(1, Ordering::Relaxed) + 1;
        (self.switch.0)(level);
        number
    }

    /// Ends the wish, unless another one came meanwhile.
    pub(crate) fn restore_after(&self, number: u64) {
        if self.wishes.load(Ordering::Relaxed) == number {
            (self.switch.0)(None);
        }
    }
}

/// An error and its causes; transports repeat themselves, so what has been said is left out.
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
