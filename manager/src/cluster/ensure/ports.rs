//! The ports that an intercept is about, found in the configuration of its workload's agents. Pure.

use std::collections::BTreeSet;

use injector::config::{Config, ConfigContainer, Entry};
use traffic_proto::manager::InterceptSpec;
use traffic_proto::port::Transport;
use traffic_proto::port_identifier::{
    FurtherPort, NameOrNumber, PortIdentifier, PortIdentifierError,
};

use crate::datagrams;

/// The ports that an intercept takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ChosenPorts {
    /// None if it takes further ones alone.
    pub(crate) main: Option<Chosen>,
    /// Further ports in the form that agents know.
    pub(crate) further: Vec<String>,
}

/// A port of a workload, as an intercept names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chosen {
    pub(crate) container: String,
    pub(crate) entry: Entry,
}

/// The ports that an intercept is about, of which each has to be there and fit.
pub(super) fn choose_ports(config: &Config, spec: &InterceptSpec) -> Result<ChosenPorts, String> {
    let main = match spec.no_default_port && spec.port_identifier.is_empty() {
        true => None,
        false => Some(choose(config, spec)?),
    };
    let further = spec
        .pod_ports
        .iter()
        .map(|text| further(config, spec, text));
    let chosen = ChosenPorts {
        main,
        further: further.collect::<Result<_, _>>()?,
    };
    let udp = chosen.main.as_ref().map(|it| &it.entry);
    let udp = udp.filter(|entry| entry.protocol == Transport::Udp);
    let refusal = udp.and_then(|entry| datagrams::refusal(spec, &describe(entry)));
    let named = InterceptSpec {
        pod_ports: chosen.further.clone(),
        ..spec.clone()
    };
    match refusal.or_else(|| datagrams::refusal_of_named(&named)) {
        Some(refusal) => Err(refusal),
        None => Ok(chosen),
    }
}

/// A further port in the form that agents know: a port of a container, and its transport.
fn further(config: &Config, spec: &InterceptSpec, text: &str) -> Result<String, String> {
    let port: FurtherPort = text
        .parse()
        .map_err(|it: PortIdentifierError| it.to_string())?;
    // Of the same pods, but of whatever container and Service.
    let asked = InterceptSpec {
        agent: spec.agent.clone(),
        namespace: spec.namespace.clone(),
        port_identifier: port.identifier.to_string(),
        ..InterceptSpec::default()
    };
    let entry = choose(config, &asked)?.entry;
    let is_containers = names_container_port(&port.identifier, &entry);
    let own_number = || NameOrNumber::Number(entry.container_port);
    let further = FurtherPort {
        identifier: PortIdentifier {
            transport: Some(entry.protocol),
            port: match is_containers {
                true => port.identifier.port.clone(),
                false => own_number(),
            },
        },
        // Else it would be delivered to the number of the container's port.
        local: port
            .local
            .or_else(|| match (&port.identifier.port, is_containers) {
                (NameOrNumber::Number(number), false) => Some(number.to_string()),
                _ => None,
            }),
    };
    Ok(further.to_string())
}

/// The entry that an intercept is about.
pub(super) fn choose(config: &Config, spec: &InterceptSpec) -> Result<Chosen, String> {
    let identifier = match spec.port_identifier.as_str() {
        "" => None,
        text => Some(
            text.parse::<PortIdentifier>()
                .map_err(|it| it.to_string())?,
        ),
    };
    let by_service =
        |entry: &Entry| spec.service_name.is_empty() || spec.service_name == entry.service_name;
    let in_container = |container: &ConfigContainer| {
        spec.container_name.is_empty() || spec.container_name == container.name
    };
    // What the workload has decides about a port that is named without a transport.
    let wanted = spec.protocol.parse::<Transport>().ok();
    let wanted = wanted.filter(|_| identifier.is_none());
    let by_transport = |entry: &Entry| wanted.is_none_or(|it| it == entry.protocol);
    let fitting = |fits: &dyn Fn(&Entry) -> bool| -> Vec<Chosen> {
        config
            .entries()
            .filter(|(container, entry)| {
                by_service(entry) && in_container(container) && by_transport(entry) && fits(entry)
            })
            .map(|(container, entry)| Chosen {
                container: container.name.clone(),
                entry: entry.clone(),
            })
            .collect()
    };
    let mut found = fitting(&|entry| identifier.as_ref().is_none_or(|it| names(it, entry)));
    if found.is_empty()
        && let Some(identifier) = &identifier
    {
        // A container port's name or number says as clearly which port is meant.
        found = fitting(&|entry| names_container_port(identifier, entry));
    }
    match &identifier {
        Some(PortIdentifier {
            transport: None, ..
        }) => prefer_tcp(&mut found, |_, _| true),
        Some(_) => {}
        None => prefer_tcp(&mut found, |udp, tcp| {
            udp.container == tcp.container && udp.entry.container_port == tcp.entry.container_port
        }),
    }
    one_of(found, config, spec)
}

/// Leaves UDP ports out beside which TCP is there as well, and so the default.
fn prefer_tcp(found: &mut Vec<Chosen>, is_beside: impl Fn(&Chosen, &Chosen) -> bool) {
    let is_tcp = |it: &Chosen| it.entry.protocol == Transport::Tcp;
    let tcp: Vec<_> = found.iter().filter(|it| is_tcp(it)).cloned().collect();
    found.retain(|it| is_tcp(it) || !tcp.iter().any(|tcp| is_beside(it, tcp)));
}

fn names(identifier: &PortIdentifier, entry: &Entry) -> bool {
    match entry.service_name.as_str() {
        "" => names_container_port(identifier, entry),
        _ => identifier.names(
            &entry.service_port_name,
            Some(entry.service_port),
            entry.protocol,
        ),
    }
}

fn names_container_port(identifier: &PortIdentifier, entry: &Entry) -> bool {
    let named = match &identifier.port {
        NameOrNumber::Name(name) => *name == entry.container_port_name,
        NameOrNumber::Number(number) => *number == entry.container_port,
    };
    named && identifier.transport.is_none_or(|it| it == entry.protocol)
}

/// Several that lead to one port of one container are as good as one.
fn one_of(found: Vec<Chosen>, config: &Config, spec: &InterceptSpec) -> Result<Chosen, String> {
    let workload = format!("{} {}", config.workload_kind, config.workload_name);
    let Some(first) = found.first() else {
        let known: Vec<_> = config.entries().map(|(_, entry)| describe(entry)).collect();
        let asked = match (spec.service_name.as_str(), spec.port_identifier.as_str()) {
            ("", "") if !spec.protocol.is_empty() => {
                format!("no {} port that can be intercepted", spec.protocol)
            }
            ("", "") => "no port that can be intercepted".to_owned(),
            (service, "") => format!("no port of Service {service:?}"),
            ("", port) => format!("no port {port:?}"),
            (service, port) => format!("no port {port:?} of Service {service:?}"),
        };
        let known = match known.as_slice() {
            [] => "it has none".to_owned(),
            some => format!("there are {}", some.join(", ")),
        };
        return Err(format!("{workload} has {asked}; {known}"));
    };
    let target = |it: &Chosen| {
        (
            it.container.clone(),
            it.entry.container_port,
            it.entry.protocol,
        )
    };
    if found.iter().all(|it| target(it) == target(first)) {
        return Ok(first.clone());
    }
    let services: BTreeSet<_> = found.iter().map(|it| &it.entry.service_name).collect();
    let flag = match (services.len(), spec.port_identifier.is_empty()) {
        (1, _) => "--port",
        (_, true) => "--service or --port",
        (_, false) => "--service",
    };
    let known: Vec<_> = found.iter().map(|it| describe(&it.entry)).collect();
    Err(format!(
        "{workload} has several ports that fit: {}; choose one with {flag}",
        known.join(", ")
    ))
}

fn describe(entry: &Entry) -> String {
    let protocol = entry.protocol;
    match (
        entry.service_name.as_str(),
        entry.service_port_name.as_str(),
    ) {
        ("", _) => format!("container port {}/{protocol}", entry.container_port),
        (service, "") => format!("{service} {}/{protocol}", entry.service_port),
        (service, name) => format!("{service} {name} ({}/{protocol})", entry.service_port),
    }
}
