//! The admin server: Envoy's paths and formats where the meaning is the same, plus `/intercepts`
//! and `/explain`. It reads the running agent; its few changes are POSTs.

pub mod endpoints;
pub mod explain;
pub mod exposition;
pub mod html;
pub mod memory;
pub mod metrics_port;
pub mod request;
pub mod server;
pub mod stats;
pub mod stats_html;
pub mod views;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Notify;
use traffic_proto::web_origin::OwnNames;

use crate::drain::Drain;
use crate::proxy::context::PortContext;
use crate::ready::Ready;
use crate::telemetry::logging::LogControl;
use crate::telemetry::metrics::ControlMetrics;

/// A certificate the agent serves or presents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Directory it was read from.
    pub source: String,
    /// `terminating` or `originating`.
    pub role: &'static str,
    /// Container port it belongs to.
    pub port: u16,
    /// Hexadecimal serial number.
    pub serial: String,
    /// DNS names and addresses it covers.
    pub names: Vec<String>,
    /// Start of validity, RFC 3339.
    pub valid_from: String,
    /// End of validity, RFC 3339.
    pub expires: String,
    /// Seconds until the end of validity; negative after it.
    pub seconds_until_expiry: i64,
}

/// Lists the loaded certificates; implemented by the TLS stores.
pub trait Certificates: Send + Sync + fmt::Debug {
    /// Returns all loaded certificates.
    fn certificates(&self) -> Vec<Certificate>;
}

/// A listening socket, for `/listeners`.
#[derive(Clone, Debug)]
pub struct ListenerInfo {
    /// `port_8080`, `server`, `admin`.
    pub name: String,
    /// Bound address.
    pub address: SocketAddr,
    /// TCP or UDP.
    pub transport: &'static str,
}

/// Commands from an operator to the agent.
#[derive(Debug, Default)]
pub struct AdminCommands {
    /// `/quitquitquit`: shut down as after SIGTERM.
    pub quit: Notify,
    /// `/drain_listeners`: stop accepting at once and leave open connections alone; with `graceful`
    /// keep accepting for the lame-duck time, then end open connections as well. The process stays.
    pub drain: Notify,
    /// The requested drain waits for the lame-duck time.
    pub graceful: std::sync::atomic::AtomicBool,
}

/// View of the running agent.
#[derive(Debug)]
pub struct Agent {
    /// Program version.
    pub version: &'static str,
    /// Workload name.
    pub workload: String,
    /// Workload namespace.
    pub namespace: String,
    /// Pod name.
    pub pod: String,
    /// Host names under which the admin is reached.
    pub names: OwnNames,
    /// Manager address, `host:port`.
    pub manager: String,
    /// Start time of the process.
    pub started: Instant,
    /// Data-path worker threads.
    pub workers: usize,
    /// All listening sockets.
    pub listeners: Vec<ListenerInfo>,
    /// Listening ports with their shared state.
    pub ports: Vec<Arc<PortContext>>,
    /// Counters of the control side.
    pub control: Arc<ControlMetrics>,
    /// Loaded certificates.
    pub certificates: Arc<dyn Certificates>,
    /// Readiness.
    pub ready: Ready,
    /// Drain state.
    pub drain: Drain,
    /// Log levels.
    pub log: LogControl,
    /// The configuration in force, without secrets.
    pub config: serde_json::Value,
    /// Commands for the shutdown logic.
    pub commands: Arc<AdminCommands>,
}

impl Agent {
    /// Returns whole days until the first certificate expires; Envoy's largest value if there is
    /// none.
    #[must_use]
    pub fn days_until_first_expiry(&self) -> i64 {
        let first = self
            .certificates
            .certificates()
            .iter()
            .map(|c| c.seconds_until_expiry)
            .min();
        first.map_or(i64::from(u32::MAX), |seconds| seconds.div_euclid(86_400))
    }

    /// Returns Envoy's state name.
    #[must_use]
    pub fn state(&self) -> &'static str {
        if self.drain.is_closed() || self.ready.is_failed() {
            "DRAINING"
        } else if self.ready.is_ready() {
            "LIVE"
        } else {
            "INITIALIZING"
        }
    }
}
