//! Schema: known keys, their defaults, and required values.

use std::time::Duration;

use super::document::Node;
use super::fields::{Field, Notes, Place, Section};
use super::targets::{self, Placed};
use super::{
    Container, Drain, Envoy, ExpiredNotifications, Generation, InterceptEntry, MountPolicy,
    Replace, Role, Sidecar,
};
use crate::fault::Faults;
use crate::guard_rails::{self, GuardRails};
use crate::port::{AgentPort, AppPort, ProxyPort, Transport};

/// Default port of the manager.
const MANAGER_PORT: u16 = 8081;
const DEFAULT_CONNECTION_TTL: Duration = Duration::from_secs(24 * 60 * 60);
const DEFAULT_EXPIRED_DEADLINE: Duration = Duration::from_secs(24 * 60 * 60);

/// Keys that other programs of the system read.
const NOT_FOR_US: &[&str] = &[
    "create",
    "manual",
    "agentImage",
    "pullPolicy",
    "pullSecrets",
    "resources",
    "initResources",
    "securityContext",
    "initSecurityContext",
    "quicPort",
];

const POLICIES: &str = "write Remote, RemoteReadonly, Local or Ignore";

/// An entry with its place, or none if it is faulty.
type ReadEntry = Option<(InterceptEntry, Place)>;

/// Reads a document of this generation.
pub(super) fn sidecar(
    root: Node,
    source: &str,
    role: Role,
    generation: Generation,
) -> Result<Sidecar, Faults> {
    let mut notes = Notes::new(source);
    let root = Field::root(root);
    if root.is_null() {
        let place = Place {
            path: source.to_owned(),
            line: None,
        };
        notes.missing(
            &place,
            "empty configuration",
            "write the sidecar's configuration",
        );
        return Err(notes.faults);
    }
    // Nothing else can be said of it: it has no keys that could be missing.
    if !root.is_map() {
        let place = Place {
            path: source.to_owned(),
            line: None,
        };
        let problem = if root.is_list() {
            "a list, where a map is expected"
        } else {
            "a single value, where a map is expected"
        };
        notes.missing(
            &place,
            problem,
            "write key: value pairs, such as agentName: web",
        );
        return Err(notes.faults);
    }
    let mut root = root.section(&mut notes);
    let mut sidecar = top(&mut root, role, generation, &mut notes);
    sidecar.containers = containers(&mut root, generation, &mut notes);
    root.finish(NOT_FOR_US, &mut notes);
    notes.faults.into_result()?;
    Ok(Sidecar {
        warnings: notes.warnings,
        ..sidecar
    })
}

/// Reads everything but the containers. Faulty values are recorded and treated as absent.
fn top(root: &mut Section, role: Role, generation: Generation, notes: &mut Notes<'_>) -> Sidecar {
    let mut needed = |key: &str, remedy: &str, notes: &mut Notes<'_>| match role {
        Role::Agent => root.required_text(key, remedy, notes).unwrap_or_default(),
        Role::Init => root.text(key, notes).unwrap_or_default(),
    };
    let agent_name = needed("agentName", "write the workload's name", notes);
    let namespace = needed("namespace", "write the workload's namespace", notes);
    let manager_host = needed(
        "managerHost",
        "write the manager's host, such as traffic-manager.ambassador",
        notes,
    );
    Sidecar {
        generation,
        agent_name,
        namespace,
        manager_host,
        workload_name: root.text("workloadName", notes).unwrap_or_default(),
        workload_kind: root.text("workloadKind", notes).unwrap_or_default(),
        manager_port: root.port("managerPort", notes).unwrap_or(MANAGER_PORT),
        log_level: root.word("logLevel", notes),
        api_port: root.port("apiPort", notes),
        tracing_port: root.port("tracingPort", notes),
        client_connection_ttl: interval(root, "clientConnectionTTL", DEFAULT_CONNECTION_TTL, notes),
        enable_h2c_probing: root.flag("enableH2cProbing", true, notes),
        enable_metrics: root.flag("enableMetrics", false, notes),
        watch_retry_interval: interval(root, "watchRetryInterval", Duration::from_secs(10), notes),
        app_protocol_strategy: root.word("appProtocolStrategy", notes).unwrap_or_default(),
        envoy: envoy(root, notes),
        metrics_port: metrics_port(root, notes),
        expired_notifications: expired_notifications(root, notes),
        session_grace: root
            .duration("sessionGrace", notes)
            .unwrap_or(Duration::from_secs(60)),
        drain: drain(root, notes),
        mount_policies: root
            .take("mountPolicies")
            .map_or_else(Vec::new, |field| policies(field, notes)),
        mesh_dial_subnets: root
            .take("meshDialSubnets")
            .map_or_else(Vec::new, |field| listed(field, notes)),
        dial_allow: dial_allow(root, notes),
        limits: root
            .take("limits")
            .map_or_else(Vec::new, |field| limits(field, notes)),
        guard_rails: rails(root, notes),
        containers: Vec::new(),
        warnings: Vec::new(),
    }
}

/// Reads `envoy`, and where it says nothing the flat keys of the original's vendor build.
fn envoy(root: &mut Section, notes: &mut Notes<'_>) -> Envoy {
    let log_level = root.word("envoyLogLevel", notes);
    let server_port = root.port("envoyServerPort", notes);
    let admin_port = root.port("envoyAdminPort", notes);
    // Unused connections are let go by themselves, so the value is only checked.
    let mut idle = root.section("envoyHttpIdleTimeout", notes);
    for part in ["seconds", "nanos"] {
        idle.count(part, notes);
    }
    idle.finish(&[], notes);
    let mut section = root.section("envoy", notes);
    let envoy = Envoy {
        log_level: section.word("logLevel", notes).or(log_level),
        server_port: section.port("serverPort", notes).or(server_port),
        admin_port: section.port("adminPort", notes).or(admin_port),
    };
    section.finish(&[], notes);
    envoy
}

/// Reads `metrics.port`; 0 is none, as in the charts.
fn metrics_port(root: &mut Section, notes: &mut Notes<'_>) -> Option<u16> {
    let mut section = root.section("metrics", notes);
    let port = section.port("port", notes).filter(|port| *port != 0);
    section.finish(&[], notes);
    port
}

fn expired_notifications(root: &mut Section, notes: &mut Notes<'_>) -> ExpiredNotifications {
    let mut section = root.section("expiredNotifications", notes);
    let expired = ExpiredNotifications {
        enabled: section.flag("enabled", false, notes),
        deadline: section
            .duration("deadline", notes)
            .unwrap_or(DEFAULT_EXPIRED_DEADLINE),
    };
    section.finish(&[], notes);
    expired
}

fn drain(root: &mut Section, notes: &mut Notes<'_>) -> Drain {
    let mut section = root.section("drain", notes);
    let drain = Drain {
        lame_duck: section
            .duration("lameDuck", notes)
            .unwrap_or(Duration::from_secs(5)),
        grace: section
            .duration("grace", notes)
            .unwrap_or(Duration::from_secs(20)),
    };
    section.finish(&[], notes);
    drain
}

fn dial_allow(root: &mut Section, notes: &mut Notes<'_>) -> Vec<String> {
    let mut section = root.section("dial", notes);
    let allowed = section
        .take("allow")
        .map_or_else(Vec::new, |field| listed(field, notes));
    section.finish(&[], notes);
    allowed
}

/// Reads `guardRails`; zero is none, as in the charts.
fn rails(root: &mut Section, notes: &mut Notes<'_>) -> GuardRails {
    let mut section = root.section("guardRails", notes);
    let rails = GuardRails {
        allowed_headers: headers(&mut section, "allowedHeaders", notes),
        forbidden_headers: headers(&mut section, "forbiddenHeaders", notes),
        forbid_global: !section.flag("allowGlobal", true, notes),
        max_lifetime: section
            .duration("maxLifetime", notes)
            .filter(|it| !it.is_zero()),
        max_per_port: section
            .count("maxPerPort", notes)
            .and_then(|it| usize::try_from(it).ok())
            .filter(|it| *it != 0),
    };
    section.finish(&[], notes);
    rails
}

fn headers(section: &mut Section, key: &str, notes: &mut Notes<'_>) -> Vec<String> {
    let place = section.place.child(key);
    let names = section
        .take(key)
        .map_or_else(Vec::new, |field| listed(field, notes));
    guard_rails::headers(names.iter().map(String::as_str)).unwrap_or_else(|problem| {
        let remedy = "write names of headers, * for any text";
        notes.fault(&place, names.join(", "), problem, remedy);
        Vec::new()
    })
}

/// Reads names with numbers or texts; the agent knows which of them exist.
fn limits(field: Field, notes: &mut Notes<'_>) -> Vec<(String, String)> {
    let entries = field.entries(notes).into_iter();
    let value = |field: Field, notes: &mut Notes<'_>| match field.as_integer() {
        Some(number) => Some(number.to_string()),
        None => field.text(notes),
    };
    entries
        .filter_map(|(name, field)| Some((name, value(field, notes)?)))
        .collect()
}

/// Reads a list of subnets or names, or one text with commas between them.
fn listed(field: Field, notes: &mut Notes<'_>) -> Vec<String> {
    let texts: Vec<String> = if field.is_null() {
        Vec::new()
    } else if field.is_list() {
        let fields = field.list(notes);
        fields.iter().filter_map(|it| it.text(notes)).collect()
    } else {
        field.text(notes).into_iter().collect()
    };
    let entries = texts.iter().flat_map(|text| text.split(','));
    entries
        .map(|entry| entry.trim().to_owned())
        .filter(|entry| !entry.is_empty())
        .collect()
}

/// Reads a duration for which zero means absent.
fn interval(root: &mut Section, key: &str, default: Duration, notes: &mut Notes<'_>) -> Duration {
    root.duration(key, notes)
        .filter(|duration| !duration.is_zero())
        .unwrap_or(default)
}

fn containers(root: &mut Section, generation: Generation, notes: &mut Notes<'_>) -> Vec<Container> {
    let (mut containers, mut entries) = (Vec::new(), Vec::new());
    for field in root.list("containers", notes) {
        let (container, own) = container(field, generation, notes);
        containers.push(container);
        entries.push(own);
    }
    let total = entries.iter().map(Vec::len).sum();
    let placed: Vec<Placed<'_>> = containers
        .iter()
        .zip(&entries)
        .flat_map(|(container, own)| {
            own.iter().flatten().map(move |(entry, place)| Placed {
                container,
                entry,
                place,
            })
        })
        .collect();
    targets::check(&placed, total, notes);
    for (container, own) in containers.iter_mut().zip(entries) {
        container.intercepts = own.into_iter().flatten().map(|(entry, _)| entry).collect();
    }
    containers
}

fn container(
    field: Field,
    generation: Generation,
    notes: &mut Notes<'_>,
) -> (Container, Vec<ReadEntry>) {
    let mut section = field.section(notes);
    let container = Container {
        name: section
            .required_text("name", "write the container's name", notes)
            .unwrap_or_default(),
        env_prefix: section.text("envPrefix", notes).unwrap_or_default(),
        mount_point: section.text("mountPoint", notes).unwrap_or_default(),
        mounts: section
            .take("mounts")
            .map_or_else(Vec::new, |field| mounts(field, notes)),
        replace: section
            .take("replace")
            .and_then(|field| replace(&field, generation, notes))
            .unwrap_or_default(),
        intercepts: Vec::new(),
    };
    let entries = section
        .list("intercepts", notes)
        .into_iter()
        .map(|field| entry(field, notes))
        .collect();
    section.finish(&[], notes);
    (container, entries)
}

/// Reads a map of paths to policies, or the older list of paths.
fn mounts(field: Field, notes: &mut Notes<'_>) -> Vec<(String, MountPolicy)> {
    if !field.is_list() {
        return policies(field, notes);
    }
    let paths = field.list(notes);
    paths
        .iter()
        .filter_map(|path| Some((path.text(notes)?, MountPolicy::Remote)))
        .collect()
}

fn policies(field: Field, notes: &mut Notes<'_>) -> Vec<(String, MountPolicy)> {
    let mut policies = Vec::new();
    for (key, field) in field.entries(notes) {
        let policy = match field.as_integer() {
            Some(number) => {
                let policy = i32::try_from(number)
                    .ok()
                    .and_then(MountPolicy::from_number);
                if policy.is_none() {
                    notes.unfit(&field, "unknown mount policy", POLICIES);
                }
                policy
            }
            None if field.is_null() => Some(MountPolicy::Remote),
            None => field.word(notes),
        };
        policies.extend(policy.map(|policy| (key, policy)));
    }
    policies
}

fn replace(field: &Field, generation: Generation, notes: &mut Notes<'_>) -> Option<Replace> {
    let number = field
        .as_flag()
        .map(i128::from)
        .or_else(|| field.as_integer());
    match number {
        Some(0) => Some(Replace::Intercept),
        Some(1) => Some(match generation {
            Generation::ConfigMap => Replace::Sleeper,
            Generation::Annotation => Replace::Container,
        }),
        Some(2) => Some(Replace::Inactive),
        _ => {
            notes.unfit(
                field,
                "unknown kind of replacement",
                "write 0 (intercept), 1 (container) or 2 (inactive)",
            );
            None
        }
    }
}

fn entry(field: Field, notes: &mut Notes<'_>) -> ReadEntry {
    let mut section = field.section(notes);
    let place = section.place.clone();
    let container_port =
        section.required_port("containerPort", "write the port the app listens on", notes);
    let agent_port = section.required_port(
        "agentPort",
        "write the port the agent is to listen on",
        notes,
    );
    let transport = transport(&mut section, notes);
    let inactive_port = section.port("inactivePort", notes);
    let mut text = |key: &str| section.text(key, notes).unwrap_or_default();
    let (container_port_name, service_name) = (text("containerPortName"), text("serviceName"));
    let (service_uid, service_port_name) = (text("serviceUID"), text("servicePortName"));
    let app_protocol = text("appProtocol");
    let service_port = section.port("servicePort", notes);
    let target_port_numeric = section.flag("targetPortNumeric", false, notes);
    let headless = section.flag("headless", false, notes);
    section.finish(&[], notes);
    let entry = InterceptEntry {
        container_port_name,
        service_name,
        service_uid,
        service_port_name,
        service_port,
        target_port_numeric,
        transport: transport?,
        app_protocol,
        headless,
        container_port: AppPort::new(container_port?)?,
        agent_port: AgentPort::new(agent_port?)?,
        inactive_port: inactive_port.and_then(ProxyPort::new),
    };
    Some((entry, place))
}

fn transport(section: &mut Section, notes: &mut Notes<'_>) -> Option<Transport> {
    let place = section.place.child("protocol");
    match section.take("protocol") {
        Some(field) if field.text(notes)?.is_empty() => {}
        Some(field) => return field.word(notes),
        None => {}
    }
    notes.warn(&place, "no protocol, taken as TCP", "write TCP or UDP");
    Some(Transport::Tcp)
}
