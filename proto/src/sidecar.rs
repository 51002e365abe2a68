//! The sidecar's configuration: from text as managers of many versions write it to values that need
//! no more checking.
//!
//! Reading never stops at the first mistake: all are reported together, each with its key path,
//! value and remedy. What is merely odd becomes a warning. Keys match without regard to case, a key
//! without a value counts as absent, unknown keys are ignored, and of a key given twice the last
//! one counts.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::fault::{Fault, Faults};
use crate::log_level::LogLevel;
use crate::port::{AgentPort, AppPort, ProxyPort, Transport};

pub mod annotations;
mod document;
mod fields;
mod policy;
mod read;
mod targets;

pub use policy::{MountPolicy, UnknownMountPolicy};
pub use targets::Target;

/// Whose configuration it is; the init container lives with less of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Needs to know itself and its manager.
    Agent,
    /// Needs the ports only.
    Init,
}

/// A configuration that has been checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sidecar {
    /// Name of the workload; empty only for [`Role::Init`].
    pub agent_name: String,
    /// Namespace of the workload; empty only for [`Role::Init`].
    pub namespace: String,
    /// May be empty; the agent's name is the same.
    pub workload_name: String,
    /// Such as `Deployment`; may be empty.
    pub workload_kind: String,
    /// Where the manager's gRPC service is; empty only for [`Role::Init`].
    pub manager_host: String,
    /// Its port, 8081 unless configured.
    pub manager_port: u16,
    /// Level for the whole agent.
    pub log_level: Option<LogLevel>,
    /// Port of the REST API; none switches it off.
    pub api_port: Option<u16>,
    /// Port of the tracing service; none switches it off.
    pub tracing_port: Option<u16>,
    /// Interval of keepalive on the way to the manager; 24 hours unless configured.
    pub client_connection_ttl: Duration,
    /// Whether clear-text ports may be probed for HTTP/2; yes unless configured.
    pub enable_h2c_probing: bool,
    /// Whether consumption is reported; no unless configured.
    pub enable_metrics: bool,
    /// Pause before a broken watch is opened again; 10 seconds unless configured.
    pub watch_retry_interval: Duration,
    /// How the protocol of an undeclared port is found.
    pub app_protocol_strategy: AppProtocolStrategy,
    /// Settings named after the proxy they configured elsewhere.
    pub envoy: Envoy,
    /// What requests get whose intercept has ended.
    pub expired_notifications: ExpiredNotifications,
    /// How long the last intercepts stay in force without a manager; 60 seconds unless configured.
    pub session_grace: Duration,
    /// How the agent ends.
    pub drain: Drain,
    /// Volume name or path prefix to policy, for all containers, in order of writing.
    pub mount_policies: Vec<(String, MountPolicy)>,
    /// The app containers.
    pub containers: Vec<Container>,
    /// What is odd but harmless, to be logged once.
    pub warnings: Vec<Fault>,
}

/// The data path's own settings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Envoy {
    /// Level for the data path alone.
    pub log_level: Option<LogLevel>,
    /// Port of the agent's gRPC service.
    pub server_port: Option<u16>,
    /// Port of the admin API.
    pub admin_port: Option<u16>,
}

/// Whether and how long requests that match an ended intercept are told so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpiredNotifications {
    /// No unless configured.
    pub enabled: bool,
    /// Counted from the end of the intercept; 24 hours unless configured.
    pub deadline: Duration,
}

/// The two stages of an orderly end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drain {
    /// How long connections are still accepted, unready; 5 seconds unless configured.
    pub lame_duck: Duration,
    /// How long open connections may then take to finish; 20 seconds unless configured.
    pub grace: Duration,
}

/// One app container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// As in the pod.
    pub name: String,
    /// Prefix of its environment variables in the agent's environment, such as `A_`.
    pub env_prefix: String,
    /// Where the agent sees its volumes.
    pub mount_point: String,
    /// Its mount paths, in order of writing.
    pub mounts: Vec<(String, MountPolicy)>,
    /// Whether a workstation stands in for all of it.
    pub replace: Replace,
    /// Its ports, one entry for each service port that leads to one.
    pub intercepts: Vec<InterceptEntry>,
}

/// What an intercept does with the container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Replace {
    /// Written 0 or false: the container runs on.
    #[default]
    Intercept,
    /// Written 1 or true: the container is replaced.
    Container,
    /// Written 2: the container is there but inactive.
    Inactive,
}

/// One service port, or container port without a service, that can be intercepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterceptEntry {
    /// May be empty.
    pub container_port_name: String,
    /// Empty without a service.
    pub service_name: String,
    /// Empty without a service.
    pub service_uid: String,
    /// Empty without a service, or when its only port is unnamed.
    pub service_port_name: String,
    /// None without a service.
    pub service_port: Option<u16>,
    /// Whether the service names the target by number, so that callers need a redirect.
    pub target_port_numeric: bool,
    /// TCP when nothing was written.
    pub transport: Transport,
    /// As declared, in the letter case written; empty when undeclared.
    pub app_protocol: String,
    /// Whether callers dial the pod itself, so that they need a redirect.
    pub headless: bool,
    /// Where the app listens.
    pub container_port: AppPort,
    /// Where the agent listens.
    pub agent_port: AgentPort,
    /// The proxy port if one was written.
    pub inactive_port: Option<ProxyPort>,
}

/// How the protocol of a port that declares none is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AppProtocolStrategy {
    /// Ask the app.
    #[default]
    Http2Probe,
    /// From the name of the port.
    PortName,
    /// All ports speak HTTP/1.
    Http,
    /// All ports speak HTTP/2.
    Http2,
}

/// The text names no strategy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown strategy; write http2Probe, portName, http or http2")]
pub struct UnknownStrategy;

impl AppProtocolStrategy {
    const ALL: [Self; 4] = [Self::Http2Probe, Self::PortName, Self::Http, Self::Http2];

    /// As it is written in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Http2Probe => "http2Probe",
            Self::PortName => "portName",
            Self::Http => "http",
            Self::Http2 => "http2",
        }
    }
}

impl FromStr for AppProtocolStrategy {
    type Err = UnknownStrategy;

    /// Reads a name in any letter case.
    fn from_str(text: &str) -> Result<Self, UnknownStrategy> {
        Self::ALL
            .into_iter()
            .find(|strategy| strategy.name().eq_ignore_ascii_case(text))
            .ok_or(UnknownStrategy)
    }
}

impl fmt::Display for AppProtocolStrategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Reads the configuration file. `source` is its path, for messages.
pub fn from_yaml(text: &str, source: &str, role: Role) -> Result<Sidecar, Faults> {
    read::sidecar(document::yaml(text, source)?, source, role)
}

/// Reads the configuration as JSON. `source` is where it came from, such as the name of an
/// environment variable, for messages.
pub fn from_json(text: &str, source: &str, role: Role) -> Result<Sidecar, Faults> {
    read::sidecar(document::json(text, source)?, source, role)
}

/// Reads the configuration out of the pod's annotations as the downward API writes them to a file;
/// none when they hold none. `source` is the file's path, for messages.
pub fn from_annotations(text: &str, source: &str, role: Role) -> Result<Option<Sidecar>, Faults> {
    let annotations = annotations::parse(text, source);
    let Some(config) = annotations.entries.get(annotations::AGENT_CONFIG) else {
        // A line that cannot be read may have been the very one.
        let broken = |fault: &Fault| fault.key == annotations::AGENT_CONFIG;
        return match annotations.warnings.into_iter().find(broken) {
            Some(fault) => Err(fault.into()),
            None => Ok(None),
        };
    };
    let source = format!("{source}: {}", annotations::AGENT_CONFIG);
    from_json(config, &source, role).map(Some)
}

#[cfg(test)]
mod tests;
