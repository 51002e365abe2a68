//! The sidecar's configuration: parses and validates text as managers of many versions write it.
//!
//! Reading never stops at the first mistake: all are reported together, each with its key path,
//! value and remedy. Harmless oddities become warnings. Keys match in any letter case, a key
//! without a value counts as absent, unknown keys are ignored, and of a repeated key the last one
//! counts.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::fault::{Fault, Faults};
use crate::guard_rails::GuardRails;
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

/// Reader of the configuration; the init container needs less of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The agent, which needs its own identity and its manager.
    Agent,
    /// The init container, which needs only the ports.
    Init,
}

/// Generation of managers that wrote the configuration; it shows in where it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generation {
    /// Up to 2.21: a file made of a ConfigMap.
    ConfigMap,
    /// From 2.22 on: an annotation or a variable. Named files are read alike.
    Annotation,
}

/// A validated configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sidecar {
    /// Generation of the managers that write it.
    pub generation: Generation,
    /// Name of the workload; empty only for [`Role::Init`].
    pub agent_name: String,
    /// Namespace of the workload; empty only for [`Role::Init`].
    pub namespace: String,
    /// Name of the workload; may be empty, since the agent's name is the same.
    pub workload_name: String,
    /// Kind of the workload, such as `Deployment`; may be empty.
    pub workload_kind: String,
    /// Host of the manager's gRPC service; empty only for [`Role::Init`].
    pub manager_host: String,
    /// Port of the manager, 8081 unless configured.
    pub manager_port: u16,
    /// Log level of the whole agent.
    pub log_level: Option<LogLevel>,
    /// Port of the REST API; none switches it off.
    pub api_port: Option<u16>,
    /// Port of the tracing service; none switches it off.
    pub tracing_port: Option<u16>,
    /// Keepalive interval on connections to the manager; 24 hours unless configured.
    pub client_connection_ttl: Duration,
    /// Clear-text ports may be probed for HTTP/2; on unless configured.
    pub enable_h2c_probing: bool,
    /// Consumption is reported; off unless configured.
    pub enable_metrics: bool,
    /// Pause before a broken watch is reopened; 10 seconds unless configured.
    pub watch_retry_interval: Duration,
    /// Detection of an undeclared port's protocol.
    pub app_protocol_strategy: AppProtocolStrategy,
    /// Settings named after the proxy they configured originally.
    pub envoy: Envoy,
    /// Port that shows metrics alone; none switches it off.
    pub metrics_port: Option<u16>,
    /// Response to requests whose intercept has ended.
    pub expired_notifications: ExpiredNotifications,
    /// Time the last intercepts stay in force without a manager; 60 seconds unless configured.
    pub session_grace: Duration,
    /// Shutdown times.
    pub drain: Drain,
    /// Volume name or path prefix to policy, for all containers, in order of writing.
    pub mount_policies: Vec<(String, MountPolicy)>,
    /// Subnets that the agent dials through a mesh, as they were written.
    pub mesh_dial_subnets: Vec<String>,
    /// Link-local addresses that the agent dials for workstations, as they were written.
    pub dial_allow: Vec<String>,
    /// Limits of the agent by name, as they were written.
    pub limits: Vec<(String, String)>,
    /// The platform team's rules on intercepts.
    pub guard_rails: GuardRails,
    /// App containers.
    pub containers: Vec<Container>,
    /// Harmless oddities, to be logged once.
    pub warnings: Vec<Fault>,
}

/// Settings of the data path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Envoy {
    /// Log level of the data path.
    pub log_level: Option<LogLevel>,
    /// Port of the agent's gRPC service.
    pub server_port: Option<u16>,
    /// Port of the admin API.
    pub admin_port: Option<u16>,
}

/// Answering of requests that match an ended intercept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpiredNotifications {
    /// Matching requests get 503; off unless configured.
    pub enabled: bool,
    /// Duration from the end of the intercept; 24 hours unless configured.
    pub deadline: Duration,
}

/// The two stages of a shutdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drain {
    /// Time connections are still accepted, unready; 5 seconds unless configured.
    pub lame_duck: Duration,
    /// Time open connections may then take to finish; 20 seconds unless configured.
    pub grace: Duration,
}

/// An app container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Name as in the pod.
    pub name: String,
    /// Prefix of its environment variables in the agent's environment, such as `A_`.
    pub env_prefix: String,
    /// Mount point of its volumes in the agent.
    pub mount_point: String,
    /// Mount paths, in order of writing.
    pub mounts: Vec<(String, MountPolicy)>,
    /// Replacement of the container by the workstation.
    pub replace: Replace,
    /// Ports, one entry for each service port that leads to one.
    pub intercepts: Vec<InterceptEntry>,
}

/// Effect of an intercept on the container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Replace {
    /// Written 0 or false: the container keeps running.
    #[default]
    Intercept,
    /// Written 1 or true, from 2.22 on: the container is gone, and the agent listens on its ports.
    Container,
    /// Written 1 or true, up to 2.21: the container runs a program that does nothing; callers reach
    /// the agent on its own ports as ever.
    Sleeper,
    /// Written 2: the container is present but inactive.
    Inactive,
}

/// A service port, or container port without a service, that can be intercepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterceptEntry {
    /// Name of the container port; may be empty.
    pub container_port_name: String,
    /// Name of the service; empty without one.
    pub service_name: String,
    /// Uid of the service; empty without one.
    pub service_uid: String,
    /// Name of the service port; empty without a service, or if its only port is unnamed.
    pub service_port_name: String,
    /// Number of the service port; none without a service.
    pub service_port: Option<u16>,
    /// The service names the target by number, so callers need a redirect.
    pub target_port_numeric: bool,
    /// Transport; TCP if none was written.
    pub transport: Transport,
    /// Declared app protocol in the letter case written; empty if undeclared.
    pub app_protocol: String,
    /// The service is headless: callers dial the pod itself, so they need a redirect.
    pub headless: bool,
    /// Port the app listens on.
    pub container_port: AppPort,
    /// Port the agent listens on.
    pub agent_port: AgentPort,
    /// Proxy port, if one was written.
    pub inactive_port: Option<ProxyPort>,
}

/// Detection of an undeclared port's protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AppProtocolStrategy {
    /// Probe the app.
    #[default]
    Http2Probe,
    /// Use the name of the port.
    PortName,
    /// HTTP/1 on all ports.
    Http,
    /// HTTP/2 on all ports.
    Http2,
}

/// Error: the text names no strategy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown strategy; write http2Probe, portName, http or http2")]
pub struct UnknownStrategy;

impl AppProtocolStrategy {
    const ALL: [Self; 4] = [Self::Http2Probe, Self::PortName, Self::Http, Self::Http2];

    /// Returns the name in the configuration.
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

    /// Parses a name in any letter case.
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
    read::sidecar(
        document::yaml(text, source)?,
        source,
        role,
        Generation::Annotation,
    )
}

/// Reads the configuration file that managers up to 2.21 make of a ConfigMap. `source` is its path,
/// for messages.
pub fn from_config_map(text: &str, source: &str, role: Role) -> Result<Sidecar, Faults> {
    read::sidecar(
        document::yaml(text, source)?,
        source,
        role,
        Generation::ConfigMap,
    )
}

/// Reads the configuration as JSON. `source` is its origin for messages, such as the name of an
/// environment variable.
pub fn from_json(text: &str, source: &str, role: Role) -> Result<Sidecar, Faults> {
    read::sidecar(
        document::json(text, source)?,
        source,
        role,
        Generation::Annotation,
    )
}

/// Reads the configuration from the pod's annotations as the downward API writes them to a file;
/// none if they have none. `source` is the file's path, for messages.
pub fn from_annotations(text: &str, source: &str, role: Role) -> Result<Option<Sidecar>, Faults> {
    let annotations = annotations::parse(text, source);
    let Some(config) = annotations.entries.get(annotations::AGENT_CONFIG) else {
        // An unreadable line may have been the configuration itself.
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
