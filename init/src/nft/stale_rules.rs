//! Rules of ours in tables of nf_tables that are not our own, read and taken away without a
//! program: those of the nft flavour of iptables, and the table of the original image.
//!
//! That flavour creates the table `nat` and the hook chains it needs and never deletes them. To
//! give the namespace back exactly as it was, the iptables backend leaves a *mark*: an empty chain
//! whose name says what was created.

use rustix::io::Errno;

use super::attribute::{
    CHAIN_NAME, CHAIN_TABLE, DELETE_CHAIN, DELETE_RULE, DELETE_TABLE, RULE_CHAIN, RULE_HANDLE,
    TABLE_NAME,
};
use super::batch::{Batch, Refused, of, open, unanswered};
use super::expr;
use super::listing::{self, ListedChain, ListedRule};
use crate::failure::Failure;
use crate::ours::{self, MARK, is_own_chain};
use crate::rule::{Chain, Family};

const TABLE: &str = "nat";
/// Table of original images from 2.31 on, in one family or for both.
pub(crate) const ORIGINAL_TABLE: &str = "telepresence";
const MAX_ATTEMPTS: usize = 50;
/// ERESTART: the rules are not those that were read.
const CHANGED_MEANWHILE: Errno = Errno::from_raw_os_error(85);
const HOOKS: [(char, Chain); 2] = [('P', Chain::Prerouting), ('O', Chain::Output)];

/// Mark to leave for a run of the nft flavour that starts from the tables as they are, when it
/// will create anything.
pub(crate) fn mark(family: Family) -> Result<Option<String>, Failure> {
    let socket = open()?;
    let has_table = listing::tables(&socket)?
        .iter()
        .any(|it| it.family == family.number() && it.name == TABLE);
    let chains = listing::chains(&socket)?;
    let chains: Vec<_> = chains.iter().filter(|it| is_in_nat(it, family)).collect();
    // An earlier run's mark tells what was there before us; a new one would take our own tables
    // for the pod's.
    if let Some(earlier) = chains.iter().find(|it| ours::is_mark(&it.name)) {
        return Ok(Some(earlier.name.clone()));
    }
    let mut created = String::new();
    if !has_table {
        created.push('T');
    }
    for (letter, chain) in HOOKS {
        if chains.iter().all(|it| it.name != chain.name()) {
            created.push(letter);
        }
    }
    Ok((!created.is_empty()).then(|| format!("{MARK}{created}")))
}

/// True when the family's `nat` table holds a chain of ours.
pub(crate) fn has_ours(family: Family) -> Result<bool, Failure> {
    let socket = open()?;
    let chains = listing::chains(&socket)?;
    let ours = |it: &ListedChain| is_in_nat(it, family) && is_own_chain(&it.name);
    Ok(chains.iter().any(ours))
}

fn is_in_nat(chain: &ListedChain, family: Family) -> bool {
    chain.family == family.number() && chain.table == TABLE
}

/// Takes our chains and rules out of the `nat` tables of both families, what was created for them,
/// and the original's table. Says whether there were any.
///
/// One transaction, tied to what was read: when somebody else changed the tables meanwhile, it is
/// made again.
pub(crate) fn remove() -> Result<bool, Failure> {
    take(&Family::ALL, true)
}

/// Takes our chains and rules out of the `nat` table of one family.
pub(crate) fn remove_from(family: Family) -> Result<bool, Failure> {
    take(&[family], false)
}

/// Takes the original's table away.
pub(crate) fn remove_original() -> Result<bool, Failure> {
    take(&[], true)
}

fn take(families: &[Family], original: bool) -> Result<bool, Failure> {
    let socket = open()?;
    for _ in 0..MAX_ATTEMPTS {
        // Read before the rules: a change from here on makes the kernel refuse the transaction.
        let generation = listing::generation(&socket)?;
        let chains = listing::chains(&socket)?;
        let mut batch = Batch::default();
        for family in families {
            if chains
                .iter()
                .any(|it| is_in_nat(it, *family) && is_own_chain(&it.name))
            {
                let table = (family.number(), TABLE);
                let rules = listing::rules(&socket, Some(table))?;
                take_away(&mut batch, *family, &chains, &rules);
            }
        }
        if original {
            take_original_table_away(&mut batch, &chains);
        }
        if batch.is_empty() {
            return Ok(false);
        }
        match batch.commit(&socket, generation) {
            Err(refused) if refused.errno == CHANGED_MEANWHILE => {}
            Err(refused) => return Err(refused.into()),
            Ok(()) => return Ok(true),
        }
    }
    let what = "the removal of our chains, which others kept changing";
    Err(Refused::into(unanswered(what, Errno::AGAIN)))
}

/// The original's table holds chains that translate addresses; any other table of that name is not
/// its.
fn take_original_table_away(batch: &mut Batch, chains: &[ListedChain]) {
    let mut families: Vec<u8> = chains
        .iter()
        .filter(|it| it.table == ORIGINAL_TABLE && it.kind == "nat")
        .map(|it| it.family)
        .collect();
    // The listing has a table's chains one behind the other.
    families.dedup();
    for family in families {
        let table = of(family).text(TABLE_NAME, ORIGINAL_TABLE);
        let what = format!("table {ORIGINAL_TABLE} of the original image");
        batch.delete(DELETE_TABLE, table, what);
    }
}

fn take_away(batch: &mut Batch, family: Family, chains: &[ListedChain], rules: &[ListedRule]) {
    let number = family.number();
    let chain = |name: &str| of(number).text(CHAIN_TABLE, TABLE).text(CHAIN_NAME, name);
    let rules_of = |name: &str| of(number).text(CHAIN_TABLE, TABLE).text(RULE_CHAIN, name);
    let word = |what: &str, name: &str| format!("{what} {} {TABLE} {name}", family.nft());
    let chains: Vec<_> = chains.iter().filter(|it| is_in_nat(it, family)).collect();
    let seen = |rule: &ListedRule| expr::seen(&rule.chain, &rule.expressions);
    let flags = ours::ours(&rules.iter().map(seen).collect::<Vec<_>>());

    // Jumps first, then rules, then chains: the kernel refuses to delete a chain that something
    // refers to.
    for (rule, ours) in rules.iter().zip(&flags) {
        if *ours && !is_own_chain(&rule.chain) {
            let body = rules_of(&rule.chain).bytes(RULE_HANDLE, &rule.handle);
            batch.delete(DELETE_RULE, body, word("our rule in", &rule.chain));
        }
    }
    for it in chains.iter().filter(|it| is_own_chain(&it.name)) {
        if rules.iter().any(|rule| rule.chain == it.name) {
            let what = word("the rules of chain", &it.name);
            batch.delete(DELETE_RULE, rules_of(&it.name), what);
        }
    }
    for it in chains.iter().filter(|it| is_own_chain(&it.name)) {
        batch.delete(DELETE_CHAIN, chain(&it.name), word("chain", &it.name));
    }

    let mark = chains
        .iter()
        .find_map(|it| it.name.strip_prefix(MARK))
        .unwrap_or_default();
    let mut left = chains.iter().filter(|it| !is_own_chain(&it.name)).count();
    for (_, hook) in HOOKS.iter().filter(|(letter, _)| mark.contains(*letter)) {
        let used = |(rule, ours): (&ListedRule, &bool)| rule.chain == hook.name() && !*ours;
        // Somebody has put rules of their own into a chain that was created for ours.
        let in_use = rules.iter().zip(&flags).any(used);
        if !in_use && chains.iter().any(|it| it.name == hook.name()) {
            batch.delete(DELETE_CHAIN, chain(hook.name()), word("chain", hook.name()));
            left -= 1;
        }
    }
    // Others may have come to use a table that we created.
    if mark.contains('T') && left == 0 {
        let table = of(number).text(TABLE_NAME, TABLE);
        batch.delete(DELETE_TABLE, table, word("table", ""));
    }
}
