//! Ports of a template that an agent can stand for, found by its Services and annotations.

use std::sync::Arc;

use traffic_proto::port_identifier::{NameOrNumber, PortIdentifier};
use traffic_proto::{Fault, Transport};

use crate::annotations::Requests;
use crate::explain::{Note, Refusal};
use crate::facts::{Container, ContainerPort, Service, ServicePort, TargetPort, Workload};

/// A container port that can be intercepted, and the Service port that leads to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Match<'a> {
    /// Position of the container in the template.
    pub(crate) container: usize,
    /// Container port; may be one that the container does not declare.
    pub(crate) port: ContainerPort,
    /// Service and its port; none for a port without a Service.
    pub(crate) service: Option<(&'a Service, &'a ServicePort)>,
}

impl Match<'_> {
    fn without_service(container: usize, port: ContainerPort) -> Self {
        Self {
            container,
            port,
            service: None,
        }
    }

    /// The Service names its target by number, or there is none.
    pub(crate) fn is_numeric(&self) -> bool {
        self.service
            .is_none_or(|(_, port)| matches!(port.target, TargetPort::Number(_)))
    }
}

/// Finds the ports, in order of the Services' names and then of their ports.
///
/// # Errors
/// A Service or port that is named and not there, or no port at all.
pub(crate) fn find<'a>(
    workload: &Workload,
    requests: &Requests,
    services: &'a [Arc<Service>],
    notes: &mut Vec<Note>,
) -> Result<Vec<Match<'a>>, Refusal> {
    let containers = &workload.template.containers;
    let services = considered(workload, requests, services)?;
    let mut matches = Vec::new();
    for service in &services {
        for port in selected(service, &requests.service_ports) {
            match target(containers, port) {
                Some((container, found)) => matches.push(Match {
                    container,
                    port: found,
                    service: Some((service, port)),
                }),
                None => notes.push(Note::unmatched_service_port(service, port)),
            }
        }
    }
    for identifier in &requests.service_ports {
        let used = |service: &&Service| service.ports.iter().any(|it| selects(identifier, it));
        if !services.iter().any(used) {
            notes.push(Note::unmatched_filter(identifier));
        }
    }
    for (container, port) in without_service(workload, &requests.container_ports)? {
        let known = |it: &Match<'_>| {
            it.container == container
                && (it.port.number, it.port.transport) == (port.number, port.transport)
        };
        if !matches.iter().any(known) {
            matches.push(Match::without_service(container, port));
        }
    }
    if matches.is_empty() && requests.service_ports.is_empty() {
        matches = declared(containers);
        if !matches.is_empty() {
            notes.push(Note::no_service(&services));
        }
    }
    if matches.is_empty() {
        notes.push(Note::no_ports(workload, &services));
    }
    Ok(matches)
}

/// The Services that select the pods, or the one that an annotation names.
fn considered<'a>(
    workload: &Workload,
    requests: &Requests,
    services: &'a [Arc<Service>],
) -> Result<Vec<&'a Service>, Refusal> {
    if let Some(name) = &requests.service_name {
        let named = services.iter().find(|it| it.name == *name);
        return match named {
            Some(service) => Ok(vec![&**service]),
            None => Err(Refusal::NoSuchService {
                workload: workload.to_string(),
                service: name.clone(),
                namespace: workload.namespace.clone(),
            }),
        };
    }
    let labels = &workload.template.labels;
    let services = services.iter().map(|it| &**it);
    let mut selecting: Vec<_> = services.filter(|it| it.selects(labels)).collect();
    // The API server lists in no fixed order, and a different order would give a different digest.
    selecting.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(selecting)
}

/// Ports of a Service that the identifiers name, in the order of the identifiers; all without any.
fn selected<'a>(service: &'a Service, identifiers: &[PortIdentifier]) -> Vec<&'a ServicePort> {
    if identifiers.is_empty() {
        return service.ports.iter().collect();
    }
    let mut ports: Vec<&ServicePort> = Vec::new();
    for identifier in identifiers {
        for port in service.ports.iter().filter(|it| selects(identifier, it)) {
            if !ports.iter().any(|known| std::ptr::eq(*known, port)) {
                ports.push(port);
            }
        }
    }
    ports
}

/// A number means the target's where that is a number, else the Service's own.
fn selects(identifier: &PortIdentifier, port: &ServicePort) -> bool {
    match &identifier.port {
        NameOrNumber::Name(name) => {
            *name == port.name && identifier.transport.is_none_or(|it| it == port.transport)
        }
        NameOrNumber::Number(number) => {
            // A numeric target names the container's port, which is what the annotation refers to.
            let means = match port.target {
                TargetPort::Number(target) => target,
                TargetPort::Name(_) => port.port,
            };
            *number == means && identifier.transport_or_tcp() == port.transport
        }
    }
}

/// The container port behind a Service port: the first that is declared, else, for a number, one
/// of the first container that declares none.
fn target(containers: &[Container], port: &ServicePort) -> Option<(usize, ContainerPort)> {
    let fits = |it: &&ContainerPort| {
        it.transport == port.transport
            && match &port.target {
                TargetPort::Name(name) => it.name == *name,
                TargetPort::Number(number) => it.number == *number,
            }
    };
    let declared = containers.iter().enumerate().find_map(|(at, container)| {
        let found = container.ports.iter().find(fits)?;
        Some((at, found.clone()))
    });
    let TargetPort::Number(number) = port.target else {
        return declared;
    };
    declared.or_else(|| {
        // A container that declares no ports may listen on any; one that declares some is believed.
        let silent = containers.iter().position(|it| it.ports.is_empty())?;
        Some((silent, unnamed(number, port.transport)))
    })
}

/// Ports that an annotation names and that need no Service.
fn without_service(
    workload: &Workload,
    identifiers: &[PortIdentifier],
) -> Result<Vec<(usize, ContainerPort)>, Refusal> {
    let containers = &workload.template.containers;
    let mut ports = Vec::new();
    let mut invented = 0;
    for identifier in identifiers {
        let transport = identifier.transport_or_tcp();
        let fits = |it: &&ContainerPort| match &identifier.port {
            NameOrNumber::Name(name) => {
                it.name == *name
                    && identifier
                        .transport
                        .is_none_or(|wanted| wanted == it.transport)
            }
            NameOrNumber::Number(number) => (it.number, it.transport) == (*number, transport),
        };
        let declared = containers.iter().enumerate().find_map(|(at, container)| {
            let found = container.ports.iter().find(fits)?;
            Some((at, found.clone()))
        });
        match (declared, &identifier.port) {
            (Some(found), _) => ports.push(found),
            (None, NameOrNumber::Name(name)) => {
                let problem = format!("no container of {workload} has a port of this name");
                let remedy = "write the name or number of a container port";
                let key = "telepresence.io/inject-container-ports";
                return Err(Refusal::Faults {
                    workload: workload.to_string(),
                    faults: Fault::text(key, name, problem, remedy).into(),
                });
            }
            // The app listens on it without saying so; it is taken for the first container's.
            (None, NameOrNumber::Number(number)) if !containers.is_empty() => {
                let mut port = unnamed(*number, transport);
                port.name = format!("port-{}", base26(invented).to_lowercase());
                invented += 1;
                ports.push((0, port));
            }
            (None, NameOrNumber::Number(_)) => {}
        }
    }
    Ok(ports)
}

/// Returns all declared ports, for a workload without Services.
fn declared(containers: &[Container]) -> Vec<Match<'static>> {
    let mut matches: Vec<Match<'static>> = Vec::new();
    for (container, facts) in containers.iter().enumerate() {
        for port in &facts.ports {
            let known = |it: &Match<'_>| {
                (it.port.number, it.port.transport) == (port.number, port.transport)
            };
            if !matches.iter().any(known) {
                matches.push(Match::without_service(container, port.clone()));
            }
        }
    }
    matches
}

fn unnamed(number: u16, transport: Transport) -> ContainerPort {
    ContainerPort {
        name: String::new(),
        number,
        transport,
    }
}

/// A number in letters: A to Z, then BA, BB and so on.
pub(crate) fn base26(mut number: usize) -> String {
    let mut letters = Vec::new();
    loop {
        // Below 26, so it fits.
        letters.push(b'A' + u8::try_from(number % 26).unwrap_or_default());
        number /= 26;
        if number == 0 {
            break;
        }
    }
    letters.reverse();
    String::from_utf8(letters).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_count_like_digits() {
        for (number, letters) in [
            (0, "A"),
            (25, "Z"),
            (26, "BA"),
            (27, "BB"),
            (26 * 26, "BAA"),
        ] {
            assert_eq!(base26(number), letters);
        }
    }
}
