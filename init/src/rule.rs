//! One typed redirect rule, and its three spellings: a line for `iptables-restore`, a line for `nft
//! -f`, and JSON.
//!
//! Pure. The same rule goes to every backend, so that they cannot mean different things:
//! `nft::expr` is the fourth spelling, the kernel's own. A line is written as `iptables-save`
//! prints it, so that comparing text is enough to see whether a rule is in force.

use std::fmt::{self, Display, Formatter};
use std::net::{IpAddr, SocketAddr};

pub use traffic_proto::port::Transport;

use crate::cidr::Cidr;
pub use crate::family::Family;

/// Transports in the order in which they are programmed.
pub const TRANSPORTS: [Transport; 2] = [Transport::Tcp, Transport::Udp];

/// Name of the transport in every rule language.
fn word(transport: Transport) -> &'static str {
    match transport {
        Transport::Tcp => "tcp",
        Transport::Udp => "udp",
    }
}

/// Owner of sockets, as far as the kernel tells them apart by it: the mark of the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Owner {
    /// Group. A group that only the agent runs as is the one sure mark of the agent.
    Gid(u32),
    /// User. An app with the agent's user is taken for the agent.
    Uid(u32),
}

impl Display for Owner {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gid(id) => write!(f, "gid {id}"),
            Self::Uid(id) => write!(f, "uid {id}"),
        }
    }
}

/// Chain of rules: one of the kernel's hooks or one of our own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Chain {
    /// Kernel hook for packets that arrive.
    Prerouting,
    /// Kernel hook for packets that processes of the pod send.
    Output,
    /// Own chain, reached from [`Chain::Prerouting`].
    Inbound(Transport),
    /// Own chain, reached from [`Chain::Output`].
    Outbound(Transport),
    /// Own chain: the agent's own traffic ends here, before a mesh's chains see it.
    Bypass,
}

impl Chain {
    /// Name in the `nat` table of iptables; for our own chains also in our nftables
    /// table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prerouting => "PREROUTING",
            Self::Output => "OUTPUT",
            Self::Inbound(Transport::Tcp) => "TEL_PREROUTING_TCP",
            Self::Inbound(Transport::Udp) => "TEL_PREROUTING_UDP",
            Self::Outbound(Transport::Tcp) => "TEL_OUTPUT_TCP",
            Self::Outbound(Transport::Udp) => "TEL_OUTPUT_UDP",
            Self::Bypass => "TEL_MESH_BYPASS",
        }
    }

    /// True for a chain that the kernel calls itself.
    pub fn is_hook(self) -> bool {
        matches!(self, Self::Prerouting | Self::Output)
    }
}

/// Condition on a packet. The tests of a rule are in the order of `iptables-save`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Test {
    /// Sent from an address in this subnet.
    FromSubnet(Cidr),
    /// Sent to this address.
    To(IpAddr),
    /// Sent to any other address.
    NotTo(IpAddr),
    /// Sent to an address in this subnet.
    ToSubnet(Cidr),
    /// Leaving over this interface.
    Over(String),
    /// Carried by this transport, whatever the port.
    Carried(Transport),
    /// Sent to an address of the pod itself, not routed through it.
    Local,
    /// Assigned to a transparent socket, as a mesh does in TPROXY mode.
    Claimed,
    /// Sent by this owner.
    From(Owner),
    /// Sent by any other owner.
    NotFrom(Owner),
    /// Sent to this port.
    Port(Transport, u16),
}

/// Treatment of a packet, and with it of its connection: translation looks at the first packet
/// only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Jump to a chain of ours, and back when nothing there matches.
    Jump(Chain),
    /// Leave this chain: others may still redirect the packet.
    Return,
    /// Redirect to this port of the pod itself.
    Redirect(u16),
    /// Translate the destination to this address and port.
    Translate(SocketAddr),
    /// Keep the destination, and let no later chain redirect it.
    LeaveAlone,
}

/// Rule: in `chain`, a packet of `family` for which all of `when` holds gets `then`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Family whose tables hold the rule.
    pub family: Family,
    /// Chain that holds the rule.
    pub chain: Chain,
    /// Tests that must all hold.
    pub when: Vec<Test>,
    /// Action for a packet that passes them.
    pub then: Action,
}

impl Rule {
    /// Renders the rule as `iptables-save` prints and `iptables-restore` reads it, without its
    /// chain.
    ///
    /// `LeaveAlone` is `ACCEPT`: the mesh's rules of the same table stand behind ours and are not
    /// reached.
    pub fn iptables(&self) -> String {
        let mut words: Vec<String> = self
            .when
            .iter()
            .map(|test| test.iptables(self.family))
            .collect();
        words.push(match self.then {
            Action::Jump(chain) => format!("-j {}", chain.name()),
            Action::Return => "-j RETURN".to_owned(),
            Action::Redirect(port) => format!("-j REDIRECT --to-ports {port}"),
            Action::Translate(to) => format!("-j DNAT --to-destination {to}"),
            Action::LeaveAlone => "-j ACCEPT".to_owned(),
        });
        words.join(" ")
    }

    /// Renders the rule in the language of `nft`, without its chain.
    ///
    /// `LeaveAlone` is a translation to the packet's own destination: an `accept` would end our
    /// chain only, and a mesh's chain that follows at a later priority would still capture the
    /// connection.
    pub fn nft(&self) -> String {
        let mut words: Vec<String> = self.when.iter().map(|test| test.nft(self.family)).collect();
        words.push(match self.then {
            Action::Jump(chain) => format!("jump {}", chain.name()),
            Action::Return => "return".to_owned(),
            Action::Redirect(port) => format!("redirect to :{port}"),
            Action::Translate(to) => format!("dnat to {to}"),
            Action::LeaveAlone => format!("dnat to {} daddr", self.family.nft()),
        });
        words.join(" ")
    }

    /// Renders the rule for programs: typed fields, and both spellings.
    pub fn json(&self) -> serde_json::Value {
        let mut when = serde_json::Map::new();
        for test in &self.when {
            let (key, value) = test.json();
            when.insert(key.to_owned(), value);
        }
        let then = match self.then {
            Action::Jump(chain) => serde_json::json!({ "jump": chain.name() }),
            Action::Return => serde_json::json!("return"),
            Action::Redirect(port) => serde_json::json!({ "redirect": port }),
            Action::Translate(to) => serde_json::json!({ "translate": to.to_string() }),
            Action::LeaveAlone => serde_json::json!("leaveAlone"),
        };
        serde_json::json!({
            "family": self.family.nft(),
            "chain": self.chain.name(),
            "when": when,
            "then": then,
            "iptables": format!("-A {} {}", self.chain.name(), self.iptables()),
            "nft": self.nft(),
        })
    }
}

impl Display for Rule {
    /// Names the rule in messages: family, chain and text.
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {}: {}",
            self.family.nft(),
            self.chain.name(),
            self.nft()
        )
    }
}

impl Test {
    fn iptables(&self, family: Family) -> String {
        match self {
            Self::FromSubnet(subnet) => format!("-s {subnet}"),
            Self::To(address) => format!("-d {address}/{}", family.prefix_length()),
            Self::NotTo(address) => format!("! -d {address}/{}", family.prefix_length()),
            Self::ToSubnet(subnet) => format!("-d {subnet}"),
            Self::Over(interface) => format!("-o {interface}"),
            Self::Carried(transport) => format!("-p {}", word(*transport)),
            Self::Local => "-m addrtype --dst-type LOCAL".to_owned(),
            // A mesh's listener is bound to no address, which the match ignores unless told.
            Self::Claimed => "-m socket --transparent --nowildcard".to_owned(),
            Self::From(Owner::Gid(id)) => format!("-m owner --gid-owner {id}"),
            Self::From(Owner::Uid(id)) => format!("-m owner --uid-owner {id}"),
            Self::NotFrom(Owner::Gid(id)) => format!("-m owner ! --gid-owner {id}"),
            Self::NotFrom(Owner::Uid(id)) => format!("-m owner ! --uid-owner {id}"),
            Self::Port(transport, port) => {
                format!("-p {0} -m {0} --dport {port}", word(*transport))
            }
        }
    }

    fn nft(&self, family: Family) -> String {
        match self {
            Self::FromSubnet(subnet) => format!("{} saddr {subnet}", family.nft()),
            Self::To(address) => format!("{} daddr {address}", family.nft()),
            Self::NotTo(address) => format!("{} daddr != {address}", family.nft()),
            Self::ToSubnet(subnet) => format!("{} daddr {subnet}", family.nft()),
            Self::Over(interface) => format!("oifname \"{interface}\""),
            Self::Carried(transport) => format!("meta l4proto {}", word(*transport)),
            Self::Local => "fib daddr type local".to_owned(),
            Self::Claimed => "socket transparent 1".to_owned(),
            Self::From(Owner::Gid(id)) => format!("meta skgid {id}"),
            Self::From(Owner::Uid(id)) => format!("meta skuid {id}"),
            Self::NotFrom(Owner::Gid(id)) => format!("meta skgid != {id}"),
            Self::NotFrom(Owner::Uid(id)) => format!("meta skuid != {id}"),
            Self::Port(transport, port) => format!("{} dport {port}", word(*transport)),
        }
    }

    fn json(&self) -> (&'static str, serde_json::Value) {
        let owner = |owner: &Owner| match owner {
            Owner::Gid(id) => serde_json::json!({ "gid": id }),
            Owner::Uid(id) => serde_json::json!({ "uid": id }),
        };
        match self {
            Self::FromSubnet(subnet) => ("fromSubnet", subnet.to_string().into()),
            Self::To(address) => ("to", address.to_string().into()),
            Self::NotTo(address) => ("notTo", address.to_string().into()),
            Self::ToSubnet(subnet) => ("toSubnet", subnet.to_string().into()),
            Self::Over(interface) => ("over", interface.as_str().into()),
            Self::Carried(transport) => ("transport", word(*transport).into()),
            Self::Local => ("local", true.into()),
            Self::Claimed => ("claimed", true.into()),
            Self::From(who) => ("from", owner(who)),
            Self::NotFrom(who) => ("notFrom", owner(who)),
            Self::Port(transport, port) => ("port", format!("{}/{port}", word(*transport)).into()),
        }
    }
}

/// Groups `rules` by family; a family without rules is left out.
pub fn by_family(rules: &[Rule]) -> Vec<(Family, Vec<&Rule>)> {
    Family::ALL
        .into_iter()
        .map(|family| (family, of_family(rules, family)))
        .filter(|(_, rules)| !rules.is_empty())
        .collect()
}

/// Lists the rules of one family.
pub fn of_family(rules: &[Rule], family: Family) -> Vec<&Rule> {
    rules.iter().filter(|rule| rule.family == family).collect()
}

/// Lists the chains that hold `rules`, each once: our own first, because the hooks' rules jump to
/// them.
pub fn chains(rules: &[&Rule]) -> Vec<Chain> {
    let mut seen: Vec<Chain> = own_chains(rules);
    for rule in rules {
        if !seen.contains(&rule.chain) {
            seen.push(rule.chain);
        }
    }
    seen
}

/// Lists our own chains that hold `rules`, each once.
pub fn own_chains(rules: &[&Rule]) -> Vec<Chain> {
    let mut seen = Vec::new();
    for rule in rules {
        if !rule.chain.is_hook() && !seen.contains(&rule.chain) {
            seen.push(rule.chain);
        }
    }
    seen
}
