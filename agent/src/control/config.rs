//! Configuration of the control path: identity of the agent, its ports, and the manager's address.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use traffic_proto::log_level::LogLevel;
use traffic_proto::manager::workload_info::Kind;
use traffic_proto::manager::{AgentInfo, agent_info};
use traffic_proto::sidecar::Target;

use crate::VERSION;
use crate::control::dialer::Dialer;
use crate::control::dns::Dns;
use crate::control::intercepts::bounds::Bounds;
use crate::control::intercepts::publisher::PortHandle;
use crate::control::tunnels::Tunnels;
use crate::drain::Drain;
use crate::ready::Blocker;
use crate::telemetry::metrics::ControlMetrics;

/// Name the agent's own API reports.
pub const PRODUCT_NAME: &str = "Rust Traffic Agent";
/// Product name sent to the manager; replicas of a workload have to agree on it, including stock
/// agents.
const PRODUCT: &str = "telepresence";

/// Identity of this agent.
#[derive(Clone, Debug, Default)]
pub struct AgentIdentity {
    /// Workload name.
    pub name: String,
    /// Workload namespace.
    pub namespace: String,
    /// Workload kind, such as `Deployment`; may be empty.
    pub workload_kind: String,
    /// Pod name.
    pub pod_name: String,
    /// Pod address; may be empty.
    pub pod_ip: String,
    /// Pod uid; newer managers key agents by it.
    pub pod_uid: String,
    /// Port of the agent's own gRPC API.
    pub api_port: u16,
    /// Port of the SFTP server; 0 without one.
    pub sftp_port: u16,
    /// Port of the FTP server; 0 without one.
    pub ftp_port: u16,
    /// App containers.
    pub containers: Vec<Container>,
    /// Ports that intercepts may name.
    pub ports: Vec<agent_info::Port>,
}

/// Returns the ports of the configuration as managers are told them.
pub(crate) fn ports(targets: &[Target]) -> Vec<agent_info::Port> {
    let mut ports = Vec::new();
    for target in targets {
        for entry in &target.entries {
            let port = agent_info::Port {
                name: entry.container_port_name.clone(),
                number: i32::from(target.container_port.get()),
                protocol: target.transport.name().to_owned(),
            };
            // Several services may lead to one port.
            if !ports.contains(&port) {
                ports.push(port);
            }
        }
    }
    ports
}

/// Data of an app container that is shared with the owner of an intercept.
#[derive(Clone, Debug, Default)]
pub struct Container {
    /// Container name.
    pub name: String,
    /// Environment variables.
    pub environment: BTreeMap<String, String>,
    /// Mount point at which a file server offers its volumes; empty without one.
    pub mount_point: String,
    /// Mount path to policy number.
    pub mounts: BTreeMap<String, i32>,
}

/// Configuration of the manager session.
#[derive(Debug)]
pub struct ControlConfig {
    /// Identity of this agent.
    pub identity: AgentIdentity,
    /// Manager address, `host:port`.
    pub manager: String,
    /// Time the last tables stay in force without a manager.
    pub grace: Duration,
    /// Time ended intercepts are remembered, if they are.
    pub remember: Option<Duration>,
    /// Ports as configured.
    pub targets: Vec<Target>,
    /// Handles on the same ports, in the same order, for publishing rules.
    pub ports: Vec<PortHandle>,
    /// Tunnels to workstations, shared with the data path and the agent's own API.
    pub tunnels: Tunnels,
    /// Resolver of the pod.
    pub dns: Arc<Dns>,
    /// Bounds of intercepts.
    pub bounds: Bounds,
    /// Dials for workstations.
    pub dialer: Arc<Dialer>,
    /// Spawns tasks of the control side.
    pub control: Drain,
    /// Control-side counters.
    pub metrics: Arc<ControlMetrics>,
    /// Holds readiness back until the first arrival.
    pub ready: Option<Blocker>,
    /// File created at the first arrival; the pod's readiness probe looks for it.
    pub ready_file: PathBuf,
    /// File of the token by which the manager knows this agent; may be absent.
    pub token_file: PathBuf,
    /// Applies the manager's log level override; `None` removes it.
    pub set_level: LevelSwitch,
}

/// Applies the manager's log level override; `None` removes it.
pub struct LevelSwitch(pub Box<dyn Fn(Option<LogLevel>) + Send + Sync>);

impl AgentIdentity {
    pub(crate) fn info(&self) -> AgentInfo {
        let mechanism = |name: &str| agent_info::Mechanism {
            name: name.to_owned(),
            product: PRODUCT.to_owned(),
            version: VERSION.to_owned(),
        };
        let container = |c: &Container| agent_info::ContainerInfo {
            environment: c.environment.clone(),
            mount_point: c.mount_point.clone(),
            mounts: c.mounts.clone(),
        };
        let mut info = AgentInfo {
            name: self.name.clone(),
            namespace: self.namespace.clone(),
            pod_ip: self.pod_ip.clone(),
            pod_name: self.pod_name.clone(),
            pod_uid: self.pod_uid.clone(),
            product: PRODUCT.to_owned(),
            version: VERSION.to_owned(),
            mechanisms: vec![mechanism("tcp"), mechanism("http")],
            api_port: i32::from(self.api_port),
            sftp_port: i32::from(self.sftp_port),
            ftp_port: i32::from(self.ftp_port),
            containers: self
                .containers
                .iter()
                .map(|c| (c.name.clone(), container(c)))
                .collect(),
            ports: self.ports.clone(),
            ..AgentInfo::default()
        };
        info.set_kind(match self.workload_kind.to_ascii_lowercase().as_str() {
            "deployment" => Kind::Deployment,
            "replicaset" => Kind::Replicaset,
            "statefulset" => Kind::Statefulset,
            "rollout" => Kind::Rollout,
            _ => Kind::Unspecified,
        });
        info
    }
}

impl fmt::Debug for LevelSwitch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LevelSwitch")
    }
}
