//! Rules that are ours in tables that others use as well: those of this program and those that the
//! original image leaves. Pure.

use crate::rule::Owner;

/// Names of our chains; the last two are those of original images up to 2.19.
const CHAINS: [&str; 7] = [
    "TEL_PREROUTING_TCP",
    "TEL_PREROUTING_UDP",
    "TEL_OUTPUT_TCP",
    "TEL_OUTPUT_UDP",
    "TEL_MESH_BYPASS",
    "TEL_INBOUND_TCP",
    "TEL_INBOUND_UDP",
];

/// Prefix of a mark: an empty chain whose name says what the nft flavour of iptables created for
/// us.
pub const MARK: &str = "TEL_CREATED_";

/// True for the name of a chain of ours.
pub fn is_own_chain(name: &str) -> bool {
    CHAINS.contains(&name) || is_mark(name)
}

/// True for the name of a mark.
pub fn is_mark(name: &str) -> bool {
    name.strip_prefix(MARK)
        .is_some_and(|what| !what.is_empty() && what.chars().all(|it| "TPO".contains(it)))
}

/// A rule in such a table, as far as it matters for telling whose it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Chain that holds it.
    pub chain: String,
    /// Chain it jumps to.
    pub jump: Option<String>,
    /// Owner it tests for, as such or as the exception.
    pub owner: Option<Owner>,
    /// True when it leaves the chain for that owner, and tests for nothing else but transport and
    /// port.
    pub returns_owner: bool,
}

impl Seen {
    fn jumps_to_us(&self) -> bool {
        self.jump.as_deref().is_some_and(is_own_chain)
    }
}

/// Tells which of a table's rules are ours: what is in our chains, the jumps to them, and the last
/// rule of the original image, which lets the agent's traffic leave `OUTPUT` behind its jumps.
pub fn ours(rules: &[Seen]) -> Vec<bool> {
    let agents: Vec<Owner> = rules
        .iter()
        .filter(|rule| rule.chain == "OUTPUT" && rule.jumps_to_us())
        .filter_map(|rule| rule.owner)
        .collect();
    let mut behind_jumps = false;
    rules
        .iter()
        .map(|rule| {
            let in_output = rule.chain == "OUTPUT";
            behind_jumps |= in_output && rule.jumps_to_us();
            let lets_agent_go = in_output
                && behind_jumps
                && rule.returns_owner
                && rule.owner.is_some_and(|owner| agents.contains(&owner));
            is_own_chain(&rule.chain) || rule.jumps_to_us() || lets_agent_go
        })
        .collect()
}

/// Owner in the data of the owner match of iptables, and whether it is the exception.
///
/// Layout of `linux/netfilter/xt_owner.h`: lowest and highest user and group, flags, inverted
/// flags.
pub fn owner_in_match(data: &[u8]) -> Option<(Owner, bool)> {
    const UID: u8 = 1;
    const GID: u8 = 2;
    let number = |at: usize| Some(u32::from_ne_bytes(data.get(at..at + 4)?.try_into().ok()?));
    let (flags, inverted) = (*data.get(16)?, *data.get(17)?);
    let (first, last, owner): (u32, u32, fn(u32) -> Owner) = match flags {
        UID => (number(0)?, number(4)?, Owner::Uid),
        GID => (number(8)?, number(12)?, Owner::Gid),
        _ => return None,
    };
    (first == last).then(|| (owner(first), inverted & flags != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(chain: &str, jump: Option<&str>, uid: Option<u32>, returns_owner: bool) -> Seen {
        Seen {
            chain: chain.to_owned(),
            jump: jump.map(str::to_owned),
            owner: uid.map(Owner::Uid),
            returns_owner,
        }
    }

    #[test]
    fn the_originals_last_rule_is_ours_behind_its_jumps_only() {
        let jump = rule("OUTPUT", Some("TEL_OUTPUT_TCP"), Some(0), false);
        let agent_returns = rule("OUTPUT", None, Some(0), true);
        let mesh_returns = rule("OUTPUT", None, Some(1337), true);
        let elsewhere = rule("ISTIO_OUTPUT", None, Some(0), true);
        let all = [
            agent_returns.clone(),
            jump,
            mesh_returns,
            agent_returns,
            elsewhere,
        ];
        assert_eq!(ours(&all), [false, true, false, true, false]);
    }

    #[test]
    fn chains_are_known_by_their_whole_name() {
        for name in ["TEL_OUTPUT_TCP", "TEL_INBOUND_UDP", "TEL_CREATED_TPO"] {
            assert!(is_own_chain(name), "{name}");
        }
        for name in [
            "TEL_",
            "TEL_OUTPUT_TCP2",
            "TEL_CREATED_",
            "TEL_CREATED_X",
            "TELEMETRY",
        ] {
            assert!(!is_own_chain(name), "{name}");
        }
        assert_eq!(
            ours(&[rule("PREROUTING", Some("TELEMETRY"), None, false)]),
            [false]
        );
    }
}
