//! Choices of the operator, as far as they shape a pod.

use std::time::Duration;

use k8s_openapi::api::core::v1::{ResourceRequirements, SecurityContext};
use traffic_proto::guard_rails::GuardRails;
use traffic_proto::sidecar::{AppProtocolStrategy, MountPolicy};

/// Group that only agents run as, so that redirect rules can tell an agent from its app.
pub const AGENT_GROUP: i64 = 7439;

/// Settings of the injector.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The agent's image; empty: unknown, and nothing is injected.
    pub image: String,
    /// Empty: the cluster's default.
    pub pull_policy: String,
    /// Names of Secrets for pulling it.
    pub pull_secrets: Vec<String>,
    /// Pods that get an agent.
    pub policy: InjectPolicy,
    /// Detection of an undeclared port's protocol.
    pub strategy: AppProtocolStrategy,
    /// First port of the agent.
    pub first_port: u16,
    /// Host of the manager, as agents reach it.
    pub manager_host: String,
    /// Port of the manager.
    pub manager_port: u16,
    /// Port of the REST API; 0: none.
    pub api_port: u16,
    /// Port of the tracing service; 0: none.
    pub tracing_port: u16,
    /// Log level of agents; empty: their own default.
    pub log_level: String,
    /// Resources of the agent's container.
    pub resources: Option<ResourceRequirements>,
    /// Resources of the init container.
    pub init_resources: Option<ResourceRequirements>,
    /// Security context of the agent's container; none: like its app's.
    pub security_context: Option<SecurityContext>,
    /// Security context of the init container; none: NET_ADMIN alone.
    pub init_security_context: Option<SecurityContext>,
    /// An init container may be used.
    pub init_container: bool,
    /// Mesh that redirects ports in place of the init container.
    pub mesh: Mesh,
    /// Use of native sidecars for agents.
    pub native_sidecar: NativeSidecar,
    /// Major and minor version of the API server, when known.
    pub server_version: Option<(u32, u32)>,
    /// Way of the configuration to the agent.
    pub carrier: Carrier,
    /// Volume name or path prefix to policy.
    pub mount_policies: Vec<(String, MountPolicy)>,
    /// Linkerd's annotation for outbound ports past the mesh is set.
    pub linkerd_skip_ports: bool,
    /// Agents get a token by which the manager knows them.
    pub manager_token: bool,
    /// Settings that agents alone read.
    pub agent: AgentOptions,
}

/// Settings handed through to agents; none: the agent's own default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgentOptions {
    /// Log level of the data path.
    pub envoy_log_level: Option<String>,
    /// Port of the agent's gRPC service.
    pub envoy_server_port: Option<u16>,
    /// Port of the agent's administration.
    pub envoy_admin_port: Option<u16>,
    /// Port of the agent's metrics.
    pub metrics_port: Option<u16>,
    /// Requests that match an ended intercept are answered with 503.
    pub expired_enabled: Option<bool>,
    /// Time after the intercept's end.
    pub expired_deadline: Option<Duration>,
    /// Clear-text ports may be probed for HTTP/2.
    pub enable_h2c_probing: Option<bool>,
    /// Agents report consumption.
    pub enable_metrics: Option<bool>,
    /// Pause before a broken watch is opened again.
    pub watch_retry_interval: Option<Duration>,
    /// Interval of keepalive towards the manager.
    pub client_connection_ttl: Option<Duration>,
    /// Time the last intercepts stay in force without a manager.
    pub session_grace: Option<Duration>,
    /// Time connections are still accepted by an agent that ends.
    pub drain_lame_duck: Option<Duration>,
    /// Time for open connections then.
    pub drain_grace: Option<Duration>,
    /// The platform team's rules on intercepts.
    pub guard_rails: GuardRails,
}

/// Pods that get an agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InjectPolicy {
    /// Pods of intercepted workloads, and annotated ones.
    OnDemand,
    /// Annotated ones.
    WhenEnabled,
    /// Annotated ones; the word of older charts.
    #[default]
    Never,
}

/// The service mesh whose objects are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mesh {
    /// No mesh.
    #[default]
    None,
    /// Istio's `Sidecar` objects redirect numeric ports.
    Istio,
}

/// Use of native sidecars (init containers with restartPolicy Always).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NativeSidecar {
    /// Automatic: used if the API server is 1.32 or newer; older Services do not resolve their
    /// named ports.
    #[default]
    Auto,
    /// Used on every API server that knows them.
    Always,
    /// Ordinary containers.
    Never,
}

/// The way of the configuration to the agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Carrier {
    /// An annotation of the pod, since 2.22.
    #[default]
    Annotation,
    /// The ConfigMap `telepresence-agents` of the pod's namespace, up to 2.21.
    ConfigMap,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            image: String::new(),
            pull_policy: String::new(),
            pull_secrets: Vec::new(),
            policy: InjectPolicy::default(),
            strategy: AppProtocolStrategy::default(),
            first_port: 9900,
            manager_host: "traffic-manager.ambassador".to_owned(),
            manager_port: 8081,
            api_port: 0,
            tracing_port: 0,
            log_level: String::new(),
            resources: None,
            init_resources: None,
            security_context: None,
            init_security_context: None,
            init_container: true,
            mesh: Mesh::default(),
            native_sidecar: NativeSidecar::default(),
            server_version: None,
            carrier: Carrier::default(),
            mount_policies: Vec::new(),
            linkerd_skip_ports: false,
            manager_token: false,
            agent: AgentOptions::default(),
        }
    }
}

impl Settings {
    /// Returns true if agents become native sidecars unless other reasons forbid it.
    pub fn native(&self) -> bool {
        /// Named ports of native sidecars are resolved from here on.
        const RESOLVED: (u32, u32) = (1, 32);
        /// Native sidecars are on by default from here on.
        const KNOWN: (u32, u32) = (1, 29);
        match (self.native_sidecar, self.server_version) {
            (NativeSidecar::Never, _) => false,
            (NativeSidecar::Auto, version) => version.is_some_and(|it| it >= RESOLVED),
            (NativeSidecar::Always, version) => version.is_none_or(|it| it >= KNOWN),
        }
    }

    /// The group that the agent runs as.
    pub fn agent_group(&self) -> i64 {
        let own = self.security_context.as_ref();
        own.and_then(|it| it.run_as_group).unwrap_or(AGENT_GROUP)
    }
}
