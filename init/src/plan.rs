//! START HERE: the policy. What the config wants and what the pod is, in; an ordered list of rules,
//! out. Pure.
//!
//! ```text
//! caller ──> app port C ──redirect──> agent port A ══> agent ══> proxy port X ──translate──> app port C
//! ```
//!
//! Only ports with a numeric target are touched: a named one is taken over by the Service, without
//! any rule.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::rule::Test::{Carried, From, NotFrom, NotTo, Over, Port, To};
use crate::rule::{Action, Agent, Chain, Family, Rule, TRANSPORTS, Test, Transport};

/// What the plan needs to know of one port of an app container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortPlan {
    /// The container the port belongs to, for messages.
    pub container: String,
    /// Where the app listens, and what callers ask for.
    pub container_port: u16,
    /// Where the agent listens.
    pub agent_port: u16,
    /// What the agent dials to reach the app past our own redirect.
    pub proxy_port: u16,
    /// Which transport.
    pub transport: Transport,
    /// Whether callers come by the port's number (a numeric target port, or a Service without an
    /// address of its own): only then is it redirected.
    pub numeric: bool,
}

/// What the plan needs to know of the pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// The pod's own addresses; a family without an address gets no rule.
    pub addresses: Vec<IpAddr>,
    /// The loopback interface's name.
    pub loopback: String,
    /// How the agent's sockets are told from the others.
    pub agent: Agent,
}

/// The whole policy, family by family, each in the order in which the kernel reads it.
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

/// The plan as the input of `iptables-restore --noflush` and `ip6tables-restore --noflush` for an
/// empty table.
pub fn iptables_text(rules: &[Rule]) -> String {
    let mut text = String::new();
    for (family, rules) in by_family(rules) {
        let program = if family == Family::V4 {
            "iptables-restore"
        } else {
            "ip6tables-restore"
        };
        text += &format!("# {program} --noflush --wait\n*nat\n");
        for chain in own_chains(&rules) {
            text += &format!(":{} - [0:0]\n", chain.name());
        }
        let mut position = 0;
        for rule in &rules {
            text += &match rule.chain {
                Chain::Output => {
                    position += 1;
                    format!("-I OUTPUT {position} {}\n", rule.iptables())
                }
                chain => format!("-A {} {}\n", chain.name(), rule.iptables()),
            };
        }
        text += "COMMIT\n";
    }
    text
}

/// The plan as input of `nft -f`.
pub fn nft_text(rules: &[Rule]) -> String {
    let mut text = String::new();
    for (family, rules) in by_family(rules) {
        let table = format!("table {} {}", family.nft(), crate::nft::TABLE);
        text += &format!("{table}\ndelete {table}\n{table} {{\n");
        for chain in chains(&rules) {
            text += &format!("\tchain {} {{\n", chain.name());
            if let Some((hook, priority)) = crate::nft::hook(chain) {
                text += &format!("\t\ttype nat hook {hook} priority {priority}; policy accept;\n");
            }
            for rule in rules.iter().filter(|rule| rule.chain == chain) {
                text += &format!("\t\t{}\n", rule.nft());
            }
            text += "\t}\n";
        }
        text += "}\n";
    }
    text
}

/// The plan as JSON, for programs.
pub fn json_text(rules: &[Rule], pod: &Pod) -> String {
    let agent = match pod.agent {
        Agent::Gid(id) => serde_json::json!({ "gid": id }),
        Agent::Uid(id) => serde_json::json!({ "uid": id }),
    };
    let addresses: Vec<String> = pod.addresses.iter().map(ToString::to_string).collect();
    let plan = serde_json::json!({
        "pod": { "addresses": addresses, "loopback": pod.loopback, "agent": agent },
        "rules": rules.iter().map(Rule::json).collect::<Vec<_>>(),
    });
    format!("{plan:#}\n")
}

/// The rules of each family that has any.
pub fn by_family(rules: &[Rule]) -> Vec<(Family, Vec<&Rule>)> {
    let of = |family| {
        (
            family,
            rules
                .iter()
                .filter(|rule| rule.family == family)
                .collect::<Vec<_>>(),
        )
    };
    Family::ALL
        .map(of)
        .into_iter()
        .filter(|(_, rules)| !rules.is_empty())
        .collect()
}

/// The chains that `rules` stand in, each once: ours first, because the hooks' rules jump to them.
pub fn chains(rules: &[&Rule]) -> Vec<Chain> {
    let mut seen: Vec<Chain> = own_chains(rules);
    for rule in rules {
        if !seen.contains(&rule.chain) {
            seen.push(rule.chain);
        }
    }
    seen
}

/// The chains of our own that `rules` stand in, each once.
pub fn own_chains(rules: &[&Rule]) -> Vec<Chain> {
    let mut seen = Vec::new();
    for rule in rules {
        if !rule.chain.is_hook() && !seen.contains(&rule.chain) {
            seen.push(rule.chain);
        }
    }
    seen
}
