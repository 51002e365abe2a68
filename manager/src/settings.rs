//! Settings of the manager with their defaults.

use std::time::Duration;

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
    /// Image name returned by `GetAgentImageFQN`.
    pub agent_image: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            name: "Traffic Manager".into(),
            // The newest generation all of whose version-gated calls are served here.
            version: "v2.27.5".into(),
            namespace: "ambassador".into(),
            client_ttl: Duration::from_secs(24 * 60 * 60),
            // Three heartbeats of an agent.
            agent_ttl: Duration::from_secs(15),
            scan: Duration::from_secs(5),
            agent_arrival: Duration::from_secs(5),
            lookup: Duration::from_secs(1),
            excluded_env: Vec::new(),
            agent_image: "traffic-agent:latest".into(),
        }
    }
}
