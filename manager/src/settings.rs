//! Settings of the manager with their defaults.

use std::time::Duration;

use traffic_proto::dial_policy::AddressRange;
use traffic_proto::tunnel::GRPC_LIMIT;

use crate::cluster::env::ClusterSettings;
use crate::log_levels::LogLevels;

/// Settings chosen by the operator.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Program name reported by `Version`.
    pub name: String,
    /// Protocol generation reported by `Version`, with a leading `v`.
    pub version: String,
    /// Namespace of the manager itself; workstations connected to it are not served through agents.
    pub namespace: String,
    /// Time without contact after which a workstation counts as gone.
    pub client_ttl: Duration,
    /// Time without a watch after which a client that keeps watches as long as it lives is gone.
    pub client_grace: Duration,
    /// Time without contact after which an agent counts as gone.
    pub agent_ttl: Duration,
    /// Interval of checking for sessions that are gone.
    pub scan: Duration,
    /// Time that preparing an intercept waits for an agent of the workload to arrive.
    pub agent_arrival: Duration,
    /// Time for agents to resolve a name.
    pub lookup: Duration,
    /// Environment variables that are not passed on to workstations.
    pub excluded_env: Vec<String>,
    /// Link-local and metadata addresses that the manager dials nevertheless.
    pub dial_allow: Vec<AddressRange>,
    /// Image name returned by `GetAgentImageFQN`.
    pub agent_image: String,
    /// Largest gRPC message that is taken.
    pub max_receive_size: usize,
    /// Port of the metrics; 0: none.
    pub prometheus_port: u16,
    /// Names of users are left out of metrics.
    pub drop_client_label: bool,
    /// The manager's own log.
    pub log: LogLevels,
    /// The cluster to manage; none: only what agents and workstations tell.
    pub cluster: Option<ClusterSettings>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            // Stock clients take a manager without the first word for one that wants a licence.
            name: "OSS Traffic Manager".into(),
            // The newest generation all of whose version-gated calls are served here.
            version: "v2.27.5".into(),
            namespace: "ambassador".into(),
            client_ttl: Duration::from_secs(24 * 60 * 60),
            client_grace: Duration::from_secs(120),
            // Three heartbeats of an agent.
            agent_ttl: Duration::from_secs(15),
            scan: Duration::from_secs(5),
            agent_arrival: Duration::from_secs(5),
            lookup: Duration::from_secs(1),
            excluded_env: Vec::new(),
            dial_allow: Vec::new(),
            agent_image: "traffic-agent:latest".into(),
            max_receive_size: GRPC_LIMIT,
            prometheus_port: 0,
            drop_client_label: false,
            log: LogLevels::default(),
            cluster: None,
        }
    }
}
