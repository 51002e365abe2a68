//! Chains of others in nf_tables that translate addresses: a mesh's, or any that could hide ours.

use super::batch::{Refused, open};
use super::expr;
use super::hook::TABLE;
use super::listing::{self, ListedChain, ListedRule};
use super::stale_rules::ORIGINAL_TABLE;
use crate::failure::Failure;
use crate::ours;

/// Table in which the nft flavour of iptables keeps its rules.
const IPTABLES_TABLE: &str = "nat";

/// Chain of others that the kernel calls to translate addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OtherChain {
    /// Family, table and name, as `nft` writes them.
    pub name: String,
    /// True when the nft flavour of iptables keeps it.
    pub of_iptables: bool,
    /// True for packets that the pod sends, false for those that arrive.
    pub output: bool,
    /// Priority; the lowest is called first.
    pub priority: i32,
}

/// Rules of others, as far as they matter for ours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Others {
    /// Chains that hold rules of others.
    pub chains: Vec<OtherChain>,
    /// True when a rule assigns packets to a transparent proxy.
    pub has_transparent_proxy: bool,
    /// True when the rules are those of a node: kube-proxy's.
    pub has_kube_proxy: bool,
}

/// Reads the chains of others. A kernel without nf_tables has none.
pub(crate) fn read() -> Result<Others, Failure> {
    match read_all() {
        Ok(others) => Ok(others),
        Err(refused) => match Failure::from(refused) {
            Failure::Absent(_) => Ok(Others::default()),
            failure => Err(failure),
        },
    }
}

fn read_all() -> Result<Others, Refused> {
    let socket = open()?;
    let chains = listing::chains(&socket)?;
    if chains.is_empty() {
        return Ok(Others::default());
    }
    let rules = listing::rules(&socket, None)?;
    let translating = chains.iter().filter(|chain| {
        chain.kind == "nat"
            && matches!(chain.hook, Some((0 | 3, _)))
            && ![TABLE, ORIGINAL_TABLE].contains(&chain.table.as_str())
            && holds_rules_of_others(chain, &rules)
    });
    let is_proxy = |rule: &ListedRule| expr::assigns_to_proxy(&rule.expressions);
    let of_node = |chain: &ListedChain| {
        chain.name.starts_with("KUBE-SERVICES") || chain.table == "kube-proxy"
    };
    Ok(Others {
        chains: translating.map(described).collect(),
        has_transparent_proxy: rules.iter().any(is_proxy),
        has_kube_proxy: chains.iter().any(of_node),
    })
}

fn holds_rules_of_others(chain: &ListedChain, rules: &[ListedRule]) -> bool {
    let same_table =
        |rule: &&ListedRule| (rule.family, &rule.table) == (chain.family, &chain.table);
    let rules: Vec<_> = rules.iter().filter(same_table).collect();
    let seen: Vec<_> = rules
        .iter()
        .map(|rule| expr::seen(&rule.chain, &rule.expressions))
        .collect();
    let flags = ours::ours(&seen);
    let foreign = |(seen, ours): (&ours::Seen, bool)| seen.chain == chain.name && !ours;
    seen.iter().zip(flags).any(foreign)
}

fn described(chain: &ListedChain) -> OtherChain {
    let family = match chain.family {
        1 => "inet",
        2 => "ip",
        10 => "ip6",
        _ => "",
    };
    let (hook, priority) = chain.hook.unwrap_or_default();
    OtherChain {
        name: format!("{family} {} {}", chain.table, chain.name),
        of_iptables: chain.table == IPTABLES_TABLE && family != "inet",
        output: hook == 3,
        priority,
    }
}
