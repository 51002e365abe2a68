//! The backend without a program: rules go to the kernel's nf_tables in one netlink transaction.
//!
//! Our own table in each family, replaced as a whole, so that twice equals once and a kill leaves
//! all or nothing. Nothing of ours stands in anybody else's table: a mesh's stays byte for byte as
//! it was. The order against a mesh is by hook priority: inbound just behind its `-100`, outbound
//! just before it.

pub(crate) mod attribute;
pub(crate) mod batch;
pub(crate) mod expr;
pub(crate) mod hook;
pub(crate) mod listing;
pub(crate) mod others;
pub(crate) mod stale_rules;

use rustix::io::Errno;

use crate::failure::Failure;
use crate::netlink::{APPEND, Attributes, CREATE, Socket};
use crate::rule::{Action, Chain, Family, Rule, Test, chains, of_family};
use attribute::{
    CHAIN_HOOK, CHAIN_NAME, CHAIN_TABLE, CHAIN_TYPE, DELETE_TABLE, HOOK_NUMBER, HOOK_PRIORITY,
    NEW_CHAIN, NEW_RULE, NEW_TABLE, RULE_CHAIN, RULE_EXPRESSIONS, RULE_TABLE, RULE_USERDATA,
    TABLE_NAME,
};
use batch::{Batch, Refused, of, open};
use hook::{TABLE, hook, hook_number};
use listing::{ListedChain, ListedRule, ListedTable};

/// Length of a comment that `nft list` shows, with its closing zero: kind 0 in the rule's user
/// data.
const MAX_COMMENT: usize = 127;

/// Puts `rules` into force, in place of whatever our tables held: one transaction over both
/// families. Says whether anything had to change.
///
/// Errors: the kernel's word on the first message it refused. Nothing changed then.
pub fn apply(rules: &[Rule]) -> Result<bool, Failure> {
    match commit(rules, true) {
        // A kernel without counters is no reason to give up: they are for people only.
        Err(refused) if refused.errno == Errno::NOENT => Ok(commit(rules, false)?),
        done => Ok(done?),
    }
}

fn commit(rules: &[Rule], counters: bool) -> Result<bool, Refused> {
    let socket = open()?;
    let tables = own_tables(&socket)?;
    // A deletion makes the kernel wait for all processors, which takes longer than all the rest.
    if !tables.is_empty() && compare(&socket, &tables, rules)?.is_empty() {
        return Ok(false);
    }
    let mut batch = Batch::default();
    for family in Family::ALL {
        if tables.iter().any(|it| it.family == family.number()) {
            delete_table(&mut batch, family);
        }
        let rules = of_family(rules, family);
        if !rules.is_empty() {
            add_table(&mut batch, family);
            add_chains(&mut batch, family, &rules);
            for rule in rules {
                add_rule(&mut batch, rule, counters);
            }
        }
    }
    if batch.is_empty() {
        return Ok(false);
    }
    batch.commit(&socket, None).map(|()| true)
}

fn own_tables(socket: &Socket) -> Result<Vec<ListedTable>, Refused> {
    let mut tables = listing::tables(socket)?;
    let ours = |table: &ListedTable| {
        let families = Family::ALL.map(Family::number);
        table.name == TABLE && families.contains(&table.family)
    };
    tables.retain(ours);
    Ok(tables)
}

fn table_name(family: Family) -> String {
    format!("table {} {TABLE}", family.nft())
}

/// Adding first makes the deletion always possible.
fn delete_table(batch: &mut Batch, family: Family) {
    add_table(batch, family);
    let body = of(family.number()).text(TABLE_NAME, TABLE);
    batch.delete(DELETE_TABLE, body, table_name(family));
}

fn add_table(batch: &mut Batch, family: Family) {
    let option = match family {
        Family::V4 => "CONFIG_NF_TABLES_IPV4 (module nf_tables)",
        Family::V6 => "CONFIG_NF_TABLES_IPV6 (module nf_tables)",
    };
    batch.add(
        NEW_TABLE,
        CREATE,
        of(family.number()).text(TABLE_NAME, TABLE),
        table_name(family),
        Some(option),
    );
}

fn add_chains(batch: &mut Batch, family: Family, rules: &[&Rule]) {
    for chain in chains(rules) {
        let mut body = of(family.number())
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
    let body = of(rule.family.number())
        .text(RULE_TABLE, TABLE)
        .text(RULE_CHAIN, rule.chain.name())
        .nest(RULE_EXPRESSIONS, list)
        .bytes(RULE_USERDATA, &comment(rule));
    let option = match rule.then {
        _ if rule.when.contains(&Test::Local) => Some("CONFIG_NFT_FIB (module nft_fib)"),
        _ if rule.when.contains(&Test::Claimed) => Some("CONFIG_NFT_SOCKET (module nft_socket)"),
        Action::Redirect(_) => Some("CONFIG_NFT_REDIR (module nft_redir)"),
        Action::Translate(_) | Action::LeaveAlone => Some("CONFIG_NFT_NAT (module nft_nat)"),
        Action::Jump(_) | Action::Return => None,
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
        Action::Return if rule.when.contains(&Test::Claimed) => "the mesh has taken it",
        Action::Return if rule.chain == Chain::Bypass => "through the mesh",
        Action::Return => "excluded",
        Action::Jump(Chain::Bypass) => "the agent's own traffic",
        Action::Jump(_) => "to the agent's ports",
        Action::Redirect(_) => "the app's callers reach the agent",
        Action::Translate(_) => "pod to pod: callers to the agent, the agent to the app",
        Action::LeaveAlone => "no mesh captures it",
    };
    debug_assert!(words.len() < MAX_COMMENT, "nft shows no longer comment");
    let mut bytes = vec![0, u8::try_from(words.len() + 1).unwrap_or(0)];
    bytes.extend_from_slice(words.as_bytes());
    bytes.push(0);
    bytes
}

/// Takes our tables away. Says whether there was one.
pub fn remove() -> Result<bool, Failure> {
    let socket = open()?;
    let mut batch = Batch::default();
    let tables = own_tables(&socket)?;
    for family in Family::ALL {
        if tables.iter().any(|it| it.family == family.number()) {
            delete_table(&mut batch, family);
        }
    }
    if batch.is_empty() {
        return Ok(false);
    }
    batch.commit(&socket, None)?;
    Ok(true)
}

/// Compares `rules` with what is in force: a line for each that is missing or not wanted.
pub fn differences(rules: &[Rule]) -> Result<Vec<String>, Failure> {
    let socket = open()?;
    let tables = own_tables(&socket)?;
    Ok(compare(&socket, &tables, rules)?)
}

fn compare(
    socket: &Socket,
    tables: &[ListedTable],
    rules: &[Rule],
) -> Result<Vec<String>, Refused> {
    let listed_chains = if tables.is_empty() {
        Vec::new()
    } else {
        listing::chains(socket)?
    };
    let mut lines = Vec::new();
    for family in Family::ALL {
        let number = family.number();
        let rules = of_family(rules, family);
        let table = table_name(family);
        match tables.iter().find(|it| it.family == number) {
            None => {
                if !rules.is_empty() {
                    lines.push(format!("missing: {table}"));
                }
                lines.extend(rules.iter().map(|rule| format!("missing: rule {rule}")));
            }
            Some(_) if rules.is_empty() => lines.push(format!("not wanted: {table}")),
            Some(listed_table) => {
                if listed_table.dormant {
                    lines.push(format!("dormant: {table}"));
                }
                let ours = |chain: &&ListedChain| chain.family == number && chain.table == TABLE;
                let chains: Vec<_> = listed_chains.iter().filter(ours).collect();
                let listed = listing::rules(socket, Some((number, TABLE)))?;
                lines.extend(table_differences(family, &chains, &listed, &rules));
            }
        }
    }
    Ok(lines)
}

fn table_differences(
    family: Family,
    listed_chains: &[&ListedChain],
    listed_rules: &[ListedRule],
    rules: &[&Rule],
) -> Vec<String> {
    let mut lines = Vec::new();
    let wanted = chains(rules);
    let chain_name = |name: &str| format!("chain {} {TABLE} {name}", family.nft());
    for chain in &wanted {
        let place = hook(*chain).map(|(_, priority)| (hook_number(*chain), priority));
        let same = |it: &&&ListedChain| it.name == chain.name() && it.hook == place;
        if !listed_chains.iter().any(|it| same(&it)) {
            lines.push(format!("missing: {}", chain_name(chain.name())));
        }
        let ours: Vec<_> = rules.iter().filter(|rule| rule.chain == *chain).collect();
        let theirs: Vec<_> = listed_rules
            .iter()
            .filter(|rule| rule.chain == chain.name())
            .collect();
        for (at, rule) in ours.iter().enumerate() {
            let in_force = |it: &&ListedRule| expr::is_in_force(rule, &it.expressions);
            if !theirs.get(at).is_some_and(in_force) {
                lines.push(format!("missing: rule {rule}"));
            }
        }
        for _ in ours.len()..theirs.len() {
            let name = chain_name(chain.name());
            lines.push(format!("not wanted: a rule at the end of {name}"));
        }
    }
    for other in listed_chains {
        if wanted.iter().all(|chain| chain.name() != other.name) {
            lines.push(format!("not wanted: {}", chain_name(&other.name)));
        }
    }
    lines
}
