//! The manager's environment in a cluster: every variable that charts set, read into settings.
//! Reading never stops at the first mistake: all are reported together.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::str::FromStr;
use std::time::Duration;

use injector::{
    AgentOptions, Carrier, InjectPolicy, Kind, Mesh, NativeSidecar, Settings as InjectorSettings,
};
use serde::de::DeserializeOwned;
use traffic_proto::duration::GoDuration;
use traffic_proto::sidecar::MountPolicy;
use traffic_proto::{Fault, Faults};

use super::quantity;

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
    /// How the pods' networks are found.
    pub pod_cidr_strategy: CidrStrategy,
    /// The pods' networks, for [`CidrStrategy::Environment`].
    pub pod_cidrs: Vec<String>,
    /// Largest gRPC message that is taken.
    pub max_receive_size: usize,
    /// How long a new intercept waits for an agent.
    pub arrival_timeout: Duration,
    /// How long a client that is not heard of keeps its session.
    pub connection_ttl: Duration,
    /// The version to announce; empty: the highest level that is wholly served.
    pub compatibility: String,
    /// Workload kinds in use.
    pub kinds: Vec<Kind>,
    /// Domain of the cluster; empty: found out.
    pub cluster_domain: String,
    /// What clients are told about routes and names.
    pub client: ClientHints,
    /// The webhook's Service, Secret and configuration.
    pub webhook: WebhookNames,
    /// How pods get and lose an agent.
    pub rollout: RolloutMode,
    /// Workloads rolled at once.
    pub rollout_concurrency: usize,
    /// An agent without an intercept for this long is removed; none: never.
    pub max_idle_time: Option<Duration>,
    /// Intercepts of a whole port are allowed.
    pub allow_global: bool,
    /// Everything that shapes a pod.
    pub injector: InjectorSettings,
}

/// How the pods' networks are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CidrStrategy {
    /// By the nodes where that is possible, else by the pods.
    #[default]
    Auto,
    /// By the nodes.
    Nodes,
    /// By the pods' addresses.
    Pods,
    /// As configured.
    Environment,
}

/// How pods get and lose an agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RolloutMode {
    /// By eviction where two are ready, else by the workload's own roll-out.
    #[default]
    Auto,
    /// By eviction.
    Evict,
    /// By the workload's own roll-out.
    Restart,
}

/// What clients are told about routes and names.
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
    /// Who makes its certificate.
    pub method: CertificateMethod,
    /// Further names in the certificate.
    pub alt_names: Vec<String>,
}

/// Who makes the webhook's certificate.
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
            allow_global: env.flag("INTERCEPT_ALLOW_GLOBAL", true)
                && !env.flag("INTERCEPT_DISABLE_GLOBAL", false),
            injector: env.injector(&log_level),
            log_level,
        };
        env.faults.into_result()?;
        Ok(settings)
    }

    /// Address and port of the API; without an address all, of both families where there are two.
    pub fn listen(&self) -> SocketAddr {
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
const ROLLOUTS: [(&str, RolloutMode); 3] = [
    ("auto", RolloutMode::Auto),
    ("evict", RolloutMode::Evict),
    ("restart", RolloutMode::Restart),
];
const POLICIES: [(&str, InjectPolicy); 3] = [
    ("OnDemand", InjectPolicy::OnDemand),
    ("WhenEnabled", InjectPolicy::WhenEnabled),
    ("Never", InjectPolicy::Never),
];
const NATIVE: [(&str, NativeSidecar); 3] = [
    ("auto", NativeSidecar::Auto),
    ("always", NativeSidecar::Always),
    ("never", NativeSidecar::Never),
];
const MESHES: [(&str, Mesh); 2] = [("none", Mesh::None), ("istio", Mesh::Istio)];

struct Reader<'a> {
    get: &'a dyn Fn(&str) -> Option<String>,
    faults: Faults,
}

impl Reader<'_> {
    /// A variable that is set to something.
    fn text(&mut self, name: &str) -> Option<String> {
        let text = (self.get)(name)?.trim().to_owned();
        (!text.is_empty()).then_some(text)
    }

    fn required(&mut self, name: &str, remedy: &str) -> String {
        let text = self.text(name);
        if text.is_none() {
            self.faults.push(Fault::missing(name, "is not set", remedy));
        }
        text.unwrap_or_default()
    }

    fn parsed<T: FromStr>(&mut self, name: &str, problem: &str, remedy: &str) -> Option<T> {
        let text = self.text(name)?;
        let parsed = text.parse().ok();
        if parsed.is_none() {
            self.faults.push(Fault::text(name, &text, problem, remedy));
        }
        parsed
    }

    fn port(&mut self, name: &str) -> Option<u16> {
        self.parsed(name, "no port number", "write 0 to 65535")
    }

    fn required_port(&mut self, name: &str) -> u16 {
        self.required(name, "write the port of the API, 8081");
        self.port(name).unwrap_or(0)
    }

    fn count(&mut self, name: &str, default: usize) -> usize {
        let count: Option<usize> = self.parsed(name, "no number", "write 1 or more");
        count.unwrap_or(default).max(1)
    }

    /// As Go's parser takes them.
    fn flag(&mut self, name: &str, default: bool) -> bool {
        let Some(text) = self.text(name) else {
            return default;
        };
        match text.to_ascii_lowercase().as_str() {
            "1" | "t" | "true" => true,
            "0" | "f" | "false" => false,
            _ => {
                let problem = "neither true nor false";
                self.faults
                    .push(Fault::text(name, &text, problem, "write true or false"));
                default
            }
        }
    }

    fn list(&mut self, name: &str) -> Vec<String> {
        let text = self.text(name).unwrap_or_default();
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn duration(&mut self, name: &str) -> Option<Duration> {
        let text = self.text(name)?;
        match text.parse::<GoDuration>().map(GoDuration::to_std) {
            Ok(Some(duration)) => return Some(duration),
            Ok(None) => self
                .faults
                .push(Fault::text(name, &text, "negative", "write 0s or more")),
            Err(error) => {
                let (problem, remedy) = (error.to_string(), error.remedy());
                self.faults.push(Fault::text(name, &text, problem, remedy));
            }
        }
        None
    }

    fn size(&mut self, name: &str, default: usize) -> usize {
        let Some(text) = self.text(name) else {
            return default;
        };
        quantity::bytes(&text).unwrap_or_else(|| {
            let problem = "no quantity of bytes";
            self.faults
                .push(Fault::text(name, &text, problem, "write it like 4Mi"));
            default
        })
    }

    /// One of several words, in any letter case; the first is the default.
    fn word<T: Copy>(&mut self, name: &str, words: &[(&str, T)]) -> T {
        let default = words[0].1;
        let Some(text) = self.text(name) else {
            return default;
        };
        let found = words
            .iter()
            .find(|(word, _)| word.eq_ignore_ascii_case(&text));
        found.map_or_else(
            || {
                let known: Vec<_> = words.iter().map(|(word, _)| *word).collect();
                let remedy = format!("write one of {}", known.join(", "));
                self.faults
                    .push(Fault::text(name, &text, "unknown word", remedy));
                default
            },
            |(_, value)| *value,
        )
    }

    fn json<T: DeserializeOwned>(&mut self, name: &str) -> Option<T> {
        let text = self.text(name)?;
        match serde_json::from_str(&text) {
            Ok(value) => Some(value),
            Err(error) => {
                let problem = format!("no JSON of the expected form: {error}");
                let remedy = "write it as in a pod's specification";
                self.faults.push(Fault::text(name, &text, problem, remedy));
                None
            }
        }
    }

    fn kinds(&mut self) -> Vec<Kind> {
        let mut kinds = Vec::new();
        for word in self.list("ENABLED_WORKLOAD_KINDS") {
            match word.parse() {
                Ok(kind) if !kinds.contains(&kind) => kinds.push(kind),
                Ok(_) => {}
                Err(_) => self.faults.push(Fault::text(
                    "ENABLED_WORKLOAD_KINDS",
                    &word,
                    "unknown kind",
                    "write Deployment, ReplicaSet, StatefulSet, Rollout",
                )),
            }
        }
        if kinds.is_empty() {
            kinds = vec![Kind::Deployment, Kind::ReplicaSet, Kind::StatefulSet];
        }
        if self.flag("ARGO_ROLLOUTS_ENABLED", false) && !kinds.contains(&Kind::Rollout) {
            kinds.push(Kind::Rollout);
        }
        kinds
    }

    fn injector(&mut self, log_level: &str) -> InjectorSettings {
        let namespace = self.text("MANAGER_NAMESPACE").unwrap_or_default();
        let strategy = self.text("AGENT_APP_PROTO_STRATEGY");
        let level = self.text("AGENT_LOG_LEVEL");
        let compatibility = self.text("COMPATIBILITY_VERSION").unwrap_or_default();
        let known = "unknown strategy";
        InjectorSettings {
            image: self.image(),
            pull_policy: self.text("AGENT_IMAGE_PULL_POLICY").unwrap_or_default(),
            pull_secrets: self.pull_secrets(),
            policy: match self.text("AGENT_INJECT_POLICY") {
                None => InjectPolicy::Never,
                Some(_) => self.word("AGENT_INJECT_POLICY", &POLICIES),
            },
            strategy: match strategy {
                None => Default::default(),
                Some(_) => self
                    .parsed(
                        "AGENT_APP_PROTO_STRATEGY",
                        known,
                        "write http2Probe, portName, http or http2",
                    )
                    .unwrap_or_default(),
            },
            first_port: self
                .port("AGENT_PORT")
                .filter(|port| *port != 0)
                .unwrap_or(9900),
            manager_host: format!("traffic-manager.{namespace}"),
            manager_port: self.port("SERVER_PORT").unwrap_or(8081),
            api_port: self.port("AGENT_REST_API_PORT").unwrap_or(0),
            tracing_port: self.port("TRACING_GRPC_PORT").unwrap_or(0),
            log_level: level.unwrap_or_else(|| log_level.to_owned()),
            resources: self.json("AGENT_RESOURCES"),
            init_resources: self.json("AGENT_INIT_RESOURCES"),
            security_context: self.json("AGENT_SECURITY_CONTEXT"),
            init_security_context: self.json("AGENT_INIT_SECURITY_CONTEXT"),
            init_container: self.flag("AGENT_INIT_CONTAINER_ENABLED", true),
            mesh: self.word("SERVICE_MESH_TYPE", &MESHES),
            native_sidecar: self.word("AGENT_NATIVE_SIDECAR", &NATIVE),
            server_version: None,
            carrier: carrier(&compatibility),
            mount_policies: self.mount_policies(),
            linkerd_skip_ports: self.flag("LINKERD_SKIP_PORTS", false),
            agent: self.agent_options(),
        }
    }

    fn agent_options(&mut self) -> AgentOptions {
        let set = |name: &str, reader: &mut Self| {
            reader.text(name)?;
            Some(reader.flag(name, false))
        };
        AgentOptions {
            envoy_log_level: self.text("AGENT_ENVOY_LOG_LEVEL"),
            envoy_server_port: self.port("AGENT_ENVOY_SERVER_PORT").filter(|it| *it != 0),
            envoy_admin_port: self.port("AGENT_ENVOY_ADMIN_PORT").filter(|it| *it != 0),
            expired_enabled: set("AGENT_EXPIRED_NOTIFICATIONS", self),
            expired_deadline: self.duration("AGENT_EXPIRED_DEADLINE"),
            enable_h2c_probing: set("AGENT_ENABLE_H2C_PROBING", self),
            enable_metrics: set("AGENT_CONSUMPTION_METRICS", self),
            watch_retry_interval: self.duration("AGENT_WATCH_RETRY_INTERVAL"),
            client_connection_ttl: self.duration("CLIENT_CONNECTION_TTL"),
            session_grace: self.duration("AGENT_SESSION_GRACE"),
            drain_lame_duck: self.duration("AGENT_DRAIN_LAME_DUCK"),
            drain_grace: self.duration("AGENT_DRAIN_GRACE"),
        }
    }

    /// Registry, name and tag to one reference.
    fn image(&mut self) -> String {
        let registry = self
            .text("AGENT_REGISTRY")
            .or_else(|| self.text("REGISTRY"))
            .unwrap_or_default();
        let name = self
            .text("AGENT_IMAGE_NAME")
            .unwrap_or_else(|| "traffic-agent".to_owned());
        let tag = self
            .text("AGENT_IMAGE_TAG")
            .unwrap_or_else(|| env!("CARGO_PKG_VERSION").to_owned());
        match registry.trim_end_matches('/') {
            "" => format!("{name}:{tag}"),
            registry => format!("{registry}/{name}:{tag}"),
        }
    }

    fn pull_secrets(&mut self) -> Vec<String> {
        #[derive(serde::Deserialize)]
        struct Named {
            name: String,
        }
        let named: Vec<Named> = self.json("AGENT_IMAGE_PULL_SECRETS").unwrap_or_default();
        named.into_iter().map(|it| it.name).collect()
    }

    fn mount_policies(&mut self) -> Vec<(String, MountPolicy)> {
        let map: BTreeMap<String, String> = self.json("AGENT_MOUNT_POLICIES").unwrap_or_default();
        let mut policies = Vec::new();
        for (at, word) in map {
            match word.parse() {
                Ok(policy) => policies.push((at, policy)),
                Err(_) => self.faults.push(Fault::text(
                    format!("AGENT_MOUNT_POLICIES[{at:?}]"),
                    &word,
                    "unknown mount policy",
                    "write Remote, RemoteReadOnly, Local or Ignore",
                )),
            }
        }
        policies
    }
}

/// Agents of the generation up to 2.21 read a ConfigMap.
fn carrier(compatibility: &str) -> Carrier {
    let version = compatibility.strip_prefix('v').unwrap_or(compatibility);
    match semver::Version::parse(version) {
        Ok(version) if version < semver::Version::new(2, 22, 0) => Carrier::ConfigMap,
        _ => Carrier::Annotation,
    }
}

#[cfg(test)]
mod tests {
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
        assert_eq!(settings.max_receive_size, 8 << 20);
        assert_eq!(settings.kinds, [Kind::Deployment, Kind::Rollout]);
        assert_eq!(settings.webhook.method, CertificateMethod::CertManager);
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
        ] {
            assert!(text.contains(name), "{name}: {text}");
        }
    }
}
