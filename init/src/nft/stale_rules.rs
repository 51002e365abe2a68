//! Our rules in the tables of the nft flavour of iptables, read and taken away without that program.
//!
//! That flavour creates the table `nat` and the hook chains it needs and never deletes them. To
//! give the namespace back exactly as it was, the iptables backend leaves a *mark*: an empty chain
//! whose name says what was created.

use rustix::io::Errno;

use super::attribute::{
    CHAIN_NAME, CHAIN_TABLE, DELETE_CHAIN, DELETE_RULE, DELETE_TABLE, GENERATION_ID,
    GET_GENERATION, RULE_CHAIN, RULE_HANDLE, TABLE_NAME,
};
use super::batch::{Batch, Refused, of, open, whole};
use super::expr;
use super::listing::{ListedChain, ListedRule, has_table, list_chains, list_rules, rest};
use crate::netlink::{Attributes, Socket, find_be32};
use crate::rule::{Chain, Family, PREFIX};

const TABLE: &str = "nat";
const MAX_ATTEMPTS: usize = 50;
/// ERESTART: the rules are not those that were read.
const CHANGED_MEANWHILE: Errno = Errno::from_raw_os_error(85);
const MARK: &str = "TEL_CREATED_";
const HOOKS: [(char, Chain); 2] = [('P', Chain::Prerouting), ('O', Chain::Output)];

/// Mark to leave for a run of the nft flavour that starts from the tables as they are, when it
/// will create anything.
pub fn mark(family: Family) -> Result<Option<String>, Refused> {
    let socket = open()?;
    let chains = list_chains(&socket, family, TABLE)?;
    if let Some(earlier) = chains.iter().find(|it| it.name.starts_with(MARK)) {
        return Ok(Some(earlier.name.clone()));
    }
    let mut created = String::new();
    if !has_table(&socket, family, TABLE)? {
        created.push('T');
    }
    for (letter, chain) in HOOKS {
        if chains.iter().all(|it| it.name != chain.name()) {
            created.push(letter);
        }
    }
    Ok((!created.is_empty()).then(|| format!("{MARK}{created}")))
}

/// True when `name` is a mark and not a chain with rules.
pub fn is_mark(name: &str) -> bool {
    name.starts_with(MARK)
}

/// Number of rules in the `nat` tables of the nft flavour: where others' rules are, ours belong.
pub fn rule_count() -> Result<usize, Refused> {
    let socket = open()?;
    Family::ALL
        .into_iter()
        .map(|family| list_rules(&socket, family, TABLE).map(|rules| rules.len()))
        .sum()
}

/// Takes our chains and jumps out of the family's `nat` table, and what was created for them. Says
/// whether there were any.
///
/// One transaction, tied to what was read: when somebody else changed the tables meanwhile, it is
/// made again.
pub fn remove_from(family: Family) -> Result<bool, Refused> {
    let socket = open()?;
    for _ in 0..MAX_ATTEMPTS {
        let generation = generation(&socket)?;
        let chains = list_chains(&socket, family, TABLE)?;
        if chains.iter().all(|it| !it.name.starts_with(PREFIX)) {
            return Ok(false);
        }
        let mut batch = Batch::default();
        take_away(
            &mut batch,
            family,
            &chains,
            &list_rules(&socket, family, TABLE)?,
        );
        match batch.commit(&socket, generation) {
            Err(refused) if refused.errno == CHANGED_MEANWHILE => {}
            done => return done.map(|()| true),
        }
    }
    Err(whole(
        "the removal of our chains, which others kept changing",
        Errno::AGAIN,
    ))
}

fn generation(socket: &Socket) -> Result<Option<u32>, Refused> {
    let answer = socket.ask(GET_GENERATION, &Attributes::default().fixed(&[0, 0, 0, 0]));
    answer
        .map(|body| find_be32(rest(&body), GENERATION_ID))
        .map_err(|errno| whole("the generation of the rules", errno))
}

fn take_away(batch: &mut Batch, family: Family, chains: &[ListedChain], rules: &[ListedRule]) {
    let chain = |name: &str| of(family).text(CHAIN_TABLE, TABLE).text(CHAIN_NAME, name);
    let rules_of = |name: &str| of(family).text(CHAIN_TABLE, TABLE).text(RULE_CHAIN, name);
    let ours = |name: &str| name.starts_with(PREFIX);
    let word = |what: &str, name: &str| format!("{what} {} {TABLE} {name}", family.nft());

    let jumps = |rule: &&ListedRule| {
        !ours(&rule.chain) && expr::jump_target(&rule.expressions).is_some_and(ours)
    };
    for jump in rules.iter().filter(jumps) {
        let body = rules_of(&jump.chain).bytes(RULE_HANDLE, &jump.handle);
        batch.delete(
            DELETE_RULE,
            body,
            word("the jump to our chain in", &jump.chain),
        );
    }
    for it in chains.iter().filter(|it| ours(&it.name)) {
        if rules.iter().any(|rule| rule.chain == it.name) {
            batch.delete(
                DELETE_RULE,
                rules_of(&it.name),
                word("the rules of chain", &it.name),
            );
        }
        batch.delete(DELETE_CHAIN, chain(&it.name), word("chain", &it.name));
    }

    let mark = chains
        .iter()
        .find_map(|it| it.name.strip_prefix(MARK))
        .unwrap_or_default();
    let mut left = chains.iter().filter(|it| !ours(&it.name)).count();
    for (_, hook) in HOOKS.iter().filter(|(letter, _)| mark.contains(*letter)) {
        let in_use = rules
            .iter()
            .any(|rule| rule.chain == hook.name() && !jumps(&rule));
        if !in_use && chains.iter().any(|it| it.name == hook.name()) {
            batch.delete(DELETE_CHAIN, chain(hook.name()), word("chain", hook.name()));
            left -= 1;
        }
    }
    if mark.contains('T') && left == 0 {
        let table = of(family).text(TABLE_NAME, TABLE);
        batch.delete(DELETE_TABLE, table, word("table", ""));
    }
}
