//! Settings of the agents that the webhook puts into pods, and of the workloads that may have them.

use std::collections::BTreeMap;

use injector::{
    AgentOptions, Carrier, InjectPolicy, Kind, Mesh, NativeSidecar, Settings as InjectorSettings,
};
use traffic_proto::Fault;
use traffic_proto::guard_rails::{GuardRails, Rule};
use traffic_proto::sidecar::MountPolicy;

use crate::cluster::env::reader::Reader;

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

impl Reader<'_> {
    pub(super) fn kinds(&mut self) -> Vec<Kind> {
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
        // The stock chart's switch, beside the list of kinds.
        if self.flag("ARGO_ROLLOUTS_ENABLED", false) && !kinds.contains(&Kind::Rollout) {
            kinds.push(Kind::Rollout);
        }
        kinds
    }

    pub(super) fn injector(&mut self, log_level: &str) -> InjectorSettings {
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
            // By the Service, whose name stays when the manager's pod is replaced.
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
            manager_token: false,
            agent: self.agent_options(),
        }
    }

    fn agent_options(&mut self) -> AgentOptions {
        // Unset is not false: it leaves the choice to the agent, whose default may change with its
        // version.
        let set = |name: &str, reader: &mut Self| {
            reader.text(name)?;
            Some(reader.flag(name, false))
        };
        AgentOptions {
            envoy_log_level: self.text("AGENT_ENVOY_LOG_LEVEL"),
            // A port of 0 stands for "not given" in charts.
            envoy_server_port: self.port("AGENT_ENVOY_SERVER_PORT").filter(|it| *it != 0),
            envoy_admin_port: self.port("AGENT_ENVOY_ADMIN_PORT").filter(|it| *it != 0),
            metrics_port: self.port("AGENT_METRICS_PORT").filter(|it| *it != 0),
            expired_enabled: set("AGENT_EXPIRED_NOTIFICATIONS", self),
            expired_deadline: self.duration("AGENT_EXPIRED_DEADLINE"),
            enable_h2c_probing: set("AGENT_ENABLE_H2C_PROBING", self),
            enable_metrics: set("AGENT_CONSUMPTION_METRICS", self),
            watch_retry_interval: self.duration("AGENT_WATCH_RETRY_INTERVAL"),
            client_connection_ttl: self.duration("CLIENT_CONNECTION_TTL"),
            session_grace: self.duration("AGENT_SESSION_GRACE"),
            drain_lame_duck: self.duration("AGENT_DRAIN_LAME_DUCK"),
            drain_grace: self.duration("AGENT_DRAIN_GRACE"),
            guard_rails: self.guard_rails(),
        }
    }

    fn guard_rails(&mut self) -> GuardRails {
        let mut rails = GuardRails {
            forbid_global: !self.allows_global(),
            ..GuardRails::default()
        };
        for (rule, variable) in [
            (Rule::AllowedHeaders, "INTERCEPT_ALLOWED_HEADERS"),
            (Rule::ForbiddenHeaders, "INTERCEPT_FORBIDDEN_HEADERS"),
            (Rule::MaxLifetime, "INTERCEPT_MAX_LIFETIME"),
            (Rule::MaxPerPort, "INTERCEPT_MAX_PER_PORT"),
        ] {
            let Some(text) = self.text(variable) else {
                continue;
            };
            if let Err(problem) = rails.set(rule, &text) {
                let fault = Fault::text(variable, &text, problem, rule.remedy());
                self.faults.push(fault);
            }
        }
        rails
    }

    /// Whole ports may be intercepted.
    fn allows_global(&mut self) -> bool {
        self.flag("INTERCEPT_ALLOW_GLOBAL", true) && !self.flag("INTERCEPT_DISABLE_GLOBAL", false)
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
        // In the order of the paths, so that equal settings give equal configurations.
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
