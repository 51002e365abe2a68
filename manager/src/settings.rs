//! What can be set about a manager, and the defaults.

use std::time::Duration;

/// Choices of the operator.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What `Version` answers as the program's name.
    pub name: String,
    /// What `Version` answers: the protocol generation whose calls are served, with a leading `v`.
    pub version: String,
    /// The manager's own namespace; workstations connected to it are not served through agents.
    pub namespace: String,
    /// A workstation that has not been heard of for this long is gone.
    pub client_ttl: Duration,
    /// An agent that has not been heard of for this long is gone.
    pub agent_ttl: Duration,
    /// How often to look for sessions that are gone.
    pub scan: Duration,
    /// How long preparing an intercept waits for an agent of the workload to arrive.
    pub agent_arrival: Duration,
    /// How long agents have for resolving a name.
    pub lookup: Duration,
    /// Environment variables that are not handed on to workstations.
    pub excluded_env: Vec<String>,
    /// What `GetAgentImageFQN` answers.
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
