//! Reading tables, chains and rules of nf_tables.

use super::attribute::{
    CHAIN_HOOK, CHAIN_NAME, CHAIN_TABLE, GET_CHAIN, GET_RULE, GET_TABLE, HOOK_NUMBER,
    HOOK_PRIORITY, RULE_CHAIN, RULE_EXPRESSIONS, RULE_HANDLE, RULE_TABLE, TABLE_NAME,
};
use super::batch::{Refused, of, whole};
use super::expr::{self, Expression};
use crate::netlink::{Socket, find, find_be32, find_text};
use crate::rule::Family;

/// Chain as the kernel lists it.
pub(crate) struct ListedChain {
    pub(crate) name: String,
    /// Hook number and priority, when the kernel calls it.
    pub(crate) hook: Option<(u32, i32)>,
}

/// Rule as the kernel lists it.
pub(crate) struct ListedRule {
    pub(crate) chain: String,
    pub(crate) handle: Vec<u8>,
    pub(crate) expressions: Vec<Expression>,
}

/// True when the family has a table of this name.
pub(crate) fn has_table(socket: &Socket, family: Family, name: &str) -> Result<bool, Refused> {
    let tables = socket
        .dump(GET_TABLE, &of(family))
        .map_err(|errno| whole("the list of tables", errno))?;
    Ok(tables.iter().any(|it| {
        it.first() == Some(&family.number()) && find_text(rest(it), TABLE_NAME) == Some(name)
    }))
}

/// Lists the chains of a table, none when there is no such table.
pub(crate) fn list_chains(
    socket: &Socket,
    family: Family,
    table: &str,
) -> Result<Vec<ListedChain>, Refused> {
    let chains = socket
        .dump(GET_CHAIN, &of(family))
        .map_err(|errno| whole("the list of chains", errno))?;
    let chains = chains
        .iter()
        .map(|it| rest(it))
        .filter(|it| find_text(it, CHAIN_TABLE) == Some(table));
    Ok(chains
        .map(|it| ListedChain {
            name: find_text(it, CHAIN_NAME).unwrap_or_default().to_owned(),
            hook: find(it, CHAIN_HOOK).and_then(|hook| {
                Some((
                    find_be32(hook, HOOK_NUMBER)?,
                    find_be32(hook, HOOK_PRIORITY)?.cast_signed(),
                ))
            }),
        })
        .collect())
}

/// Lists the rules of a table, none when there is no such table.
pub(crate) fn list_rules(
    socket: &Socket,
    family: Family,
    table: &str,
) -> Result<Vec<ListedRule>, Refused> {
    let rules = socket
        .dump(GET_RULE, &of(family).text(RULE_TABLE, table))
        .map_err(|errno| whole("the list of rules", errno))?;
    let rules = rules
        .iter()
        .map(|it| rest(it))
        .filter(|it| find_text(it, RULE_TABLE) == Some(table));
    Ok(rules
        .map(|it| ListedRule {
            chain: find_text(it, RULE_CHAIN).unwrap_or_default().to_owned(),
            handle: find(it, RULE_HANDLE).unwrap_or_default().to_vec(),
            expressions: expr::decode(find(it, RULE_EXPRESSIONS).unwrap_or_default()),
        })
        .collect())
}

/// Attributes of an nf_tables message.
pub(crate) fn rest(body: &[u8]) -> &[u8] {
    body.get(4..).unwrap_or_default()
}
