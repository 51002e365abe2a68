//! START HERE: the policy, a pure function from the configured ports and the pod to an ordered list
//! of rules.
//!
//! ```text
//! caller ──> app port C ──redirect──> agent port A ══> agent ══> proxy port X ──translate──> app port C
//! ```
//!
//! Ports with a numeric target are redirected; a named one is taken over by the Service, without
//! any rule.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::cidr::Cidr;
use crate::rule::Test::{
    Carried, Claimed, From, FromSubnet, Local, NotFrom, NotTo, Over, Port, To, ToSubnet,
};
use crate::rule::{Action, Chain, Family, Owner, Rule, TRANSPORTS, Test, Transport};

/// Port of name servers: a mesh may answer names for the agent as well.
const DNS: u16 = 53;

/// One port of an app container, as far as the plan depends on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortPlan {
    /// Name of the container that has the port, for messages.
    pub container: String,
    /// Port the app listens on and callers ask for.
    pub container_port: u16,
    /// Port the agent listens on.
    pub agent_port: u16,
    /// Port the agent dials to reach the app past our own redirect.
    pub proxy_port: u16,
    /// Transport of all three.
    pub transport: Transport,
    /// True when callers come by the port's number (a numeric target port, or a headless Service):
    /// only then is it redirected.
    pub numeric: bool,
}

/// The pod, as far as the plan depends on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Own addresses; a family without an address gets no rule.
    pub addresses: Vec<IpAddr>,
    /// Name of the loopback interface.
    pub loopback: String,
    /// Mark that tells the agent's sockets from all others.
    pub agent: Owner,
}

/// Exceptions from the policy, and what the kernel can do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Options {
    /// Container ports that callers reach without the agent.
    pub excluded_ports: Vec<PortRange>,
    /// Subnets whose callers reach the app without the agent.
    pub excluded_sources: Vec<Cidr>,
    /// Owners of processes in the pod that reach the app without the agent.
    pub excluded_owners: Vec<Owner>,
    /// Subnets that the agent dials through the mesh.
    pub mesh_subnets: Vec<Cidr>,
    /// Tests the kernel lacks, which are left out.
    pub lacks: Lacks,
}

/// Tests that the kernel may lack and the plan can do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lacks {
    /// [`Test::Local`].
    pub local: bool,
    /// [`Test::Claimed`].
    pub claimed: bool,
}

/// Range of ports, of one transport or of both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    /// First port.
    pub first: u16,
    /// Last port.
    pub last: u16,
    /// Transport, or both.
    pub transport: Option<Transport>,
}

impl PortRange {
    fn contains(self, port: &PortPlan) -> bool {
        (self.first..=self.last).contains(&port.container_port)
            && self.transport.is_none_or(|it| it == port.transport)
    }
}

impl Options {
    /// True when callers of `port` do not meet the agent.
    pub fn excludes(&self, port: &PortPlan) -> bool {
        self.excluded_ports.iter().any(|it| it.contains(port))
    }
}

/// Lists the rules of the whole policy, family by family, in the order in which the kernel reads
/// them.
pub fn plan(ports: &[PortPlan], pod: &Pod, options: &Options) -> Vec<Rule> {
    let numeric: Vec<&PortPlan> = ports.iter().filter(|port| port.numeric).collect();
    if numeric.is_empty() {
        return Vec::new();
    }
    Family::ALL
        .into_iter()
        .flat_map(|family| of_family(family, &numeric, pod, options))
        .collect()
}

/// Rules of one family under construction.
struct Rules {
    family: Family,
    list: Vec<Rule>,
}

impl Rules {
    fn add(&mut self, chain: Chain, when: Vec<Test>, then: Action) {
        self.list.push(Rule {
            family: self.family,
            chain,
            when,
            then,
        });
    }
}

fn of_family(family: Family, ports: &[&PortPlan], pod: &Pod, options: &Options) -> Vec<Rule> {
    let own = |it: &IpAddr| Family::of(*it) == family;
    let addresses: Vec<IpAddr> = pod.addresses.iter().copied().filter(own).collect();
    let mut rules = Rules {
        family,
        list: Vec::new(),
    };
    if addresses.is_empty() {
        return rules.list;
    }
    for transport in TRANSPORTS {
        let carried = |port: &&&PortPlan| port.transport == transport;
        let ports: Vec<&PortPlan> = ports.iter().filter(carried).copied().collect();
        if ports.is_empty() {
            continue;
        }
        let redirected = ports.iter().any(|port| !options.excludes(port));
        exceptions(&mut rules, transport, redirected, options);
        redirects(&mut rules, &ports, &addresses, options);
        if redirected {
            inbound_jump(&mut rules, transport, options);
        }
        outbound_jumps(&mut rules, transport, pod);
    }
    bypass(&mut rules, pod, options);
    rules.list
}

/// Packets that are not redirected.
fn exceptions(rules: &mut Rules, transport: Transport, redirected: bool, options: &Options) {
    if !redirected {
        return;
    }
    let (inbound, outbound) = (Chain::Inbound(transport), Chain::Outbound(transport));
    // A mesh in TPROXY mode has assigned the packet to its listener: redirected now, it would reach
    // that listener with a destination nobody expects. The mesh's own connection comes by
    // `OUTPUT`.
    if !options.lacks.claimed {
        rules.add(inbound, vec![Claimed], Action::Return);
    }
    for subnet in &options.excluded_sources {
        if subnet.family() == rules.family {
            rules.add(inbound, vec![FromSubnet(*subnet)], Action::Return);
        }
    }
    for owner in &options.excluded_owners {
        rules.add(outbound, vec![From(*owner)], Action::Return);
    }
}

/// Ports of the app lead to the agent, proxy ports of the agent to the app.
fn redirects(rules: &mut Rules, ports: &[&PortPlan], addresses: &[IpAddr], options: &Options) {
    for port in ports {
        let transport = port.transport;
        if !options.excludes(port) {
            let app = Port(transport, port.container_port);
            let agent = Action::Redirect(port.agent_port);
            // Callers of the app's port reach the agent, those from other hosts …
            rules.add(Chain::Inbound(transport), vec![app.clone()], agent);
            // … and the neighbours in the pod, a mesh's proxy among them. A redirect of what they
            // send leads to loopback, from where no answer finds its way to a caller in whose name
            // a mesh connects; the pod's own address does.
            for address in addresses {
                let agent = SocketAddr::new(*address, port.agent_port);
                let when = vec![To(*address), app.clone()];
                rules.add(Chain::Outbound(transport), when, Action::Translate(agent));
            }
            rules.add(Chain::Outbound(transport), vec![app], agent);
        }
        for address in addresses {
            let proxy = vec![To(*address), Port(transport, port.proxy_port)];
            let app = SocketAddr::new(*address, port.container_port);
            rules.add(Chain::Outbound(transport), proxy, Action::Translate(app));
        }
    }
}

/// Way into our chain for packets that arrive. What is only routed through the pod, to nested
/// containers or into a VPN, is not for us.
fn inbound_jump(rules: &mut Rules, transport: Transport, options: &Options) {
    let mut arriving = vec![Carried(transport)];
    if !options.lacks.local {
        arriving.push(Local);
    }
    let inbound = Action::Jump(Chain::Inbound(transport));
    rules.add(Chain::Prerouting, arriving, inbound);
}

/// Ways into our chain for packets that the pod's processes send to the pod itself.
fn outbound_jumps(rules: &mut Rules, transport: Transport, pod: &Pod) {
    let outbound = Action::Jump(Chain::Outbound(transport));
    let over_loopback = Over(pod.loopback.clone());
    let neighbours = vec![
        over_loopback.clone(),
        Carried(transport),
        NotFrom(pod.agent),
    ];
    rules.add(Chain::Output, neighbours, outbound);
    // The agent too, when a workstation behind it asks for the pod; 127.0.0.1 is its direct way
    // to the app.
    let itself = vec![
        NotTo(localhost(rules.family)),
        over_loopback,
        Carried(transport),
        From(pod.agent),
    ];
    rules.add(Chain::Output, itself, outbound);
}

/// Packets of the agent to other destinations: no mesh captures them, except where it is meant to.
fn bypass(rules: &mut Rules, pod: &Pod, options: &Options) {
    let agents = vec![From(pod.agent)];
    rules.add(Chain::Output, agents, Action::Jump(Chain::Bypass));
    for transport in TRANSPORTS {
        let dns = vec![Port(transport, DNS)];
        rules.add(Chain::Bypass, dns, Action::Return);
    }
    for subnet in &options.mesh_subnets {
        if subnet.family() == rules.family {
            rules.add(Chain::Bypass, vec![ToSubnet(*subnet)], Action::Return);
        }
    }
    rules.add(Chain::Bypass, vec![], Action::LeaveAlone);
}

fn localhost(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::LOCALHOST.into(),
        Family::V6 => Ipv6Addr::LOCALHOST.into(),
    }
}
