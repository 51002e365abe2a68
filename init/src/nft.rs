//! The backend without a program: rules go to the kernel's nf_tables in one netlink transaction.
//!
//! Our own table in each family, replaced as a whole, so that twice equals once and a kill leaves
//! all or nothing. Nothing of ours stands in anybody else's table: a mesh's stays byte for byte as
//! it was. The order against a mesh is by hook priority: inbound just behind its `-100`, outbound
//! just before it.

pub(crate) mod attribute;
pub(crate) mod batch;
pub mod expr;
pub(crate) mod hook;
pub(crate) mod listing;
pub mod stale_rules;

use rustix::io::Errno;

use crate::netlink::{APPEND, Attributes, CREATE, Socket};
use crate::rule::{Action, Chain, Family, Rule, by_family, chains};
use attribute::{
    CHAIN_HOOK, CHAIN_NAME, CHAIN_TABLE, CHAIN_TYPE, DELETE_TABLE, HOOK_NUMBER, HOOK_PRIORITY,
    NEW_CHAIN, NEW_RULE, NEW_TABLE, RULE_CHAIN, RULE_EXPRESSIONS, RULE_TABLE, RULE_USERDATA,
    TABLE_NAME,
};
pub use batch::Refused;
use batch::{Batch, of, open};
use hook::{hook, hook_number};
use listing::{has_table, list_chains, list_rules};

/// Name of our table, in each family that has rules.
pub const TABLE: &str = "tel_agent";

/// Length of a comment that `nft list` shows, with its closing zero: kind 0 in the rule's user
/// data.
const MAX_COMMENT: usize = 127;

/// Puts `rules` into force, in place of whatever our tables held: one transaction over both
/// families.
///
/// Errors: the kernel's word on the first message it refused. Nothing changed then.
pub fn apply(rules: &[Rule]) -> Result<(), Refused> {
    match commit(rules, true) {
        // A kernel without counters is no reason to give up: they are for people only.
        Err(failure) if failure.errno == Errno::NOENT => commit(rules, false),
        done => done,
    }
}

fn commit(rules: &[Rule], counters: bool) -> Result<(), Refused> {
    let socket = open()?;
    let mut batch = Batch::default();
    let wanted = by_family(rules);
    for family in Family::ALL {
        let rules = wanted
            .iter()
            .find(|(it, _)| *it == family)
            .map(|(_, rules)| rules);
        if rules.is_none() && !has_table(&socket, family, TABLE)? {
            continue;
        }
        // Adding first makes the deletion always possible.
        add_table(&mut batch, family);
        batch.delete(
            DELETE_TABLE,
            of(family).text(TABLE_NAME, TABLE),
            format!("table {} {TABLE}", family.nft()),
        );
        if let Some(rules) = rules {
            add_table(&mut batch, family);
            add_chains(&mut batch, family, rules);
            for rule in rules {
                add_rule(&mut batch, rule, counters);
            }
        }
    }
    if batch.is_empty() {
        Ok(())
    } else {
        batch.commit(&socket, None)
    }
}

fn add_table(batch: &mut Batch, family: Family) {
    let option = match family {
        Family::V4 => "CONFIG_NF_TABLES_IPV4 (module nf_tables)",
        Family::V6 => "CONFIG_NF_TABLES_IPV6 (module nf_tables)",
    };
    batch.add(
        NEW_TABLE,
        CREATE,
        of(family).text(TABLE_NAME, TABLE),
        format!("table {} {TABLE}", family.nft()),
        Some(option),
    );
}

fn add_chains(batch: &mut Batch, family: Family, rules: &[&Rule]) {
    for chain in chains(rules) {
        let mut body = of(family)
            .text(CHAIN_TABLE, TABLE)
            .text(CHAIN_NAME, chain.name());
        if let Some((_, priority)) = hook(chain) {
            let hook = Attributes::default()
                .be32(HOOK_NUMBER, hook_number(chain))
                .be32(HOOK_PRIORITY, priority.cast_unsigned());
            body = body.nest(CHAIN_HOOK, hook).text(CHAIN_TYPE, "nat");
        }
        let what = format!("chain {} {TABLE} {}", family.nft(), chain.name());
        let option = chain
            .is_hook()
            .then_some("CONFIG_NFT_NAT (module nft_chain_nat)");
        batch.add(NEW_CHAIN, CREATE, body, what, option);
    }
}

fn add_rule(batch: &mut Batch, rule: &Rule, counters: bool) {
    let list = expr::encode(&expr::expressions(rule, counters));
    let body = of(rule.family)
        .text(RULE_TABLE, TABLE)
        .text(RULE_CHAIN, rule.chain.name())
        .nest(RULE_EXPRESSIONS, list)
        .bytes(RULE_USERDATA, &comment(rule));
    let option = match rule.then {
        Action::Redirect(_) => Some("CONFIG_NFT_REDIR (module nft_redir)"),
        Action::Translate(_) | Action::LeaveAlone => Some("CONFIG_NFT_NAT (module nft_nat)"),
        Action::Jump(_) => None,
    };
    batch.add(
        NEW_RULE,
        CREATE | APPEND,
        body,
        format!("rule {rule}"),
        option,
    );
}

/// Comment for readers of `nft list`.
fn comment(rule: &Rule) -> Vec<u8> {
    let words = match rule.then {
        Action::Jump(Chain::Bypass) => "the agent's own traffic",
        Action::Jump(_) => "to the agent's ports",
        Action::Redirect(_) => "the app's callers reach the agent",
        Action::Translate(_) => "the agent reaches the app",
        Action::LeaveAlone => "no mesh captures it",
    };
    debug_assert!(words.len() < MAX_COMMENT, "nft shows no longer comment");
    let mut bytes = vec![0, u8::try_from(words.len() + 1).unwrap_or(0)];
    bytes.extend_from_slice(words.as_bytes());
    bytes.push(0);
    bytes
}

/// Takes our tables away. Says whether there was one.
pub fn remove() -> Result<bool, Refused> {
    let socket = open()?;
    let mut batch = Batch::default();
    for family in Family::ALL {
        if has_table(&socket, family, TABLE)? {
            add_table(&mut batch, family);
            batch.delete(
                DELETE_TABLE,
                of(family).text(TABLE_NAME, TABLE),
                format!("table {} {TABLE}", family.nft()),
            );
        }
    }
    if batch.is_empty() {
        return Ok(false);
    }
    batch.commit(&socket, None).map(|()| true)
}

/// Compares `rules` with what is in force: a line for each that is missing or not wanted.
pub fn differences(rules: &[Rule]) -> Result<Vec<String>, Refused> {
    let socket = open()?;
    let mut lines = Vec::new();
    let wanted = by_family(rules);
    for family in Family::ALL {
        let rules = wanted
            .iter()
            .find(|(it, _)| *it == family)
            .map_or(&[][..], |(_, rules)| rules);
        let table = format!("table {} {TABLE}", family.nft());
        match (has_table(&socket, family, TABLE)?, rules.is_empty()) {
            (false, true) => {}
            (false, false) => {
                lines.push(format!("missing: {table}"));
                lines.extend(rules.iter().map(|rule| format!("missing: rule {rule}")));
            }
            (true, true) => lines.push(format!("not wanted: {table}")),
            (true, false) => lines.extend(table_differences(&socket, family, rules)?),
        }
    }
    Ok(lines)
}

fn table_differences(
    socket: &Socket,
    family: Family,
    rules: &[&Rule],
) -> Result<Vec<String>, Refused> {
    let mut lines = Vec::new();
    let listed_chains = list_chains(socket, family, TABLE)?;
    let listed_rules = list_rules(socket, family, TABLE)?;
    let wanted = chains(rules);
    for chain in &wanted {
        let place = hook(*chain).map(|(_, priority)| (hook_number(*chain), priority));
        if !listed_chains
            .iter()
            .any(|it| it.name == chain.name() && it.hook == place)
        {
            lines.push(format!(
                "missing: chain {} {TABLE} {}",
                family.nft(),
                chain.name()
            ));
        }
        let ours: Vec<_> = rules.iter().filter(|rule| rule.chain == *chain).collect();
        let theirs: Vec<_> = listed_rules
            .iter()
            .filter(|rule| rule.chain == chain.name())
            .collect();
        for (at, rule) in ours.iter().enumerate() {
            if !theirs
                .get(at)
                .is_some_and(|it| expr::is_in_force(rule, &it.expressions))
            {
                lines.push(format!("missing: rule {rule}"));
            }
        }
        for _ in ours.len()..theirs.len() {
            lines.push(format!(
                "not wanted: a rule at the end of {} {TABLE} {}",
                family.nft(),
                chain.name()
            ));
        }
    }
    for other in listed_chains
        .iter()
        .filter(|it| wanted.iter().all(|chain| chain.name() != it.name))
    {
        lines.push(format!(
            "not wanted: chain {} {TABLE} {}",
            family.nft(),
            other.name
        ));
    }
    Ok(lines)
}
