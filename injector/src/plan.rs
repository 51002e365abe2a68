//! The desired agent of a workload, made from its template alone: what other webhooks do to a pod
//! changes nothing here.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use sha2::{Digest, Sha256};
use traffic_proto::Transport;
use traffic_proto::sidecar::MountPolicy;

use crate::annotations::{self, Requests};
use crate::config::{Config, ConfigContainer, Entry, mount_policy};
use crate::explain::{NoRedirect, Note, Refusal};
use crate::facts::{Container, PodSecurity, Surroundings, Workload};
use crate::ports::{self, Match, base26};
use crate::settings::{Carrier, Mesh, Settings};

/// Root of the app containers' volumes in the agent.
pub(crate) const APP_MOUNTS: &str = "/tel_app_mounts";
/// Changed whenever the same inputs are to make other pods than before.
const GENERATION: &str = "1";
/// Added to an agent port, together with the number of all entries, to make its proxy port.
const PROXY_OFFSET: usize = 11;

/// The desired agent of a workload.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The agent's configuration.
    pub config: Config,
    /// Short hash of everything that shapes the pod; pods with another one are to be replaced.
    pub digest: String,
    /// An init container redirects ports.
    pub init: bool,
    /// An Istio `Sidecar` object redirects ports.
    pub mesh: bool,
    /// The agent is a native sidecar.
    pub native: bool,
    /// The namespace's Pod Security level.
    pub pod_security: PodSecurity,
    /// Remarks about the plan.
    pub notes: Vec<Note>,
}

/// Makes the plan of a workload in which the containers of `replaced` are to be replaced.
///
/// # Errors
/// The reason why the workload cannot have an agent.
pub fn plan(
    workload: &Workload,
    replaced: &BTreeSet<String>,
    around: &Surroundings,
    settings: &Settings,
) -> Result<Plan, Refusal> {
    let requests = annotations::read(&workload.template.annotations).map_err(|faults| {
        let workload = workload.to_string();
        Refusal::Faults { workload, faults }
    })?;
    if workload.template.containers.is_empty() {
        return Err(Refusal::NoContainers(workload.to_string()));
    }
    let warnings = requests
        .warnings
        .iter()
        .map(|it| Note::warning(it.to_string()));
    let mut notes: Vec<_> = warnings.collect();
    let matches = ports::find(workload, &requests, &around.services, &mut notes)?;
    let mut draft = Draft {
        workload,
        replaced,
        settings,
        no_redirect: no_redirect(around, settings),
        entries: Vec::new(),
        notes,
        refused: Vec::new(),
    };
    for found in &matches {
        draft.add(found);
    }
    if draft.entries.is_empty() && !draft.refused.is_empty() {
        return Err(Refusal::NoRedirect {
            workload: workload.to_string(),
            reasons: draft.refused,
        });
    }
    draft.assign_agent_ports()?;
    draft.finish(&requests, around)
}

fn no_redirect(around: &Surroundings, settings: &Settings) -> Option<NoRedirect> {
    match (settings.mesh, around.pod_security) {
        // An Istio `Sidecar` object redirects in the mesh's proxy; no privileges are needed.
        (Mesh::Istio, _) => None,
        _ if !settings.init_container => Some(NoRedirect::SwitchedOff),
        (_, PodSecurity::Privileged) => None,
        (_, level) => Some(NoRedirect::PodSecurity(level)),
    }
}

/// A plan in the making.
struct Draft<'a> {
    workload: &'a Workload,
    replaced: &'a BTreeSet<String>,
    settings: &'a Settings,
    no_redirect: Option<NoRedirect>,
    /// Position of the container, and its entry.
    entries: Vec<(usize, Entry)>,
    notes: Vec<Note>,
    /// Ports that need a redirect and cannot have one.
    refused: Vec<String>,
}

impl Draft<'_> {
    fn container(&self, at: usize) -> &Container {
        &self.workload.template.containers[at]
    }

    /// Returns true if the agent listens on the container's own ports.
    fn takes_ports(&self, at: usize) -> bool {
        takes_ports(self.container(at), self.replaced, self.settings)
    }

    fn add(&mut self, found: &Match<'_>) {
        let mut entry = entry(found, self.settings);
        // Containers of a pod share its ports: one number is listened on once, whoever declares it.
        let known = self.entries.iter().find(|(_, it)| {
            (it.container_port, it.protocol) == (entry.container_port, entry.protocol)
        });
        let container = known.map_or(found.container, |(container, _)| *container);
        let headless = found.service.is_some_and(|(service, _)| service.headless);
        let clash = self.shares_a_name(container, &entry);
        if !entry.target_port_numeric && !self.takes_ports(container) {
            match (headless || clash, self.no_redirect) {
                (true, None) => entry.headless = true,
                // A name can be taken over without privileges; only callers of the pod's own
                // address go past the agent.
                (true, Some(_)) if !clash => self.notes.push(Note::warning(format!(
                    "Service {} is headless: callers that use the port's number and not its name \
                     go past the agent, since no init container can be used",
                    entry.service_name
                ))),
                (true, Some(why)) => return self.refuse(found, why),
                (false, _) => {}
            }
        }
        if entry.is_redirected()
            && !self.takes_ports(container)
            && let Some(why) = self.no_redirect
        {
            return self.refuse(found, why);
        }
        self.entries.push((container, entry));
    }

    fn refuse(&mut self, found: &Match<'_>, why: NoRedirect) {
        let text = why.of(&self.container(found.container).name, found.port.number);
        if !self.refused.contains(&text) {
            self.notes.push(Note::warning(text.clone()));
            self.refused.push(text);
        }
    }

    /// A name can stand for one port of an agent, and a port of an agent can have one name. What
    /// goes beyond that is redirected.
    fn shares_a_name(&self, container: usize, entry: &Entry) -> bool {
        let target = |at: usize, it: &Entry| (at, it.container_port, it.protocol);
        let own = target(container, entry);
        let clashes = |(at, other): &&(usize, Entry)| {
            let same_name = other.container_port_name == entry.container_port_name;
            let same_target = target(*at, other) == own;
            !other.is_redirected() && same_name != same_target
        };
        let named = !entry.container_port_name.is_empty();
        named && self.entries.iter().any(|it| clashes(&it))
    }

    /// Assigns one agent port to each distinct container port number; none is a port that the
    /// workload uses itself.
    fn assign_agent_ports(&mut self) -> Result<(), Refusal> {
        let containers = self.workload.template.containers.iter();
        let declared = containers.flat_map(|it| it.ports.iter().map(|port| port.number));
        let mut taken: BTreeSet<u16> = declared.collect();
        // The app listens on ports it does not declare, too; Services with a number name them.
        taken.extend(self.entries.iter().map(|(_, it)| it.container_port));
        let mut next = self.settings.first_port.max(1);
        let mut ports: BTreeMap<u16, u16> = BTreeMap::new();
        for (_, entry) in &mut self.entries {
            // One container port has one agent port, however many Services point at it.
            if let Some(port) = ports.get(&entry.container_port) {
                entry.agent_port = *port;
                continue;
            }
            let port = free(next, &taken)
                .ok_or_else(|| Refusal::NoAgentPort(self.workload.to_string()))?;
            if port != next {
                self.notes.push(Note::moved_port(next, port));
            }
            taken.insert(port);
            ports.insert(entry.container_port, port);
            entry.agent_port = port;
            next = after(port);
        }
        self.assign_proxy_ports(&mut taken)
    }

    /// Writes down the proxy ports that cannot be the usual ones.
    fn assign_proxy_ports(&mut self, taken: &mut BTreeSet<u16>) -> Result<(), Refusal> {
        let total = self.entries.len();
        let redirected = self.entries.iter().filter(|(_, it)| it.is_redirected());
        let targets: BTreeSet<(u16, Transport)> = redirected
            .map(|(_, it)| (it.agent_port, it.protocol))
            .collect();
        let mut by_agent_port: BTreeMap<u16, u16> = BTreeMap::new();
        for (agent_port, transport) in targets {
            // Agent and agent-init compute this number too; the config names the port only when it
            // differs.
            let usual = usize::from(agent_port) + PROXY_OFFSET + total;
            let usual = u16::try_from(usual).ok();
            // TCP and UDP on one number share the proxy port's number as well.
            if let Some(port) = by_agent_port.get(&agent_port) {
                self.set_proxy_port(agent_port, transport, *port, usual);
                continue;
            }
            let port = usual
                .filter(|it| !taken.contains(it))
                .or_else(|| free(usual.map_or(1024, after), taken))
                .ok_or_else(|| Refusal::NoAgentPort(self.workload.to_string()))?;
            taken.insert(port);
            by_agent_port.insert(agent_port, port);
            self.set_proxy_port(agent_port, transport, port, usual);
        }
        Ok(())
    }

    fn set_proxy_port(&mut self, agent: u16, transport: Transport, port: u16, usual: Option<u16>) {
        if Some(port) == usual {
            return;
        }
        for (_, entry) in &mut self.entries {
            if (entry.agent_port, entry.protocol) == (agent, transport) {
                entry.inactive_port = Some(port);
            }
        }
    }

    fn finish(self, requests: &Requests, around: &Surroundings) -> Result<Plan, Refusal> {
        let Self {
            workload,
            replaced,
            settings,
            entries,
            mut notes,
            ..
        } = self;
        let mut config = Config::of(
            settings,
            workload.kind.name(),
            &workload.name,
            &workload.namespace,
        );
        for (at, container) in workload.template.containers.iter().enumerate() {
            let own = entries.iter().filter(|(owner, _)| *owner == at);
            let own = own.map(|(_, entry)| entry.clone()).collect();
            config
                .containers
                .push(describe(at, container, own, requests, replaced, settings));
        }
        let redirects = config.has_redirects();
        let mesh = redirects && settings.mesh == Mesh::Istio;
        if mesh && let Some(sidecar) = &around.foreign_sidecar {
            return Err(Refusal::ForeignSidecar {
                workload: workload.to_string(),
                sidecar: sidecar.clone(),
            });
        }
        let all_replaced = config.containers.iter().all(ConfigContainer::is_replaced);
        // A pod needs at least one ordinary container: with all of them replaced it is the agent.
        let native = settings.native() && !all_replaced;
        note_ways(&config, &mut notes);
        let mut plan = Plan {
            config,
            digest: String::new(),
            init: redirects && !mesh,
            mesh,
            native,
            pod_security: around.pod_security,
            notes,
        };
        // The digest covers the whole config: pods with an older one are out of date.
        plan.digest = plan.hash(settings);
        Ok(plan)
    }
}

impl Plan {
    /// The hash of what makes the pod: the whole configuration and how it is put in.
    fn hash(&self, settings: &Settings) -> String {
        let restricted = self.pod_security == PodSecurity::Restricted;
        let token = match settings.manager_token {
            true => " token",
            false => "",
        };
        let shape = format!(
            "{GENERATION} {} {} {} {restricted} {:?} {}{token}\n{}",
            self.init,
            self.mesh,
            self.native,
            settings.carrier,
            settings.agent_group(),
            self.config.to_json(),
        );
        short_hash(shape.as_bytes())
    }
}

/// The first bytes of a hash, in hexadecimal.
pub(crate) fn short_hash(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    hash.iter().take(8).map(|it| format!("{it:02x}")).collect()
}

fn note_ways(config: &Config, notes: &mut Vec<Note>) {
    for (container, entry) in config.entries() {
        let Entry {
            container_port,
            protocol,
            agent_port,
            ..
        } = entry;
        let name = &container.name;
        let way = if container.takes_ports {
            "the agent listens in the replaced container's place".to_owned()
        } else if entry.is_redirected() {
            format!("callers are redirected to agent port {agent_port}")
        } else {
            format!(
                "the agent takes over the port name {:?} on {agent_port}",
                entry.container_port_name
            )
        };
        let via = match entry.service_name.as_str() {
            "" => "without a Service".to_owned(),
            service => format!("by Service {service} port {}", entry.service_port),
        };
        notes.push(Note::info(format!(
            "container {name} port {container_port}/{protocol} {via}: {way}"
        )));
    }
}

fn entry(found: &Match<'_>, settings: &Settings) -> Entry {
    let service = found.service.map(|(service, _)| service);
    let port = found.service.map(|(_, port)| port);
    let declared = port.map(|it| it.app_protocol.as_str()).unwrap_or_default();
    let name = match port {
        Some(port) => port.name.as_str(),
        None => found.port.name.as_str(),
    };
    Entry {
        agent_port: 0,
        app_protocol: app_protocol(declared, name, settings),
        container_port: found.port.number,
        container_port_name: found.port.name.clone(),
        headless: false,
        inactive_port: None,
        protocol: found.port.transport,
        service_name: service.map(|it| it.name.clone()).unwrap_or_default(),
        service_port: port.map(|it| it.port).unwrap_or_default(),
        service_port_name: port.map(|it| it.name.clone()).unwrap_or_default(),
        service_uid: service.map(|it| it.uid.clone()).unwrap_or_default(),
        target_port_numeric: found.is_numeric(),
    }
}

/// A declared protocol counts, else the strategy.
fn app_protocol(declared: &str, port_name: &str, settings: &Settings) -> String {
    use traffic_proto::sidecar::AppProtocolStrategy as Strategy;
    if !declared.is_empty() {
        return declared.to_owned();
    }
    let chosen = match settings.strategy {
        Strategy::Http2Probe => "",
        Strategy::Http => "http",
        Strategy::Http2 => "http2",
        Strategy::PortName => {
            let word = port_name.split('-').next().unwrap_or_default();
            match word.to_ascii_lowercase().as_str() {
                "http" => "http",
                "https" | "tls" | "h2" => "https",
                "grpc" => "grpc",
                "http2" | "h2c" => "http2",
                _ => "",
            }
        }
    };
    chosen.to_owned()
}

fn describe(
    at: usize,
    container: &Container,
    intercepts: Vec<Entry>,
    requests: &Requests,
    replaced: &BTreeSet<String>,
    settings: &Settings,
) -> ConfigContainer {
    let rules = [&requests.mount_policies[..], &settings.mount_policies[..]];
    let policies = container.mounts.iter().map(|(volume, path)| {
        let policy = mount_policy(volume, path, &requests.ignored_mounts, &rules);
        (path.clone(), policy)
    });
    let policies: Vec<_> = policies
        .filter(|(_, policy)| *policy != MountPolicy::Ignore)
        .collect();
    let (mut listed_mounts, mut mounts) = (Vec::new(), BTreeMap::new());
    match settings.carrier {
        Carrier::ConfigMap => {
            let shared = policies.iter().filter(|(_, it)| *it != MountPolicy::Local);
            listed_mounts = shared.map(|(path, _)| path.clone()).collect();
        }
        Carrier::Annotation => {
            mounts = policies
                .iter()
                .map(|(path, policy)| (path.clone(), policy.name()))
                .collect();
        }
    }
    ConfigContainer {
        listed_mounts,
        env_prefix: format!("{}_", base26(at)),
        intercepts,
        mount_point: format!("{APP_MOUNTS}/{}", container.name),
        mounts,
        name: container.name.clone(),
        replace: u8::from(replaced.contains(&container.name)),
        takes_ports: takes_ports(container, replaced, settings),
    }
}

fn takes_ports(container: &Container, replaced: &BTreeSet<String>, settings: &Settings) -> bool {
    settings.carrier == Carrier::Annotation && replaced.contains(&container.name)
}

/// The first number from `from` on, past the end from 1024 again, that is not taken.
fn free(from: u16, taken: &BTreeSet<u16>) -> Option<u16> {
    (from..=u16::MAX)
        // Ports below 1024 need a capability the agent does not have.
        .chain(1024..from.max(1024))
        .find(|port| !taken.contains(port))
}

fn after(port: u16) -> u16 {
    port.checked_add(1).unwrap_or(1024)
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}.{}", self.kind, self.name, self.namespace)
    }
}
