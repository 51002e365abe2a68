//! Annotations of pods and templates: every spelling, read into one type.
//!
//! Two domains are in use, the newer one wins where both have a key.

use std::collections::BTreeMap;
use std::str::FromStr;

use traffic_proto::fault::{Fault, Faults};
use traffic_proto::guard_rails::GuardRails;
use traffic_proto::port_identifier::{NameOrNumber, PortIdentifier};
use traffic_proto::sidecar::MountPolicy;

/// Domain of the generation since 2.22.
pub const DOMAIN: &str = "telepresence.io/";
/// Domain of the generation before.
pub const OLDER_DOMAIN: &str = "telepresence.getambassador.io/";
/// Domain of the oldest names of the two TLS annotations.
pub const OLDEST_DOMAIN: &str = "getambassador.io/";

/// Says whether a pod is to get an agent.
pub const INJECT: &str = "inject-traffic-agent";
/// Time of a rollout of ours.
pub const RESTARTED_AT: &str = "restartedAt";
/// The agent's configuration, as JSON.
pub const AGENT_CONFIG: &str = "telepresence.io/agent-config";
/// Digest of everything that made the agent what it is.
pub const DIGEST: &str = "telepresence.io/agent-digest";
/// The JSON of a container that a workstation replaces; its name follows.
pub const REPLACED: &str = "telepresence.io/replaced-container.";

const SERVICE_NAME: &str = "inject-service-name";
const SERVICE_PORTS: &str = "inject-service-ports";
const SERVICE_PORT: &str = "inject-service-port";
const CONTAINER_PORTS: &str = "inject-container-ports";
const IGNORE_MOUNTS: &str = "inject-ignore-volume-mounts";
const MOUNT_POLICIES: &str = "mount-policies";
const MANUAL: &str = "manually-injected";
const INACTIVE_PORT: &str = "inject-inactive-port";
const TERMINATING: &str = "inject-terminating-tls-secret";
const ORIGINATING: &str = "inject-originating-tls-secret";
/// Names of annotations that name a Secret for the port in their suffix.
const PORT_SECRETS: [&str; 5] = [
    "downstream-tls-secret",
    "downstream-cert-secret",
    "upstream-tls-secret",
    "upstream-cert-secret",
    "downstream-client-ca-secret",
];

/// The annotations of any of our domains.
pub fn ours(annotations: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let known = |key: &String| {
        [DOMAIN, OLDER_DOMAIN, OLDEST_DOMAIN]
            .iter()
            .any(|domain| key.starts_with(domain))
    };
    annotations
        .iter()
        .filter(|(key, _)| known(key))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

/// Answer to whether a pod is to get an agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Inject {
    /// Unset: the policy decides.
    #[default]
    Unset,
    /// Always.
    Enabled,
    /// Disabled: never.
    Disabled,
}

/// Requests made by annotations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// Agent or not.
    pub inject: Inject,
    /// The only Service to consider.
    pub service_name: Option<String>,
    /// The only ports of Services to consider; none: all.
    pub service_ports: Vec<PortIdentifier>,
    /// Ports that need no Service.
    pub container_ports: Vec<PortIdentifier>,
    /// Volume names and path prefixes that are not shared.
    pub ignored_mounts: Vec<String>,
    /// Volume name or path prefix to policy.
    pub mount_policies: Vec<(String, MountPolicy)>,
    /// Container and volumes are in the template already.
    pub manual: bool,
    /// Odd but harmless.
    pub warnings: Vec<Fault>,
}

/// Reads annotations.
///
/// # Errors
/// Every annotation that cannot be followed.
pub fn read(annotations: &BTreeMap<String, String>) -> Result<Requests, Faults> {
    let mut reader = Reader {
        annotations,
        faults: Faults::default(),
        warnings: Vec::new(),
    };
    let mut requests = Requests {
        inject: reader.inject(),
        service_name: reader.text(SERVICE_NAME).map(|(_, name)| name),
        service_ports: reader.service_ports(),
        container_ports: reader.ports(CONTAINER_PORTS).unwrap_or_default(),
        ignored_mounts: reader.ignored_mounts(),
        mount_policies: reader.mount_policies(),
        manual: reader.flag(MANUAL),
        warnings: Vec::new(),
    };
    reader.not_followed(INACTIVE_PORT);
    // The agent reads them itself; one that cannot be followed must not be missed before.
    if let Err(faults) = GuardRails::of_annotations(annotations) {
        reader.faults.append(faults);
    }
    requests.warnings = reader.warnings;
    reader.faults.into_result()?;
    Ok(requests)
}

/// Reads only the annotation that names the one Service to consider.
pub fn service_name(annotations: &BTreeMap<String, String>) -> Option<String> {
    let mut reader = Reader {
        annotations,
        faults: Faults::default(),
        warnings: Vec::new(),
    };
    reader.text(SERVICE_NAME).map(|(_, name)| name)
}

/// Reads only the annotation about injection.
///
/// # Errors
/// The value is invalid.
pub fn inject(annotations: &BTreeMap<String, String>) -> Result<Inject, Faults> {
    let mut reader = Reader {
        annotations,
        faults: Faults::default(),
        warnings: Vec::new(),
    };
    let inject = reader.inject();
    reader.faults.into_result()?;
    Ok(inject)
}

/// Returns true if container and volumes are in the template already.
pub fn is_manual(annotations: &BTreeMap<String, String>) -> bool {
    [DOMAIN, OLDER_DOMAIN]
        .iter()
        .filter_map(|domain| annotations.get(&format!("{domain}{MANUAL}")))
        .any(|value| value.trim() == "true")
}

struct Reader<'a> {
    annotations: &'a BTreeMap<String, String>,
    faults: Faults,
    warnings: Vec<Fault>,
}

impl Reader<'_> {
    /// Full key and trimmed value; an empty value counts as absent.
    fn text(&mut self, name: &str) -> Option<(String, String)> {
        let mut found: Option<(String, String)> = None;
        for domain in [DOMAIN, OLDER_DOMAIN] {
            let key = format!("{domain}{name}");
            let Some(value) = self.annotations.get(&key).map(|it| it.trim()) else {
                continue;
            };
            match &found {
                Some((first, other)) if other != value => {
                    let problem = format!("differs from {first}, which counts");
                    self.warnings
                        .push(Fault::text(key, value, problem, "remove one of them"));
                }
                Some(_) => {}
                None if value.is_empty() => {}
                None => found = Some((key, value.to_owned())),
            }
        }
        found
    }

    fn inject(&mut self) -> Inject {
        let Some((key, value)) = self.text(INJECT) else {
            return Inject::Unset;
        };
        match value.as_str() {
            "enabled" => Inject::Enabled,
            "disabled" | "false" => Inject::Disabled,
            _ => {
                self.faults.push(Fault::text(
                    key,
                    &value,
                    "invalid value",
                    "write enabled or disabled",
                ));
                Inject::Unset
            }
        }
    }

    fn flag(&mut self, name: &str) -> bool {
        match self.text(name) {
            None => false,
            Some((_, value)) if value == "true" => true,
            Some((_, value)) if value == "false" => false,
            Some((key, value)) => {
                self.faults.push(Fault::text(
                    key,
                    &value,
                    "neither true nor false",
                    "write \"true\" or remove it",
                ));
                false
            }
        }
    }

    fn not_followed(&mut self, name: &str) {
        if let Some((key, value)) = self.text(name) {
            let remedy = "what no intercept takes goes to the port it was sent to";
            self.warnings
                .push(Fault::text(key, &value, "is not followed", remedy));
        }
    }

    fn service_ports(&mut self) -> Vec<PortIdentifier> {
        if let Some(ports) = self.ports(SERVICE_PORTS) {
            return ports;
        }
        let Some(ports) = self.ports(SERVICE_PORT) else {
            return Vec::new();
        };
        self.warnings.push(Fault::missing(
            format!("{OLDER_DOMAIN}{SERVICE_PORT}"),
            "is deprecated",
            format!("write {DOMAIN}{SERVICE_PORTS}"),
        ));
        ports
    }

    /// A comma list of port identifiers; none when the annotation is absent.
    fn ports(&mut self, name: &str) -> Option<Vec<PortIdentifier>> {
        let (key, value) = self.text(name)?;
        let mut ports = Vec::new();
        for item in value.split(',').map(str::trim).filter(|it| !it.is_empty()) {
            match port_identifier(item) {
                Ok(port) => ports.push(port),
                Err((problem, remedy)) => {
                    self.faults.push(Fault::text(&key, item, problem, remedy));
                }
            }
        }
        Some(ports)
    }

    /// A comma list, or a JSON array of texts.
    fn ignored_mounts(&mut self) -> Vec<String> {
        let Some((key, value)) = self.text(IGNORE_MOUNTS) else {
            return Vec::new();
        };
        // Both spellings exist in the field: a JSON array and a comma list.
        let items: Vec<String> = if value.starts_with('[') {
            match serde_json::from_str(&value) {
                Ok(items) => items,
                Err(error) => {
                    let problem = format!("no JSON array of texts: {error}");
                    let remedy = "write a comma list of volume names and path prefixes";
                    self.faults.push(Fault::text(key, &value, problem, remedy));
                    Vec::new()
                }
            }
        } else {
            value.split(',').map(str::to_owned).collect()
        };
        items
            .iter()
            .map(|item| item.trim().to_owned())
            .filter(|item| !item.is_empty())
            .collect()
    }

    fn mount_policies(&mut self) -> Vec<(String, MountPolicy)> {
        let Some((key, value)) = self.text(MOUNT_POLICIES) else {
            return Vec::new();
        };
        let map = match serde_json::from_str::<BTreeMap<String, String>>(&value) {
            Ok(map) => map,
            Err(error) => {
                let problem = format!("no JSON object of texts: {error}");
                let remedy = "write it like {\"/tmp\":\"Local\"}";
                self.faults.push(Fault::text(key, &value, problem, remedy));
                return Vec::new();
            }
        };
        let mut policies = Vec::new();
        for (at, name) in map {
            match MountPolicy::from_str(&name) {
                Ok(policy) => policies.push((at, policy)),
                Err(_) => self.faults.push(Fault::text(
                    format!("{key}[{at:?}]"),
                    &name,
                    "unknown mount policy",
                    "write Remote, RemoteReadonly, Local or Ignore",
                )),
            }
        }
        policies
    }
}

/// Reads one port identifier, stricter than the wire does: a name has to be one that Kubernetes
/// accepts for a port.
fn port_identifier(text: &str) -> Result<PortIdentifier, (String, &'static str)> {
    const REMEDY: &str = "write a port's name or number, with /TCP or /UDP where needed";
    let port = PortIdentifier::from_str(text).map_err(|error| (error.to_string(), REMEDY))?;
    if let NameOrNumber::Name(name) = &port.port
        && !is_port_name(name)
    {
        return Err(("no name of a port".to_owned(), REMEDY));
    }
    Ok(port)
}

fn is_port_name(name: &str) -> bool {
    let inner = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-';
    let bytes = name.as_bytes();
    bytes.len() <= 63
        && bytes.iter().all(inner)
        && bytes.iter().any(u8::is_ascii_lowercase)
        && bytes.first() != Some(&b'-')
        && bytes.last() != Some(&b'-')
}

/// Secrets that annotations ask to have mounted into the agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsSecrets {
    /// Secret of `inject-terminating-tls-secret`.
    pub terminating: Option<String>,
    /// Secret of `inject-originating-tls-secret`.
    pub originating: Option<String>,
    /// Secrets of annotations with a port in their suffix, each once.
    pub of_ports: Vec<String>,
    /// Annotation to set for each of the latter, which tells an agent the directory.
    pub path_annotations: BTreeMap<String, String>,
}

/// Directory of the agent below which the Secrets of ports are mounted.
pub const SECRETS_DIR: &str = "/downstream-tls";

/// Finds the Secrets; the agent reports names that cannot be a Secret's.
pub fn tls_secrets(annotations: &BTreeMap<String, String>, agent_name: &str) -> TlsSecrets {
    let expand = |value: &String| expand(value, agent_name);
    let both = |name: &str| {
        [DOMAIN, OLDER_DOMAIN]
            .iter()
            .find_map(|domain| annotations.get(&format!("{domain}{name}")))
            .map(expand)
            .filter(|name| is_secret_name(name))
    };
    let oldest = |name: &str| {
        annotations
            .get(&format!("{OLDEST_DOMAIN}{name}"))
            .map(expand)
            .filter(|name| is_secret_name(name))
    };
    let (mut terminating, mut originating) = (both(TERMINATING), both(ORIGINATING));
    if terminating.is_none() && originating.is_none() {
        (terminating, originating) = (oldest(TERMINATING), oldest(ORIGINATING));
    }
    let mut secrets = TlsSecrets {
        terminating,
        originating,
        ..TlsSecrets::default()
    };
    for (key, value) in annotations {
        let name = [DOMAIN, OLDER_DOMAIN]
            .iter()
            .find_map(|domain| key.strip_prefix(domain));
        let Some((name, port)) = name.and_then(|name| name.split_once('.')) else {
            continue;
        };
        if PORT_SECRETS.contains(&name) {
            secrets.add(name, port, &expand(value));
        }
    }
    secrets
}

impl TlsSecrets {
    fn add(&mut self, name: &str, port: &str, value: &str) {
        let names = value.split(',').map(str::trim);
        let names: Vec<_> = names.filter(|name| is_secret_name(name)).collect();
        for name in &names {
            if !self.of_ports.iter().any(|known| known == name) {
                self.of_ports.push((*name).to_owned());
            }
        }
        // The path form serves agents that do not know the other; it has one directory.
        if let (Some(first), Some(side)) = (names.first(), name.strip_suffix("-tls-secret")) {
            self.path_annotations.insert(
                format!("{DOMAIN}{side}-tls-path.{port}"),
                format!("{SECRETS_DIR}/{first}"),
            );
        }
    }
}

fn expand(value: &str, agent_name: &str) -> String {
    // The longer spellings first: the shorter ones are contained in them.
    [
        "${AGENT_NAME}",
        "${_TEL_AGENT_NAME}",
        "$_TEL_AGENT_NAME",
        "$AGENT_NAME",
    ]
    .iter()
    .fold(value.trim().to_owned(), |text, variable| {
        text.replace(variable, agent_name)
    })
}

/// RFC 1123 subdomain.
fn is_secret_name(name: &str) -> bool {
    let allowed =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
    let end = |byte: Option<u8>| byte.is_some_and(|it| it.is_ascii_alphanumeric());
    name.len() <= 253
        && name.bytes().all(allowed)
        && end(name.bytes().next())
        && end(name.bytes().last())
        && !name.contains("..")
}
