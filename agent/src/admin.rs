//! The admin server: Envoy's paths and shapes where the meaning is the same, and two questions of
//! our own, what is intercepted and why a request went where it did. It reads the running agent;
//! the few switches it has are POSTs.

pub mod endpoints;
pub mod explain;
pub mod exposition;
pub mod html;
pub mod memory;
pub mod request;
pub mod server;
pub mod stats;
pub mod views;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Notify;

use crate::drain::Drain;
use crate::proxy::context::PortContext;
use crate::ready::Ready;
use crate::telemetry::logging::LogControl;
use crate::telemetry::metrics::ControlMetrics;

/// A certificate the agent serves or presents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The directory it was read from.
    pub source: String,
    /// `terminating` or `originating`.
    pub role: &'static str,
    /// The container port it stands for.
    pub port: u16,
    /// Hexadecimal serial number.
    pub serial: String,
    /// DNS names and addresses it is for.
    pub names: Vec<String>,
    /// Start of validity, RFC 3339.
    pub valid_from: String,
    /// End of validity, RFC 3339.
    pub expires: String,
    /// Seconds until the end of validity; negative afterwards.
    pub seconds_until_expiry: i64,
}

/// Tells which certificates are loaded; the TLS stores implement it.
pub trait Certificates: Send + Sync + fmt::Debug {
    /// Every loaded certificate.
    fn certificates(&self) -> Vec<Certificate>;
}

/// No certificates at all.
#[derive(Debug)]
pub struct NoCertificates;

impl Certificates for NoCertificates {
    fn certificates(&self) -> Vec<Certificate> {
        Vec::new()
    }
}

/// A listening socket, for `/listeners`.
#[derive(Clone, Debug)]
pub struct ListenerInfo {
    /// `port_8080`, `server`, `admin`.
    pub name: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// TCP or UDP.
    pub transport: &'static str,
}

/// What an operator may ask the agent to do.
#[derive(Debug, Default)]
pub struct AdminCommands {
    /// `/quitquitquit`: end in order, as after SIGTERM.
    pub quit: Notify,
    /// `/drain_listeners`: stop accepting at once and leave open connections alone; with `graceful`
    /// keep accepting for the lame-duck time, then ask open connections to end as well. The process
    /// stays.
    pub drain: Notify,
    /// Whether the drain that was asked for waits for the lame-duck time.
    pub graceful: std::sync::atomic::AtomicBool,
}

/// The running agent, as far as it can be seen from outside.
#[derive(Debug)]
pub struct Agent {
    /// The program's version.
    pub version: &'static str,
    /// The workload's name.
    pub workload: String,
    /// The workload's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// `host:port` of the traffic-manager.
    pub manager: String,
    /// When the process started.
    pub started: Instant,
    /// Data-path worker threads.
    pub workers: usize,
    /// Every listening socket.
    pub listeners: Vec<ListenerInfo>,
    /// The ports.
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
    /// The configuration in force, secrets already taken out.
    pub config: serde_json::Value,
    /// What was asked of the agent.
    pub orders: Arc<AdminCommands>,
}

impl Agent {
    /// Whole days until the first certificate expires; Envoy's largest value when there is none.
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

    /// Envoy's state word.
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
