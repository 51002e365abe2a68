//! The configuration of the control path: who this agent is, its ports, and how it reaches the
//! manager.

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
use crate::control::dns::Dns;
use crate::control::intercepts::publisher::PortHandle;
use crate::control::tunnels::Tunnels;
use crate::drain::Drain;
use crate::ready::Blocker;
use crate::telemetry::metrics::ControlMetrics;

/// What the agent's own API calls itself.
pub const PRODUCT_NAME: &str = "Rust Traffic Agent";
/// Replicas of a workload have to agree on it, the stock agent included.
const PRODUCT: &str = "telepresence";

/// Who this agent is.
#[derive(Clone, Debug, Default)]
pub struct AgentIdentity {
    /// The workload's name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its kind, such as `Deployment`; may be empty.
    pub workload_kind: String,
    /// The pod's name.
    pub pod_name: String,
    /// The pod's address; may be empty.
    pub pod_ip: String,
    /// The pod's uid; newer managers key agents by it.
    pub pod_uid: String,
    /// Where the agent's own gRPC API listens.
    pub api_port: u16,
    /// The app containers.
    pub containers: Vec<Container>,
}

/// What an app container shares with the owner of an intercept.
#[derive(Clone, Debug, Default)]
pub struct Container {
    /// Its name.
    pub name: String,
    /// Its environment.
    pub environment: BTreeMap<String, String>,
    /// Where a file server offers its volumes; empty when none does.
    pub mount_point: String,
    /// Mount path to policy number.
    pub mounts: BTreeMap<String, i32>,
}

/// Everything a session needs.
#[derive(Debug)]
pub struct ControlConfig {
    /// Who we are.
    pub identity: AgentIdentity,
    /// `host:port` of the traffic-manager.
    pub manager: String,
    /// How long the last tables stay in force without a manager.
    pub grace: Duration,
    /// How long ended intercepts are remembered, if they are.
    pub remember: Option<Duration>,
    /// The ports as configured.
    pub targets: Vec<Target>,
    /// The same ports, in the same order, as rules are put in force on them.
    pub ports: Vec<PortHandle>,
    /// The way to workstations, shared with the data path and the agent's own API.
    pub tunnels: Tunnels,
    /// The pod's resolver.
    pub dns: Arc<Dns>,
    /// Where tasks of the control side are spawned.
    pub control: Drain,
    /// Counters.
    pub metrics: Arc<ControlMetrics>,
    /// Holds readiness back until the first arrival.
    pub ready: Option<Blocker>,
    /// Created at the first arrival; the pod's readiness probe looks for it.
    pub ready_file: PathBuf,
    /// Changes the log level as the manager wishes: `None` ends its wish.
    pub set_level: LevelSwitch,
}

/// Changes the log level as the manager wishes: `None` ends its wish.
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
            containers: self
                .containers
                .iter()
                .map(|c| (c.name.clone(), container(c)))
                .collect(),
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
