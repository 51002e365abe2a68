//! START HERE: the policy, a pure function from the configured ports and the pod to an ordered list
//! of rules.
//!
//! ```text
//! caller ──> app port C ──redirect──> agent port A ══> agent ══> proxy port X ──translate──> app port C
//! ```
//!
//! Ports with a numeric target are redirected; a named one is taken over by the Service, without any
//! rule.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::rule::Test::{Carried, From, NotFrom, NotTo, Over, Port, To};
use crate::rule::{Action, Agent, Chain, Family, Rule, TRANSPORTS, Test, Transport};

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
    pub agent: Agent,
}

/// Lists the rules of the whole policy, family by family, in the order in which the kernel reads
/// them.
pub fn plan(ports: &[PortPlan], pod: &Pod) -> Vec<Rule> {
    let numeric: Vec<&PortPlan> = ports.iter().filter(|port| port.numeric).collect();
    if numeric.is_empty() {
        return Vec::new();
    }
    Family::ALL
        .into_iter()
        .flat_map(|family| of_family(family, &numeric, pod))
        .collect()
}

fn of_family(family: Family, ports: &[&PortPlan], pod: &Pod) -> Vec<Rule> {
    let addresses: Vec<IpAddr> = pod
        .addresses
        .iter()
        .copied()
        .filter(|it| Family::of(*it) == family)
        .collect();
    let mut rules = Vec::new();
    let mut say = |chain, when: Vec<Test>, then| {
        rules.push(Rule {
            family,
            chain,
            when,
            then,
        })
    };
    if addresses.is_empty() {
        return rules;
    }

    let over_loopback = || Over(pod.loopback.clone());
    for transport in TRANSPORTS {
        let ports: Vec<_> = ports
            .iter()
            .filter(|port| port.transport == transport)
            .collect();
        if ports.is_empty() {
            continue;
        }
        let (inbound, outbound) = (Chain::Inbound(transport), Chain::Outbound(transport));
        for port in ports {
            let app = Port(transport, port.container_port);
            // Callers of the app's port reach the agent, those from other hosts …
            say(
                inbound,
                vec![app.clone()],
                Action::Redirect(port.agent_port),
            );
            // … and the neighbours in the pod, a mesh's proxy among them.
            say(outbound, vec![app], Action::Redirect(port.agent_port));
            // The agent's proxy port reaches the app.
            for address in &addresses {
                let proxy = vec![To(*address), Port(transport, port.proxy_port)];
                say(
                    outbound,
                    proxy,
                    Action::Translate(SocketAddr::new(*address, port.container_port)),
                );
            }
        }
        // That holds for all that comes in,
        say(
            Chain::Prerouting,
            vec![Carried(transport)],
            Action::Jump(inbound),
        );
        // for all that the pod's processes send to the pod itself,
        let neighbours = vec![over_loopback(), Carried(transport), NotFrom(pod.agent)];
        say(Chain::Output, neighbours, Action::Jump(outbound));
        // and for the agent too, when a workstation behind it asks for the pod; 127.0.0.1 is its
        // direct way to the app.
        let itself = vec![
            NotTo(localhost(family)),
            over_loopback(),
            Carried(transport),
            From(pod.agent),
        ];
        say(Chain::Output, itself, Action::Jump(outbound));
    }
    // Whatever else the agent sends goes where it is sent: no mesh captures it.
    say(
        Chain::Output,
        vec![From(pod.agent)],
        Action::Jump(Chain::Bypass),
    );
    say(Chain::Bypass, vec![], Action::LeaveAlone);
    rules
}

fn localhost(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::LOCALHOST.into(),
        Family::V6 => Ipv6Addr::LOCALHOST.into(),
    }
}
