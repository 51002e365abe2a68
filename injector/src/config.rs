//! The agent's configuration as it is written: keys of both generations, zero values left out.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ResourceRequirements, SecurityContext};
use serde::Serialize;
use traffic_proto::Transport;
use traffic_proto::duration::GoDuration;
use traffic_proto::guard_rails::GuardRails;
use traffic_proto::sidecar::MountPolicy;

use crate::settings::{AgentOptions, Settings};

/// Configuration of the agents of one workload. Fields are in the order in which keys are written,
/// which is alphabetical.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    /// The agent's image.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub agent_image: String,
    /// The workload's name.
    pub agent_name: String,
    /// Port of the REST API; 0: none.
    #[serde(skip_serializing_if = "is_zero")]
    pub api_port: u16,
    /// Detection of an undeclared port's protocol.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub app_protocol_strategy: String,
    /// Interval of keepalive towards the manager.
    #[serde(
        rename = "clientConnectionTTL",
        skip_serializing_if = "Option::is_none"
    )]
    pub client_connection_ttl: Option<String>,
    /// The app containers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<ConfigContainer>,
    /// Times of the agent's end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain: Option<ConfigDrain>,
    /// Clear-text ports may be probed for HTTP/2.
    #[serde(rename = "enableH2cProbing", skip_serializing_if = "Option::is_none")]
    pub enable_h2c_probing: Option<bool>,
    /// Consumption is reported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enable_metrics: Option<bool>,
    /// Settings of the data path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub envoy: Option<ConfigEnvoy>,
    /// Response to requests whose intercept has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expired_notifications: Option<ConfigExpired>,
    /// The platform team's rules on intercepts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guard_rails: Option<ConfigGuardRails>,
    /// Resources of the init container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_resources: Option<ResourceRequirements>,
    /// Security context of the init container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_security_context: Option<SecurityContext>,
    /// The agent's log level.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub log_level: String,
    /// Host of the manager.
    pub manager_host: String,
    /// Port of the manager.
    pub manager_port: u16,
    /// Maintained by hand.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub manual: bool,
    /// The port of metrics.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics: Option<ConfigMetrics>,
    /// Volume name or path prefix to policy.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub mount_policies: BTreeMap<String, &'static str>,
    /// The workload's namespace.
    pub namespace: String,
    /// Pull policy of the image.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub pull_policy: String,
    /// Secrets for pulling it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pull_secrets: Vec<PullSecret>,
    /// Resources of the agent's container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// Security context of the agent's container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub security_context: Option<SecurityContext>,
    /// Time the last intercepts stay in force without a manager.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_grace: Option<String>,
    /// Port of the tracing service; 0: none.
    #[serde(skip_serializing_if = "is_zero")]
    pub tracing_port: u16,
    /// Pause before a broken watch is opened again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub watch_retry_interval: Option<String>,
    /// The workload's kind.
    pub workload_kind: String,
    /// The workload's name.
    pub workload_name: String,
}

/// A Secret's name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PullSecret {
    /// The name.
    pub name: String,
}

/// Settings of the data path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ConfigEnvoy {
    /// Port of the agent's administration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin_port: Option<u16>,
    /// Log level.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_level: Option<String>,
    /// Port of the agent's gRPC service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_port: Option<u16>,
}

/// The platform team's rules on intercepts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ConfigGuardRails {
    /// Whole ports may be intercepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_global: Option<bool>,
    /// The only headers that may be intercepted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allowed_headers: Vec<String>,
    /// Headers that may not be intercepted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub forbidden_headers: Vec<String>,
    /// Time an intercept may live.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_lifetime: Option<String>,
    /// Most intercepts of a port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_per_port: Option<usize>,
}

/// The port that shows metrics alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ConfigMetrics {
    /// The port.
    pub port: u16,
}

/// Times of the agent's end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ConfigDrain {
    /// Time for open connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grace: Option<String>,
    /// Time connections are still accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lame_duck: Option<String>,
}

/// Response to requests whose intercept has ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ConfigExpired {
    /// Time after the intercept's end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline: Option<String>,
    /// Notifications are on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
}

/// An app container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ConfigContainer {
    /// Mount paths, as agents up to 2.21 read them.
    #[serde(rename = "Mounts", skip_serializing_if = "Vec::is_empty")]
    pub listed_mounts: Vec<String>,
    /// Prefix of its variables in the agent.
    pub env_prefix: String,
    /// Ports that can be intercepted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub intercepts: Vec<Entry>,
    /// Directory of its volumes in the agent.
    pub mount_point: String,
    /// Mount path to policy, as later agents read them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub mounts: BTreeMap<String, &'static str>,
    /// Container name.
    pub name: String,
    /// 1: a workstation stands in for it.
    #[serde(skip_serializing_if = "is_no_replacement")]
    pub replace: u8,
    /// The container is replaced, and its agent listens on its ports: what agents do that read an
    /// annotation. Older ones listen where they always do.
    #[serde(skip)]
    pub takes_ports: bool,
}

/// A service port, or a container port without a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// Port of the agent.
    pub agent_port: u16,
    /// Empty when undeclared.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub app_protocol: String,
    /// Port of the app.
    pub container_port: u16,
    /// Name of the container port; may be empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub container_port_name: String,
    /// Callers dial the pod itself, so that they have to be redirected.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub headless: bool,
    /// Port by which the agent reaches the app past the redirect, where the usual one is taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inactive_port: Option<u16>,
    /// TCP or UDP.
    pub protocol: Transport,
    /// Empty without a service.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub service_name: String,
    /// Port of the service; 0 without one.
    #[serde(skip_serializing_if = "is_zero")]
    pub service_port: u16,
    /// Name of the service port; may be empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub service_port_name: String,
    /// Uid of the service.
    #[serde(rename = "serviceUID", skip_serializing_if = "String::is_empty")]
    pub service_uid: String,
    /// The service names the target by number, so that callers have to be redirected.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub target_port_numeric: bool,
}

impl Entry {
    /// Callers reach the agent by a redirect of the app's port, and not by the port's name.
    pub fn is_redirected(&self) -> bool {
        self.headless || self.target_port_numeric
    }
}

impl ConfigContainer {
    /// A workstation stands in for the container.
    pub fn is_replaced(&self) -> bool {
        self.replace == 1
    }

    /// Port on which the agent listens for an entry.
    pub fn listens_on(&self, entry: &Entry) -> u16 {
        if self.takes_ports {
            entry.container_port
        } else {
            entry.agent_port
        }
    }
}

impl Config {
    /// Returns the configuration for the pod's annotation, without fields that only the injector
    /// reads.
    pub fn for_agent(&self) -> Self {
        Self {
            agent_image: String::new(),
            init_resources: None,
            init_security_context: None,
            pull_policy: String::new(),
            pull_secrets: Vec::new(),
            resources: None,
            security_context: None,
            ..self.clone()
        }
    }

    /// JSON, which every agent reads, also where YAML is expected.
    pub fn to_json(&self) -> String {
        // Maps with text keys and finite numbers always serialize.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Returns true if a port is redirected by an init container or a mesh.
    pub fn has_redirects(&self) -> bool {
        let behind = self.containers.iter().filter(|it| !it.takes_ports);
        behind
            .flat_map(|it| &it.intercepts)
            .any(Entry::is_redirected)
    }

    /// Iterates over all entries with their containers.
    pub fn entries(&self) -> impl Iterator<Item = (&ConfigContainer, &Entry)> {
        self.containers
            .iter()
            .flat_map(|container| container.intercepts.iter().map(move |it| (container, it)))
    }

    /// A configuration without containers.
    pub(crate) fn of(settings: &Settings, kind: &str, name: &str, namespace: &str) -> Self {
        let options = &settings.agent;
        let strategy = settings.strategy;
        Self {
            agent_image: settings.image.clone(),
            agent_name: name.to_owned(),
            api_port: settings.api_port,
            app_protocol_strategy: match strategy == Default::default() {
                true => String::new(),
                false => strategy.name().to_owned(),
            },
            client_connection_ttl: options.client_connection_ttl.map(go),
            containers: Vec::new(),
            drain: drain(options),
            metrics: options.metrics_port.map(|port| ConfigMetrics { port }),
            enable_h2c_probing: options.enable_h2c_probing,
            enable_metrics: options.enable_metrics,
            envoy: envoy(options),
            expired_notifications: expired(options),
            guard_rails: guard_rails(&options.guard_rails),
            init_resources: settings.init_resources.clone(),
            init_security_context: settings.init_security_context.clone(),
            log_level: settings.log_level.clone(),
            manager_host: settings.manager_host.clone(),
            manager_port: settings.manager_port,
            manual: false,
            mount_policies: settings
                .mount_policies
                .iter()
                .map(|(at, policy)| (at.clone(), policy.name()))
                .collect(),
            namespace: namespace.to_owned(),
            pull_policy: settings.pull_policy.clone(),
            pull_secrets: settings
                .pull_secrets
                .iter()
                .map(|name| PullSecret { name: name.clone() })
                .collect(),
            resources: settings.resources.clone(),
            security_context: settings.security_context.clone(),
            session_grace: options.session_grace.map(go),
            tracing_port: settings.tracing_port,
            watch_retry_interval: options.watch_retry_interval.map(go),
            workload_kind: kind.to_owned(),
            workload_name: name.to_owned(),
        }
    }
}

fn envoy(options: &AgentOptions) -> Option<ConfigEnvoy> {
    let envoy = ConfigEnvoy {
        admin_port: options.envoy_admin_port,
        log_level: options.envoy_log_level.clone(),
        server_port: options.envoy_server_port,
    };
    (envoy != ConfigEnvoy::default()).then_some(envoy)
}

fn drain(options: &AgentOptions) -> Option<ConfigDrain> {
    let drain = ConfigDrain {
        grace: options.drain_grace.map(go),
        lame_duck: options.drain_lame_duck.map(go),
    };
    (drain != ConfigDrain::default()).then_some(drain)
}

fn expired(options: &AgentOptions) -> Option<ConfigExpired> {
    let expired = ConfigExpired {
        deadline: options.expired_deadline.map(go),
        enabled: options.expired_enabled,
    };
    (expired != ConfigExpired::default()).then_some(expired)
}

fn guard_rails(rails: &GuardRails) -> Option<ConfigGuardRails> {
    let config = ConfigGuardRails {
        allow_global: rails.forbid_global.then_some(false),
        allowed_headers: rails.allowed_headers.clone(),
        forbidden_headers: rails.forbidden_headers.clone(),
        max_lifetime: rails.max_lifetime.map(go),
        max_per_port: rails.max_per_port,
    };
    (config != ConfigGuardRails::default()).then_some(config)
}

fn go(duration: std::time::Duration) -> String {
    GoDuration::from(duration).to_string()
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "the shape serde asks for"
)]
fn is_zero(number: &u16) -> bool {
    *number == 0
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "the shape serde asks for"
)]
fn is_no_replacement(replace: &u8) -> bool {
    *replace == 0
}

/// A policy for a mount, by the most special rule: what is ignored, then the volume's name, then
/// the longest directory above the path, annotations before settings.
pub(crate) fn mount_policy(
    volume: &str,
    path: &str,
    ignored: &[String],
    rules: &[&[(String, MountPolicy)]],
) -> MountPolicy {
    if ignored
        .iter()
        .any(|item| item == volume || path.starts_with(item.as_str()))
    {
        return MountPolicy::Ignore;
    }
    for rules in rules {
        if let Some((_, policy)) = rules.iter().find(|(at, _)| at == volume) {
            return *policy;
        }
        // The deepest directory decides, as with mounts.
        let above = rules.iter().filter(|(at, _)| is_above(at, path));
        if let Some((_, policy)) = above.max_by_key(|(at, _)| at.len()) {
            return *policy;
        }
    }
    MountPolicy::Remote
}

fn is_above(directory: &str, path: &str) -> bool {
    directory.starts_with('/')
        && path
            .strip_prefix(directory.trim_end_matches('/'))
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_special_policy_counts() {
        use MountPolicy::{Ignore, Local, Remote, RemoteReadonly};
        let annotated = [("data".to_owned(), RemoteReadonly)];
        let chart = [
            ("/tmp".to_owned(), Local),
            ("/tmp/shared".to_owned(), Remote),
            ("cache".to_owned(), Ignore),
        ];
        let ignored = ["secret".to_owned(), "/var/run".to_owned()];
        for (volume, path, policy) in [
            ("a", "/tmp", Local),
            ("a", "/tmp/x", Local),
            ("a", "/tmpfiles", Remote),
            ("a", "/tmp/shared/x", Remote),
            ("cache", "/tmp/x", Ignore),
            ("data", "/tmp/x", RemoteReadonly),
            ("secret", "/etc", Ignore),
            ("a", "/var/run/x", Ignore),
            ("a", "/srv", Remote),
        ] {
            let rules = [&annotated[..], &chart[..]];
            assert_eq!(
                mount_policy(volume, path, &ignored, &rules),
                policy,
                "{volume} {path}"
            );
        }
    }
}
