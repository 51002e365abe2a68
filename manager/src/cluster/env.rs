//! The manager's environment in a cluster: every variable that charts set, read into settings.
//! Reading never stops at the first mistake: all are reported together.

mod agents;
mod ignored;
mod reader;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::time::Duration;

use injector::{Kind, Settings as InjectorSettings};
use traffic_proto::Faults;

use crate::cluster::env::reader::Reader;

/// Settings of a manager in a cluster.
#[derive(Clone, Debug)]
pub struct ClusterSettings {
    /// Port of the API.
    pub server_port: u16,
    /// Address of the API; none: all.
    pub server_host: Option<IpAddr>,
    /// Level of the manager's log.
    pub log_level: String,
    /// Port of the metrics; 0: none.
    pub prometheus_port: u16,
    /// Names of users are left out of metrics.
    pub drop_client_label: bool,
    /// Port of the webhook; 0: no injector.
    pub webhook_port: u16,
    /// The manager's own namespace.
    pub namespace: String,
    /// Namespaces to manage; none: the whole cluster.
    pub managed: Vec<String>,
    /// The manager's pod, as holder of the lease.
    pub pod_name: String,
    /// Its address.
    pub pod_ip: Option<IpAddr>,
    /// Way to find the pods' networks.
    pub pod_cidr_strategy: CidrStrategy,
    /// The pods' networks, for [`CidrStrategy::Environment`].
    pub pod_cidrs: Vec<String>,
    /// Largest gRPC message that is taken.
    pub max_receive_size: usize,
    /// Time a new intercept waits for an agent.
    pub arrival_timeout: Duration,
    /// Time a client that is not heard of keeps its session.
    pub connection_ttl: Duration,
    /// The version to announce; empty: the highest level that is wholly served.
    pub compatibility: String,
    /// Workload kinds in use.
    pub kinds: Vec<Kind>,
    /// Domain of the cluster; empty: found out.
    pub cluster_domain: String,
    /// Hints for clients about routes and names.
    pub client: ClientHints,
    /// The webhook's Service, Secret and configuration.
    pub webhook: WebhookNames,
    /// Way in which pods get and lose an agent.
    pub rollout: RolloutMode,
    /// Workloads rolled at once.
    pub rollout_concurrency: usize,
    /// An agent without an intercept for this long is removed; none: never.
    pub max_idle_time: Option<Duration>,
    /// Intercepts of a whole port are allowed.
    pub allow_global: bool,
    /// Proof that callers have to give.
    pub authentication: AuthenticationMode,
    /// Settings that shape a pod.
    pub injector: InjectorSettings,
    /// Variables that are set and have no effect here, with the reason.
    pub ignored: Vec<String>,
}

/// Proof that callers have to give.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AuthenticationMode {
    /// None.
    #[default]
    Disabled,
    /// What is proved is checked; what would be refused is said.
    Permissive,
    /// Refused without a proof, or without the right.
    Enforcing,
}

/// Way to find the pods' networks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CidrStrategy {
    /// Nodes where that is possible, else pods.
    #[default]
    Auto,
    /// Nodes.
    Nodes,
    /// Addresses of the pods.
    Pods,
    /// Configured networks.
    Environment,
}

/// Way in which pods get and lose an agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RolloutMode {
    /// Eviction where two are ready, else the workload's own roll-out.
    #[default]
    Auto,
    /// Eviction.
    Evict,
    /// Roll-out of the workload.
    Restart,
}

/// Hints for clients about routes and names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientHints {
    /// Networks that are reached through the cluster as well.
    pub also_proxy: Vec<String>,
    /// Networks that are not.
    pub never_proxy: Vec<String>,
    /// Networks that may overlap with the workstation's.
    pub allow_conflicting: Vec<String>,
    /// Names that are never the cluster's.
    pub exclude_suffixes: Vec<String>,
    /// Names that always are.
    pub include_suffixes: Vec<String>,
}

/// Names of the webhook's objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WebhookNames {
    /// Its Service.
    pub service: String,
    /// Its Secret, or the directory where that is mounted.
    pub secret: String,
    /// Its configuration object.
    pub configuration: String,
    /// Maker of its certificate.
    pub method: CertificateMethod,
    /// Further names in the certificate.
    pub alt_names: Vec<String>,
}

/// Maker of the webhook's certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CertificateMethod {
    /// The manager, which also renews it.
    Manager,
    /// The chart, at each install and upgrade.
    #[default]
    Helm,
    /// The operator.
    Supplied,
    /// cert-manager.
    CertManager,
}

impl ClusterSettings {
    /// Reads the environment; `get` looks a variable up.
    ///
    /// # Errors
    /// Every fault found.
    pub fn read(get: impl Fn(&str) -> Option<String>) -> Result<Self, Faults> {
        let mut env = Reader {
            get: &get,
            faults: Faults::default(),
        };
        let log_level = env.text("LOG_LEVEL").unwrap_or_else(|| "info".to_owned());
        let authentication = env.word("AUTHENTICATION_MODE", &AUTHENTICATION);
        let injector = InjectorSettings {
            // Without authentication a token in the pod would be one more secret for nothing.
            manager_token: authentication != AuthenticationMode::Disabled,
            ..env.injector(&log_level)
        };
        let settings = Self {
            server_port: env.required_port("SERVER_PORT"),
            server_host: env.parsed("SERVER_HOST", "no IP address", "write an address"),
            prometheus_port: env.port("PROMETHEUS_PORT").unwrap_or(0),
            drop_client_label: env.flag("PROMETHEUS_DROP_CLIENT_LABEL", false),
            webhook_port: env.port("MUTATOR_WEBHOOK_PORT").unwrap_or(0),
            namespace: env.required("MANAGER_NAMESPACE", "pass metadata.namespace"),
            managed: env.list("MANAGED_NAMESPACES"),
            pod_name: env
                .text("POD_NAME")
                .or_else(|| env.text("HOSTNAME"))
                .unwrap_or_default(),
            pod_ip: env.parsed("POD_IP", "no IP address", "pass status.podIP"),
            pod_cidr_strategy: env.word("POD_CIDR_STRATEGY", &STRATEGIES),
            pod_cidrs: env.list("POD_CIDRS"),
            max_receive_size: env.size("GRPC_MAX_RECEIVE_SIZE", 4 << 20),
            arrival_timeout: env
                .duration("AGENT_ARRIVAL_TIMEOUT")
                .unwrap_or(Duration::from_secs(30)),
            connection_ttl: env
                .duration("CLIENT_CONNECTION_TTL")
                .unwrap_or(Duration::from_secs(24 * 60 * 60)),
            compatibility: env.text("COMPATIBILITY_VERSION").unwrap_or_default(),
            kinds: env.kinds(),
            cluster_domain: env.text("CLUSTER_DOMAIN").unwrap_or_default(),
            client: ClientHints {
                also_proxy: env.list("CLIENT_ROUTING_ALSO_PROXY_SUBNETS"),
                never_proxy: env.list("CLIENT_ROUTING_NEVER_PROXY_SUBNETS"),
                allow_conflicting: env.list("CLIENT_ROUTING_ALLOW_CONFLICTING_SUBNETS"),
                exclude_suffixes: env.list("CLIENT_DNS_EXCLUDE_SUFFIXES"),
                include_suffixes: env.list("CLIENT_DNS_INCLUDE_SUFFIXES"),
            },
            webhook: WebhookNames {
                service: env.text("AGENT_INJECTOR_NAME").unwrap_or_default(),
                secret: env.text("AGENT_INJECTOR_SECRET").unwrap_or_default(),
                configuration: env.text("AGENT_INJECTOR_WEBHOOK").unwrap_or_default(),
                method: env.word("AGENT_INJECTOR_CERTIFICATE_METHOD", &METHODS),
                alt_names: env.list("AGENT_INJECTOR_ALT_NAMES"),
            },
            rollout: env.word("AGENT_ROLLOUT", &ROLLOUTS),
            rollout_concurrency: env.count("AGENT_ROLLOUT_CONCURRENCY", 5),
            max_idle_time: env
                .duration("AGENT_MAX_IDLE_TIME")
                .filter(|time| !time.is_zero()),
            allow_global: !injector.agent.guard_rails.forbid_global,
            authentication,
            injector,
            ignored: env.ignored(),
            log_level,
        };
        env.faults.into_result()?;
        Ok(settings)
    }

    /// Address and port of the API; without an address all, of both families where there are two.
    pub fn listen(&self) -> SocketAddr {
        // A socket of the IPv6 family takes both families, but not where the node has none of it.
        let any = || match TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)) {
            Ok(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            Err(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        };
        SocketAddr::new(self.server_host.unwrap_or_else(any), self.server_port)
    }

    /// A namespace that this manager looks after.
    pub fn manages(&self, namespace: &str) -> bool {
        self.managed.is_empty() || self.managed.iter().any(|it| it == namespace)
    }
}

const STRATEGIES: [(&str, CidrStrategy); 4] = [
    ("auto", CidrStrategy::Auto),
    ("nodePodCIDRs", CidrStrategy::Nodes),
    ("coverPodIPs", CidrStrategy::Pods),
    ("environment", CidrStrategy::Environment),
];
const METHODS: [(&str, CertificateMethod); 4] = [
    ("manager", CertificateMethod::Manager),
    ("helm", CertificateMethod::Helm),
    ("supplied", CertificateMethod::Supplied),
    ("certmanager", CertificateMethod::CertManager),
];
const AUTHENTICATION: [(&str, AuthenticationMode); 3] = [
    ("disabled", AuthenticationMode::Disabled),
    ("permissive", AuthenticationMode::Permissive),
    ("enforcing", AuthenticationMode::Enforcing),
];
const ROLLOUTS: [(&str, RolloutMode); 3] = [
    ("auto", RolloutMode::Auto),
    ("evict", RolloutMode::Evict),
    ("restart", RolloutMode::Restart),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use injector::{Carrier, InjectPolicy, Mesh, NativeSidecar};
    use traffic_proto::sidecar::MountPolicy;

    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<ClusterSettings, Faults> {
        let base = [("SERVER_PORT", "8081"), ("MANAGER_NAMESPACE", "ambassador")];
        let map: BTreeMap<_, _> = base.iter().chain(pairs).copied().collect();
        ClusterSettings::read(|name| map.get(name).map(|it| (*it).to_owned()))
    }

    #[test]
    fn two_variables_are_enough() {
        let settings = read(&[]).unwrap();
        assert_eq!(settings.injector.image, "traffic-agent:0.1.0");
        assert_eq!(settings.injector.manager_host, "traffic-manager.ambassador");
        assert_eq!(settings.injector.policy, InjectPolicy::Never);
        assert_eq!(settings.injector.first_port, 9900);
        assert_eq!(settings.webhook_port, 0);
        assert_eq!(settings.max_receive_size, 4 << 20);
        assert_eq!(settings.kinds.len(), 3);
        assert_eq!(settings.authentication, AuthenticationMode::Disabled);
        assert!(!settings.injector.manager_token);
        assert!(settings.manages("any"));
    }

    #[test]
    fn every_variable_of_the_chart_has_an_effect() {
        let settings = read(&[
            ("REGISTRY", "r.example/a"),
            ("AGENT_REGISTRY", "r.example/b/"),
            ("AGENT_IMAGE_NAME", "agent"),
            ("AGENT_IMAGE_TAG", "1.2@sha256:00"),
            ("AGENT_IMAGE_PULL_SECRETS", r#"[{"name":"s"}]"#),
            ("AGENT_INJECT_POLICY", "OnDemand"),
            ("AGENT_RESOURCES", r#"{"limits":{"memory":"1Gi"}}"#),
            ("AGENT_SECURITY_CONTEXT", "{}"),
            ("AGENT_MOUNT_POLICIES", r#"{"/tmp":"Local"}"#),
            ("AGENT_NATIVE_SIDECAR", "never"),
            ("AGENT_ROLLOUT", "restart"),
            ("AGENT_ROLLOUT_CONCURRENCY", "2"),
            ("AGENT_MAX_IDLE_TIME", "1h30m"),
            ("AGENT_EXPIRED_NOTIFICATIONS", "true"),
            ("COMPATIBILITY_VERSION", "v2.20.2"),
            ("MANAGED_NAMESPACES", "a b"),
            ("GRPC_MAX_RECEIVE_SIZE", "8Mi"),
            ("ENABLED_WORKLOAD_KINDS", "Deployment"),
            ("ARGO_ROLLOUTS_ENABLED", "true"),
            ("AGENT_INJECTOR_CERTIFICATE_METHOD", "certmanager"),
            ("SERVICE_MESH_TYPE", "istio"),
            ("INTERCEPT_DISABLE_GLOBAL", "true"),
            ("INTERCEPT_ALLOWED_HEADERS", "x-dev X-Team-*"),
            ("INTERCEPT_FORBIDDEN_HEADERS", "cookie"),
            ("INTERCEPT_MAX_LIFETIME", "8h"),
            ("INTERCEPT_MAX_PER_PORT", "3"),
            ("AUTHENTICATION_MODE", "permissive"),
        ])
        .unwrap();
        let injector = &settings.injector;
        assert_eq!(injector.image, "r.example/b/agent:1.2@sha256:00");
        assert_eq!(injector.pull_secrets, ["s"]);
        assert_eq!(injector.policy, InjectPolicy::OnDemand);
        assert!(injector.resources.is_some() && injector.security_context.is_some());
        assert_eq!(injector.mount_policies[0].1, MountPolicy::Local);
        assert_eq!(injector.native_sidecar, NativeSidecar::Never);
        assert_eq!(injector.carrier, Carrier::ConfigMap);
        assert_eq!(injector.mesh, Mesh::Istio);
        assert_eq!(injector.agent.expired_enabled, Some(true));
        assert_eq!(settings.rollout, RolloutMode::Restart);
        assert_eq!(settings.rollout_concurrency, 2);
        assert_eq!(settings.max_idle_time, Some(Duration::from_secs(5400)));
        assert_eq!(settings.managed, ["a", "b"]);
        assert!(!settings.manages("c") && !settings.allow_global);
        let rails = &injector.agent.guard_rails;
        assert_eq!(rails.allowed_headers, ["x-dev", "x-team-*"]);
        assert_eq!(rails.forbidden_headers, ["cookie"]);
        assert_eq!(rails.max_lifetime, Some(Duration::from_secs(8 * 3600)));
        assert_eq!((rails.max_per_port, rails.forbid_global), (Some(3), true));
        assert_eq!(settings.authentication, AuthenticationMode::Permissive);
        assert!(injector.manager_token);
        assert_eq!(settings.max_receive_size, 8 << 20);
        assert_eq!(settings.kinds, [Kind::Deployment, Kind::Rollout]);
        assert_eq!(settings.webhook.method, CertificateMethod::CertManager);
    }

    #[test]
    fn what_has_no_effect_is_named() {
        let pairs = [
            ("AUTHORIZATION_GATE", "any"),
            ("NODE_AGENT_ENABLED", "false"),
            ("TUNNEL_QUIC_PORT", "8443"),
        ];
        let ignored = read(&pairs).unwrap().ignored;
        assert_eq!(ignored.len(), 2, "{ignored:?}");
        assert!(ignored[0].starts_with("AUTHORIZATION_GATE=any has no effect: "));
    }

    #[test]
    fn all_mistakes_are_reported_together_with_their_variable() {
        let faults = read(&[
            ("SERVER_PORT", "x"),
            ("MANAGER_NAMESPACE", " "),
            ("POD_IP", "10.0.0"),
            ("AGENT_ROLLOUT", "now"),
            ("AGENT_RESOURCES", "{"),
            ("AGENT_MAX_IDLE_TIME", "5"),
            ("GRPC_MAX_RECEIVE_SIZE", "much"),
            ("ENABLED_WORKLOAD_KINDS", "Pod"),
            ("AGENT_MOUNT_POLICIES", r#"{"/tmp":"x"}"#),
            ("AGENT_INIT_CONTAINER_ENABLED", "maybe"),
            ("INTERCEPT_ALLOWED_HEADERS", "x:"),
            ("AUTHENTICATION_MODE", "strict"),
            ("INTERCEPT_MAX_PER_PORT", "few"),
        ])
        .unwrap_err();
        let text = faults.to_string();
        for name in [
            "SERVER_PORT",
            "MANAGER_NAMESPACE",
            "POD_IP",
            "AGENT_ROLLOUT",
            "AGENT_RESOURCES",
            "AGENT_MAX_IDLE_TIME",
            "GRPC_MAX_RECEIVE_SIZE",
            "ENABLED_WORKLOAD_KINDS",
            "AGENT_MOUNT_POLICIES",
            "AGENT_INIT_CONTAINER_ENABLED",
            "INTERCEPT_ALLOWED_HEADERS",
            "AUTHENTICATION_MODE",
            "INTERCEPT_MAX_PER_PORT",
        ] {
            assert!(text.contains(name), "{name}: {text}");
        }
    }
}
