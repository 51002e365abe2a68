//! Reading tables, chains and rules of nf_tables.

use super::attribute::{
    CHAIN_HOOK, CHAIN_NAME, CHAIN_TABLE, CHAIN_TYPE, GENERATION_ID, GET_CHAIN, GET_GENERATION,
    GET_RULE, GET_TABLE, HOOK_NUMBER, HOOK_PRIORITY, RULE_CHAIN, RULE_EXPRESSIONS, RULE_HANDLE,
    RULE_TABLE, TABLE_FLAGS, TABLE_NAME,
};
use super::batch::{Refused, of, unanswered};
use super::expr::{self, Expression};
use crate::netlink::{Socket, find, find_be32, find_text};

/// `NFT_TABLE_F_DORMANT`.
const DORMANT: u32 = 1;
/// Number that stands for all families.
const ALL: u8 = 0;

/// Table as the kernel lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ListedTable {
    /// Number of the family; tables of both families have one of their own.
    pub(crate) family: u8,
    pub(crate) name: String,
    /// True when the kernel leaves its chains out.
    pub(crate) dormant: bool,
}

/// Chain as the kernel lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ListedChain {
    pub(crate) family: u8,
    pub(crate) table: String,
    pub(crate) name: String,
    /// Such as `nat`, when the kernel calls it.
    pub(crate) kind: String,
    /// Hook number and priority, when the kernel calls it.
    pub(crate) hook: Option<(u32, i32)>,
}

/// Rule as the kernel lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ListedRule {
    pub(crate) family: u8,
    pub(crate) table: String,
    pub(crate) chain: String,
    pub(crate) handle: Vec<u8>,
    pub(crate) expressions: Vec<Expression>,
}

/// Number of the present state of the rules.
pub(crate) fn generation(socket: &Socket) -> Result<Option<u32>, Refused> {
    let answer = socket.ask(GET_GENERATION, &of(ALL));
    answer
        .map(|body| find_be32(rest(&body), GENERATION_ID))
        .map_err(|errno| unanswered("the generation of the rules", errno))
}

/// Lists all tables.
pub(crate) fn tables(socket: &Socket) -> Result<Vec<ListedTable>, Refused> {
    let bodies = socket
        .dump(GET_TABLE, &of(ALL))
        .map_err(|errno| unanswered("the list of tables", errno))?;
    let tables = bodies.iter().map(|body| ListedTable {
        family: family(body),
        name: text(rest(body), TABLE_NAME),
        dormant: find_be32(rest(body), TABLE_FLAGS).unwrap_or(0) & DORMANT != 0,
    });
    Ok(tables.collect())
}

/// Lists all chains.
pub(crate) fn chains(socket: &Socket) -> Result<Vec<ListedChain>, Refused> {
    let bodies = socket
        .dump(GET_CHAIN, &of(ALL))
        .map_err(|errno| unanswered("the list of chains", errno))?;
    let chains = bodies.iter().map(|body| {
        let it = rest(body);
        let place = |hook| {
            Some((
                find_be32(hook, HOOK_NUMBER)?,
                find_be32(hook, HOOK_PRIORITY)?.cast_signed(),
            ))
        };
        ListedChain {
            family: family(body),
            table: text(it, CHAIN_TABLE),
            name: text(it, CHAIN_NAME),
            kind: text(it, CHAIN_TYPE),
            hook: find(it, CHAIN_HOOK).and_then(place),
        }
    });
    Ok(chains.collect())
}

/// Lists the rules of one table, given by the number of its family and its name, or all rules.
pub(crate) fn rules(
    socket: &Socket,
    table: Option<(u8, &str)>,
) -> Result<Vec<ListedRule>, Refused> {
    // Asked for a name in all families, the kernel stops at the first.
    let question = match table {
        Some((family, table)) => of(family).text(RULE_TABLE, table),
        None => of(ALL),
    };
    let bodies = socket
        .dump(GET_RULE, &question)
        .map_err(|errno| unanswered("the list of rules", errno))?;
    let rules = bodies.iter().map(|body| {
        let it = rest(body);
        ListedRule {
            family: family(body),
            table: text(it, RULE_TABLE),
            chain: text(it, RULE_CHAIN),
            handle: find(it, RULE_HANDLE).unwrap_or_default().to_vec(),
            expressions: expr::decode(find(it, RULE_EXPRESSIONS).unwrap_or_default()),
        }
    });
    // A kernel that does not know the question's filter gives all.
    Ok(rules
        .filter(|rule| table.is_none_or(|it| it == (rule.family, rule.table.as_str())))
        .collect())
}

fn family(body: &[u8]) -> u8 {
    body.first().copied().unwrap_or(0)
}

fn text(attributes: &[u8], kind: u16) -> String {
    find_text(attributes, kind).unwrap_or_default().to_owned()
}

/// Attributes of a message of netfilter.
pub(crate) fn rest(body: &[u8]) -> &[u8] {
    body.get(4..).unwrap_or_default()
}
