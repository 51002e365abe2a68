//! Reads one intercept's spec: mechanism, filters, description, and the ports of the pod it applies
//! to. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use traffic_proto::port::Transport;
use traffic_proto::port_identifier::{FurtherPort, PortIdentifier};
use traffic_proto::sidecar::{InterceptEntry, Target};
use traffic_proto::tunnel::duration_from_nanos;

use crate::control::intercepts::bounds::Bounds;
use crate::control::intercepts::refusal::Refusal;
use crate::control::intercepts::shown::{Shown, ShownSpec};
use traffic_core::routing::matcher::{Filters, PathFilter};
use traffic_core::routing::{Intercept, Mechanism, Stats, clause};

/// Header that the filter word `auto` stands for; its value is the intercept's id.
const AUTO_HEADER: &str = "x-telepresence-intercept-id";

/// A parsed spec.
#[derive(Debug)]
pub(crate) struct Rule {
    pub(crate) mechanism: Mechanism,
    pub(crate) filters: Filters,
    pub(crate) plaintext: bool,
    /// Key-value pairs for the local REST API.
    pub(crate) metadata: BTreeMap<String, String>,
    /// Memory of the compiled patterns.
    pub(crate) pattern_bytes: usize,
}

/// Parses a spec.
pub(crate) fn rule(info: &Shown, spec: &ShownSpec, bounds: &Bounds) -> Result<Rule, Refusal> {
    bounds.check_spec(spec)?;
    let mut filters = Filters::default();
    for (name, value) in &spec.header_filters {
        add_filter(&mut filters, name, value)?;
    }
    for path in &spec.path_filters {
        filters
            .paths
            .push(PathFilter::parse(path).map_err(|e| bad_path(path, &e))?);
    }
    let mut plaintext = spec.plaintext;
    let mut metadata = spec.metadata.clone();
    let mechanism = match spec.mechanism.as_str() {
        // Older clients leave the mechanism empty.
        "tcp" | "" if filters.is_empty() => Mechanism::Tcp,
        "tcp" | "" | "http" => {
            plaintext |= read_args(info, spec, &mut filters, &mut metadata)?;
            Mechanism::Http
        }
        other => {
            return Err(Refusal::of_agent(format!(
                "mechanism {other:?} is not known to this agent; it offers tcp and http"
            )));
        }
    };
    // One filter has room for four, and there are many intercepts with one.
    filters.headers.shrink_to_fit();
    // A fixed order, so that equal specs give equal descriptions and tables.
    filters.headers.sort_by(|a, b| a.name.cmp(&b.name));
    let pattern_bytes = bounds.check_patterns(&filters)?;
    bounds.rails().check(&filters, spec.wiretap)?;
    Ok(Rule {
        mechanism,
        filters,
        plaintext,
        metadata,
        pattern_bytes,
    })
}

fn add_filter(filters: &mut Filters, name: &str, value: &str) -> Result<(), Refusal> {
    let added = filters.add(name, value);
    added.map_err(|error| Refusal::of_spec(error.to_string()))
}

fn bad_path(path: &str, error: &traffic_core::routing::go_regex::PatternError) -> Refusal {
    // Patterns may have thousands of characters; a message must stay readable.
    let shown: String = path.chars().take(100).collect();
    Refusal::of_spec(format!("path filter {shown:?}: {error}"))
}

/// Reads the command-line flags in which older clients describe their filters. Returns true if
/// `--plaintext` is among them.
fn read_args(
    info: &Shown,
    spec: &ShownSpec,
    filters: &mut Filters,
    metadata: &mut BTreeMap<String, String>,
) -> Result<bool, Refusal> {
    let mut plaintext = false;
    let mut args = spec.mechanism_args.iter();
    while let Some(arg) = args.next() {
        let (flag, inline) = match arg.split_once('=') {
            Some((flag, value)) => (flag, Some(value)),
            None => (arg.as_str(), None),
        };
        // Both `--flag=value` and `--flag value` are in use.
        let mut value = || {
            let value = inline.or_else(|| args.next().map(String::as_str));
            value.ok_or_else(|| {
                Refusal::of_spec(format!(
                    "mechanism argument {arg:?} has no value; write {flag}=VALUE"
                ))
            })
        };
        let path = |filter: Result<PathFilter, _>| filter.map_err(|e| bad_path(arg, &e));
        match flag.trim_start_matches('-') {
            // `--match` is the older name of `--header`.
            "header" | "match" => header_arg(&info.id, value()?, filters)?,
            "path-equal" => filters.paths.push(PathFilter::Equal(value()?.to_owned())),
            "path-prefix" => filters.paths.push(PathFilter::Prefix(value()?.to_owned())),
            "path-regex" => filters.paths.push(path(PathFilter::whole(value()?))?),
            "plaintext" => plaintext = inline.is_none_or(|v| v == "true"),
            "meta" => {
                let (key, value) = value()?.split_once('=').ok_or_else(|| {
                    Refusal::of_spec(format!(
                        "mechanism argument {arg:?} is no pair; write --meta=KEY=VALUE"
                    ))
                })?;
                metadata.insert(key.to_owned(), value.to_owned());
            }
            _ => {
                return Err(Refusal::of_spec(format!(
                    "mechanism argument {arg:?} is not known; use --header, --path-equal, \
                    --path-prefix, --path-regex, --plaintext or --meta"
                )));
            }
        }
    }
    Ok(plaintext)
}

fn header_arg(id: &str, value: &str, filters: &mut Filters) -> Result<(), Refusal> {
    match value.split_once('=') {
        Some((name, pattern)) => add_filter(filters, name, pattern)?,
        None if value == "all" => {}
        None if value == "auto" => add_filter(filters, AUTO_HEADER, id)?,
        None => {
            return Err(Refusal::of_spec(format!(
                "header filter {value:?} is not NAME=VALUE, all or auto"
            )));
        }
    }
    Ok(())
}

impl Rule {
    /// Builds the rule of one port.
    pub(crate) fn intercept(
        self,
        info: &Shown,
        spec: &ShownSpec,
        target_port: u16,
        stats: Arc<Stats>,
    ) -> Intercept {
        Intercept {
            id: info.id.clone(),
            name: spec.name.clone(),
            client: spec.client.clone(),
            client_session: info.owner.clone(),
            mechanism: self.mechanism,
            wiretap: spec.wiretap,
            filters: self.filters,
            plaintext: self.plaintext,
            target_host: if spec.target_host.is_empty() {
                "127.0.0.1".to_owned()
            } else {
                spec.target_host.clone()
            },
            target_port,
            roundtrip_latency: duration_from_nanos(spec.roundtrip_latency),
            dial_timeout: non_negative(spec.dial_timeout),
            metadata: self.metadata,
            stats,
        }
    }
}

/// Describes for the owner what an intercept takes of a port.
pub(crate) fn description(filters: &Filters, transport: Transport) -> String {
    match transport {
        // Stock clients know this text.
        Transport::Tcp if filters.is_empty() => return "all TCP connections".to_owned(),
        Transport::Udp if filters.is_empty() => return "all UDP datagrams".to_owned(),
        Transport::Tcp | Transport::Udp => {}
    }
    let headers: Vec<_> = filters
        .headers
        .iter()
        .map(|h| format!("header {}: {}", h.name, h.text))
        .collect();
    let paths: Vec<_> = filters.paths.iter().map(ToString::to_string).collect();
    let structured = clause::descriptions(&filters.clauses);
    let headers = [headers, structured].concat();
    let clauses = [headers.join(" and "), paths.join(" or ")];
    let clauses: Vec<_> = clauses.into_iter().filter(|c| !c.is_empty()).collect();
    format!("HTTP requests with {}", clauses.join(" and "))
}

/// Returns the filters in the form the owner's tools read back from the review.
pub(crate) fn header_map(filters: &Filters) -> BTreeMap<String, String> {
    let on_wire = filters.on_wire();
    let mut map: BTreeMap<_, _> = on_wire
        .map(|(name, text)| (name, text.to_owned()))
        .collect();
    // The map has room for one path only; tools show none if there are several.
    if let [path] = filters.paths.as_slice() {
        let (key, text) = match path {
            PathFilter::Equal(p) => (":path-equal:", p),
            PathFilter::Prefix(p) => (":path-prefix:", p),
            PathFilter::Regex(p, _) => (":path-regex:", p),
        };
        map.insert(key.to_owned(), text.clone());
    }
    map
}

fn non_negative(nanos: i64) -> Duration {
    duration_from_nanos(nanos)
}

/// Returns the workstation's port for traffic to `target`, one of all `targets`, if the intercept
/// covers that port.
pub(crate) fn delivers_to(spec: &ShownSpec, target: &Target, targets: &[Target]) -> Option<i64> {
    if !spec.no_default_port && is_main(spec, target, targets) {
        return Some(i64::from(spec.target_port));
    }
    spec.pod_ports
        .iter()
        .find_map(|pod_port| extra_port(pod_port, target, targets))
}

/// Returns true for the intercept's main port.
fn is_main(spec: &ShownSpec, target: &Target, targets: &[Target]) -> bool {
    if spec.port_identifier.is_empty() && spec.container_port == 0 {
        return is_only(spec, target, targets);
    }
    let is_meant = |target: &Target| target.entries.iter().any(|entry| is_about(spec, entry));
    let is_written = || match spec.port_identifier.parse::<PortIdentifier>() {
        Ok(identifier) => identifier.transport.is_some(),
        Err(_) => !spec.protocol.is_empty(),
    };
    is_meant(target) && (is_written() || !gives_way(target, targets, is_meant))
}

/// Returns true if a target is the only one of the transport that an intercept names. What has the same
/// number for TCP and UDP is one port, of which TCP is meant.
fn is_only(spec: &ShownSpec, target: &Target, targets: &[Target]) -> bool {
    let fits = |target: &Target| same_protocol(spec, target.transport);
    let is_twin = |other: &Target| other.container_port == target.container_port && fits(other);
    let others = targets.iter().filter(|other| fits(other));
    let mut others = others.filter(|other| other.container_port != target.container_port);
    fits(target) && others.next().is_none() && !gives_way(target, targets, is_twin)
}

/// Returns true for a UDP port if a TCP port is meant as well: without a transport written, TCP is the
/// default where both are there.
fn gives_way(target: &Target, targets: &[Target], is_meant: impl Fn(&Target) -> bool) -> bool {
    let mut tcp = targets.iter().filter(|it| it.transport == Transport::Tcp);
    target.transport == Transport::Udp && tcp.any(is_meant)
}

/// Returns the workstation's port for a port of the pod beside the intercept's main one, if that is
/// `target`.
fn extra_port(pod_port: &str, target: &Target, targets: &[Target]) -> Option<i64> {
    let FurtherPort { identifier, local } = pod_port.parse().ok()?;
    let is_meant = |target: &Target| {
        let number = Some(target.container_port.get());
        let mut entries = target.entries.iter();
        entries.any(|entry| identifier.names(&entry.container_port_name, number, target.transport))
    };
    let is_written = identifier.transport.is_some();
    if !is_meant(target) || !is_written && gives_way(target, targets, is_meant) {
        return None;
    }
    let number = i64::from(target.container_port.get());
    Some(local.map_or(number, |local| local.parse().unwrap_or(-1)))
}

/// Returns true if the intercept means this entry: by service, then by the identifier its user
/// gave, else by the container port that the manager found.
fn is_about(spec: &ShownSpec, entry: &InterceptEntry) -> bool {
    if !spec.service_name.is_empty() && spec.service_name != entry.service_name {
        return false;
    }
    if spec.port_identifier.is_empty() {
        return spec.container_port == i32::from(entry.container_port.get())
            && same_protocol(spec, entry.transport);
    }
    let Ok(identifier) = spec.port_identifier.parse::<PortIdentifier>() else {
        return false;
    };
    if spec.service_uid.is_empty() {
        identifier.names(
            &entry.container_port_name,
            Some(entry.container_port.get()),
            entry.transport,
        )
    } else {
        identifier.names(
            &entry.service_port_name,
            entry.service_port,
            entry.transport,
        )
    }
}

fn same_protocol(spec: &ShownSpec, transport: Transport) -> bool {
    spec.protocol.is_empty() || spec.protocol.eq_ignore_ascii_case(transport.name())
}

/// Refusal that lists the pod's ports instead of the requested one.
pub(crate) fn unknown_port(spec: &ShownSpec, targets: &[Target]) -> Refusal {
    let wanted = if !spec.port_identifier.is_empty() {
        spec.port_identifier.clone()
    } else if spec.container_port != 0 && !spec.protocol.is_empty() {
        format!("{}/{}", spec.container_port, spec.protocol)
    } else if spec.container_port != 0 {
        spec.container_port.to_string()
    } else {
        spec.pod_ports.join(", ")
    };
    let service = if spec.service_name.is_empty() {
        String::new()
    } else {
        format!(" of service {}", spec.service_name)
    };
    let known: Vec<_> = targets.iter().map(described).collect();
    let known = if known.is_empty() {
        "none".to_owned()
    } else {
        known.join(", ")
    };
    let is_any = wanted.is_empty();
    if is_any && !targets.iter().any(|it| same_protocol(spec, it.transport)) {
        let protocol = &spec.protocol;
        return Refusal::of_agent(format!(
            "no {protocol} port in this agent's configuration; it has {known}"
        ));
    }
    if is_any && targets.len() > 1 {
        return Refusal::of_agent(format!(
            "which port is meant? This agent's configuration has {known}; write --port LOCAL:PORT"
        ));
    }
    Refusal::of_agent(format!(
        "no port {wanted}{service} in this agent's configuration; it has {known}"
    ))
}

fn described(target: &Target) -> String {
    let mut text = format!("{}/{}", target.container_port, target.transport);
    for entry in &target.entries {
        if !entry.service_name.is_empty() {
            let port = if entry.service_port_name.is_empty() {
                entry
                    .service_port
                    .map_or_else(String::new, |p| p.to_string())
            } else {
                entry.service_port_name.clone()
            };
            text.push_str(&format!(" ({}:{port})", entry.service_name));
        } else if !entry.container_port_name.is_empty() {
            text.push_str(&format!(" ({})", entry.container_port_name));
        }
    }
    text
}
