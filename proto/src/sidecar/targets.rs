//! Ports the agent stands in for: entries that share a listener become one target, and targets must
//! not conflict.

use super::fields::{Notes, Place};
use super::{Container, InterceptEntry, Replace, Sidecar};
use crate::port::{AgentPort, AppPort, ProxyPort, Transport};

/// Offset added to an agent port, together with the number of all entries, to get its proxy port.
const PROXY_OFFSET: usize = 11;

/// A listener of the agent in front of a port of the app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Name of the container that owns the port.
    pub container: String,
    /// Port the app listens on.
    pub container_port: AppPort,
    /// Port the agent listens on.
    pub agent_port: AgentPort,
    /// Transport of both.
    pub transport: Transport,
    /// The container is gone, and the agent listens on its port.
    pub replaced: bool,
    /// Something that sleeps runs in place of the app.
    pub asleep: bool,
    /// An entry's service names the target by number.
    pub numeric: bool,
    /// An entry's service is headless.
    pub headless: bool,
    /// First protocol that an entry declares; empty if none does.
    pub app_protocol: String,
    /// Port the agent dials to reach the app past the redirect; none without a redirect.
    pub proxy_port: Option<ProxyPort>,
    /// Entries in order of the configuration; at least one.
    pub entries: Vec<InterceptEntry>,
}

impl Target {
    /// Returns true if callers reach the agent by a redirect of the app's port, and not by the
    /// port's name or in place of the app.
    pub fn is_redirected(&self) -> bool {
        !self.replaced && (self.numeric || self.headless)
    }

    /// Returns the port the agent listens on.
    pub fn listen_port(&self) -> u16 {
        if self.replaced {
            self.container_port.get()
        } else {
            self.agent_port.get()
        }
    }
}

impl Sidecar {
    /// Returns the agent's listeners, in order of the configuration.
    pub fn targets(&self) -> Vec<Target> {
        let total = self
            .containers
            .iter()
            .map(|container| container.intercepts.len())
            .sum();
        let entries = self.containers.iter().flat_map(|container| {
            container
                .intercepts
                .iter()
                .map(move |entry| (container, entry))
        });
        merge(entries, total)
    }
}

fn merge<'a>(
    entries: impl Iterator<Item = (&'a Container, &'a InterceptEntry)>,
    total: usize,
) -> Vec<Target> {
    let mut targets: Vec<Target> = Vec::new();
    for (container, entry) in entries {
        let same = |target: &&mut Target| {
            // One listener serves all service ports that lead to the same container port.
            (target.agent_port, target.transport) == (entry.agent_port, entry.transport)
        };
        match targets.iter_mut().find(same) {
            Some(target) => {
                // One entry that needs a redirect is enough.
                target.numeric |= entry.target_port_numeric;
                target.headless |= entry.headless;
                if target.app_protocol.is_empty() {
                    target.app_protocol.clone_from(&entry.app_protocol);
                }
                target.entries.push(entry.clone());
            }
            None => targets.push(Target {
                container: container.name.clone(),
                replaced: container.replace == Replace::Container,
                asleep: container.replace == Replace::Sleeper,
                container_port: entry.container_port,
                agent_port: entry.agent_port,
                transport: entry.transport,
                numeric: entry.target_port_numeric,
                headless: entry.headless,
                app_protocol: entry.app_protocol.clone(),
                proxy_port: None,
                entries: vec![entry.clone()],
            }),
        }
    }
    for target in &mut targets {
        if target.is_redirected() {
            target.proxy_port = u16::try_from(proxy_number(target, total))
                .ok()
                .and_then(ProxyPort::new);
        }
    }
    targets
}

/// Returns the proxy port's number, which agent and init have to compute alike; may be out of
/// range.
fn proxy_number(target: &Target, total: usize) -> usize {
    match target.entries.iter().find_map(|entry| entry.inactive_port) {
        Some(port) => port.get().into(),
        // agent-init computes the same number from the same configuration.
        None => usize::from(target.agent_port.get()) + PROXY_OFFSET + total,
    }
}

/// An entry as read, with its container and place.
pub(super) struct Placed<'a> {
    pub(super) container: &'a Container,
    pub(super) entry: &'a InterceptEntry,
    pub(super) place: &'a Place,
}

/// Finds conflicting ports. `total` includes entries that could not be read.
pub(super) fn check(placed: &[Placed<'_>], total: usize, notes: &mut Notes<'_>) {
    let targets = merge(
        placed.iter().map(|placed| (placed.container, placed.entry)),
        total,
    );
    for target in &targets {
        let mut own = placed.iter().filter(|placed| belongs(placed.entry, target));
        let Some(first) = own.next() else { continue };
        for other in own {
            check_alike(target, first, other, notes);
        }
        check_agent_port(target, first.place, placed, notes);
        if target.is_redirected() {
            check_proxy_port(target, first.place, &targets, total, notes);
        }
        check_container_port(target, first.place, &targets, notes);
    }
}

fn belongs(entry: &InterceptEntry, target: &Target) -> bool {
    (entry.agent_port, entry.transport) == (target.agent_port, target.transport)
}

/// Checks two entries that share a listener.
fn check_alike(target: &Target, first: &Placed<'_>, other: &Placed<'_>, notes: &mut Notes<'_>) {
    let (a, b) = (first.entry, other.entry);
    if a.container_port != b.container_port {
        let problem = format!(
            "{}/{} leads to container port {} here and to {} in {}",
            b.agent_port, b.transport, b.container_port, a.container_port, first.place.path
        );
        notes.fault(
            &other.place.child("agentPort"),
            b.agent_port,
            &problem,
            "give each container port its own agentPort",
        );
    }
    check_alike_in_detail(target, first, other, notes);
}

/// Checks what two entries of one listener say beside the container port.
fn check_alike_in_detail(
    target: &Target,
    first: &Placed<'_>,
    other: &Placed<'_>,
    notes: &mut Notes<'_>,
) {
    let (a, b) = (first.entry, other.entry);
    if let (Some(a), Some(b)) = (a.inactive_port, b.inactive_port)
        && a != b
    {
        let problem = format!(
            "differs from {a} in {}, which shares its agentPort",
            first.place.path
        );
        notes.fault(
            &other.place.child("inactivePort"),
            b,
            &problem,
            "write one inactivePort for one agentPort",
        );
    }
    if !b.app_protocol.is_empty() && !b.app_protocol.eq_ignore_ascii_case(&target.app_protocol) {
        let problem = format!(
            "{} on a port that an earlier entry declares {}",
            b.app_protocol, target.app_protocol
        );
        notes.warn(
            &other.place.child("appProtocol"),
            &problem,
            "declare one protocol for one port; the first one counts",
        );
    }
    if first.container.name != other.container.name {
        let problem = format!(
            "shares agentPort {} with {} of another container",
            b.agent_port, first.place.path
        );
        notes.warn(
            other.place,
            &problem,
            "list a port in the container that has it",
        );
    }
}

/// Checks that the agent does not listen on an app's port.
fn check_agent_port(target: &Target, place: &Place, placed: &[Placed<'_>], notes: &mut Notes<'_>) {
    let number = target.agent_port.get();
    let taken = placed.iter().find(|other| {
        other.entry.transport == target.transport && other.entry.container_port.get() == number
    });
    if let Some(other) = taken {
        let problem = format!("is also the containerPort of {}", other.place.path);
        notes.fault(
            &place.child("agentPort"),
            number,
            &problem,
            "choose an agentPort no container uses",
        );
    }
}

/// Checks that a proxy port is in range and not used otherwise.
fn check_proxy_port(
    target: &Target,
    place: &Place,
    targets: &[Target],
    total: usize,
    notes: &mut Notes<'_>,
) {
    let number = proxy_number(target, total);
    let written = target
        .entries
        .iter()
        .any(|entry| entry.inactive_port.is_some());
    let (key, shown) = if written {
        ("inactivePort", number)
    } else {
        ("agentPort", usize::from(target.agent_port.get()))
    };
    let place = place.child(key);
    let name = if written {
        "the proxy port".to_owned()
    } else {
        format!("the proxy port {number} (agentPort + {PROXY_OFFSET} + {total} entries)")
    };
    if number > usize::from(u16::MAX) {
        notes.fault(
            &place,
            shown,
            &format!("{name} is above 65535"),
            "choose a lower agentPort",
        );
        return;
    }
    if let Some(clash) = user_of(number, target, targets, total) {
        let remedy = "choose ports so that agent, proxy and container ports all differ";
        notes.fault(&place, shown, &format!("{name} is also {clash}"), remedy);
    }
}

/// Names the first other use of `number`, the proxy port of `target`.
fn user_of(number: usize, target: &Target, targets: &[Target], total: usize) -> Option<String> {
    let alike = |other: &&Target| other.transport == target.transport;
    targets.iter().filter(alike).find_map(|other| {
        let itself = std::ptr::eq(other, target);
        let other_proxy = (other.is_redirected() && !itself).then(|| proxy_number(other, total));
        if usize::from(other.container_port.get()) == number {
            Some(format!("containerPort {}", other.container_port))
        } else if usize::from(other.agent_port.get()) == number {
            Some(format!("agentPort {}", other.agent_port))
        } else if other_proxy == Some(number) {
            Some(format!("the proxy port of agentPort {}", other.agent_port))
        } else {
            None
        }
    })
}

/// Checks that no two listeners are in front of one app port: a redirect can lead to the first
/// only.
fn check_container_port(target: &Target, place: &Place, targets: &[Target], notes: &mut Notes<'_>) {
    let earlier = targets
        .iter()
        .take_while(|other| !std::ptr::eq(*other, target))
        .find(|other| {
            (other.container_port, other.transport) == (target.container_port, target.transport)
                && other.is_redirected()
                && target.is_redirected()
        });
    if let Some(other) = earlier {
        let problem = format!(
            "containerPort {} is redirected to agentPort {} already",
            target.container_port, other.agent_port
        );
        notes.warn(place, &problem, "give one container port one agentPort");
    }
}
