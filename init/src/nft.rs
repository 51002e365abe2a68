//! The backend without a program: rules go to the kernel's nf_tables in one netlink transaction.
//!
//! Our own table in each family, replaced as a whole, so that twice equals once and a kill leaves
//! all or nothing. Nothing of ours stands in anybody else's table: a mesh's stays byte for byte as
//! it was. The order against a mesh is by hook priority: inbound just behind its `-100`, outbound
//! just before it.

pub mod expr;
pub mod leftovers;

use rustix::io::Errno;
use rustix::net::netlink::NETFILTER;

use crate::netlink::{
    ACK, APPEND, Attributes, CREATE, REQUEST, Refusal, Socket, find, find_be32, find_text, message,
};
use crate::plan::{by_family, chains};
use crate::rule::{Action, Chain, Family, Rule};
use expr::Expression;

/// The name of our table, in each family that has rules.
pub const TABLE: &str = "tel_agent";

const SUBSYSTEM: u16 = 10 << 8;
const NEW_TABLE: u16 = SUBSYSTEM;
const GET_TABLE: u16 = SUBSYSTEM | 1;
const DELETE_TABLE: u16 = SUBSYSTEM | 2;
const NEW_CHAIN: u16 = SUBSYSTEM | 3;
const GET_CHAIN: u16 = SUBSYSTEM | 4;
const DELETE_CHAIN: u16 = SUBSYSTEM | 5;
const NEW_RULE: u16 = SUBSYSTEM | 6;
const GET_RULE: u16 = SUBSYSTEM | 7;
const DELETE_RULE: u16 = SUBSYSTEM | 8;
const GET_GENERATION: u16 = SUBSYSTEM | 16;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
/// A comment `nft list` shows: kind 0 in the rule's user data, of at most this length with its
/// closing zero.
const COMMENT_LIMIT: usize = 127;

/// The hook of nftables and the priority of a chain that has one.
///
/// Inbound `-99`: a mesh's redirect at `-100` wins, the caller meets the mesh first. Outbound
/// `-101`: before a mesh, so that it neither captures the agent nor hides the pod's own port from
/// us.
pub fn hook(chain: Chain) -> Option<(&'static str, i32)> {
    match chain {
        Chain::Prerouting => Some(("prerouting", -99)),
        Chain::Output => Some(("output", -101)),
        _ => None,
    }
}

fn hook_number(chain: Chain) -> u32 {
    if chain == Chain::Output { 3 } else { 0 }
}

/// The kernel's number of the family.
pub(crate) fn number(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

/// What the kernel refused, in our words: which step, why, and what it lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The rule, chain or table, or the socket.
    pub what: String,
    /// The kernel's answer.
    pub errno: Errno,
    /// The kernel option whose absence would give that answer.
    pub option: Option<&'static str>,
    /// Whether it is about one step only, so that it says nothing about the right to program.
    pub specific: bool,
}

/// A transaction under construction, with the words for each of its messages.
#[derive(Default)]
struct Batch {
    messages: Vec<(u16, u16, Attributes)>,
    words: Vec<(String, Option<&'static str>)>,
}

impl Batch {
    fn add(
        &mut self,
        kind: u16,
        flags: u16,
        body: Attributes,
        what: String,
        option: Option<&'static str>,
    ) {
        self.messages.push((kind, flags, body));
        self.words.push((what, option));
    }

    fn delete(&mut self, kind: u16, body: Attributes, what: String) {
        self.add(kind, 0, body, what, None);
    }

    fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Commits all or nothing; with a `generation`, only when nobody changed anything since.
    fn commit(self, socket: &Socket, generation: Option<u32>) -> Result<(), Failure> {
        let frame = Attributes::default().fixed(&[0, 0, 0, 10]);
        let begin = generation.map_or_else(|| frame.clone(), |it| frame.clone().be32(1, it));
        let mut bytes = message(BATCH_BEGIN, REQUEST, 0, &begin);
        let mut sequence = 0;
        for (at, (kind, flags, body)) in self.messages.iter().enumerate() {
            sequence += 1;
            let ack = if at + 1 == self.messages.len() {
                ACK
            } else {
                0
            };
            bytes.extend(message(*kind, REQUEST | ack | flags, sequence, body));
        }
        bytes.extend(message(BATCH_END, REQUEST, sequence + 1, &frame));
        socket
            .transact(&bytes, sequence)
            .map_err(|refusal| self.explain(refusal))
    }

    fn explain(&self, refusal: Refusal) -> Failure {
        let at = refusal
            .sequence
            .and_then(|it| usize::try_from(it).ok()?.checked_sub(1));
        let Some((what, option)) = at.and_then(|at| self.words.get(at)) else {
            return whole("the transaction", refusal.errno);
        };
        Failure {
            what: what.clone(),
            errno: refusal.errno,
            option: *option,
            specific: true,
        }
    }
}

/// A refusal that is not about one of our messages.
fn whole(what: &str, errno: Errno) -> Failure {
    Failure {
        what: what.to_owned(),
        errno,
        option: Some("CONFIG_NF_TABLES (module nf_tables)"),
        specific: false,
    }
}

fn open() -> Result<Socket, Failure> {
    Socket::open(Some(NETFILTER)).map_err(|errno| Failure {
        what: "the netlink socket of netfilter".to_owned(),
        errno,
        option: Some("CONFIG_NETFILTER_NETLINK (module nfnetlink)"),
        // The socket takes no right; a sandbox that refuses it is no reason to ask for one.
        specific: true,
    })
}

/// The fixed part in front of each nf_tables message.
fn of(family: Family) -> Attributes {
    Attributes::default().fixed(&[number(family), 0, 0, 0])
}

/// Puts `rules` into force, in place of whatever our tables held: one transaction over both
/// families.
///
/// Errors: the kernel's word on the first message it refused. Nothing changed then.
pub fn apply(rules: &[Rule]) -> Result<(), Failure> {
    match commit(rules, true) {
        // A kernel without counters is no reason to give up: they are for people only.
        Err(failure) if failure.errno == Errno::NOENT => commit(rules, false),
        done => done,
    }
}

fn commit(rules: &[Rule], counters: bool) -> Result<(), Failure> {
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
            of(family).text(1, TABLE),
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
        of(family).text(1, TABLE),
        format!("table {} {TABLE}", family.nft()),
        Some(option),
    );
}

fn add_chains(batch: &mut Batch, family: Family, rules: &[&Rule]) {
    for chain in chains(rules) {
        let mut body = of(family).text(1, TABLE).text(3, chain.name());
        if let Some((_, priority)) = hook(chain) {
            let hook = Attributes::default()
                .be32(1, hook_number(chain))
                .be32(2, priority.cast_unsigned());
            body = body.nest(4, hook).text(7, "nat");
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
        .text(1, TABLE)
        .text(2, rule.chain.name())
        .nest(4, list)
        .bytes(7, &comment(rule));
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

/// A word for whoever lists the rules and wonders.
fn comment(rule: &Rule) -> Vec<u8> {
    let words = match rule.then {
        Action::Jump(Chain::Bypass) => "the agent's own traffic",
        Action::Jump(_) => "to the agent's ports",
        Action::Redirect(_) => "the app's callers reach the agent",
        Action::Translate(_) => "the agent reaches the app",
        Action::LeaveAlone => "no mesh captures it",
    };
    debug_assert!(words.len() < COMMENT_LIMIT, "nft shows no longer comment");
    let mut bytes = vec![0, u8::try_from(words.len() + 1).unwrap_or(0)];
    bytes.extend_from_slice(words.as_bytes());
    bytes.push(0);
    bytes
}

/// Takes our tables away. Says whether there was one.
pub fn remove() -> Result<bool, Failure> {
    let socket = open()?;
    let mut batch = Batch::default();
    for family in Family::ALL {
        if has_table(&socket, family, TABLE)? {
            add_table(&mut batch, family);
            batch.delete(
                DELETE_TABLE,
                of(family).text(1, TABLE),
                format!("table {} {TABLE}", family.nft()),
            );
        }
    }
    if batch.is_empty() {
        return Ok(false);
    }
    batch.commit(&socket, None).map(|()| true)
}

/// What of `rules` is not in force, or is in force without being wanted: a line for each
/// difference.
pub fn differences(rules: &[Rule]) -> Result<Vec<String>, Failure> {
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
) -> Result<Vec<String>, Failure> {
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

/// A chain as the kernel lists it.
pub(crate) struct ListedChain {
    name: String,
    /// Hook number and priority, when the kernel calls it.
    hook: Option<(u32, i32)>,
}

/// A rule as the kernel lists it.
pub(crate) struct ListedRule {
    chain: String,
    handle: Vec<u8>,
    expressions: Vec<Expression>,
}

fn has_table(socket: &Socket, family: Family, name: &str) -> Result<bool, Failure> {
    let tables = socket
        .dump(GET_TABLE, &of(family))
        .map_err(|errno| whole("the list of tables", errno))?;
    Ok(tables
        .iter()
        .any(|it| it.first() == Some(&number(family)) && find_text(rest(it), 1) == Some(name)))
}

fn list_chains(socket: &Socket, family: Family, table: &str) -> Result<Vec<ListedChain>, Failure> {
    let chains = socket
        .dump(GET_CHAIN, &of(family))
        .map_err(|errno| whole("the list of chains", errno))?;
    let chains = chains
        .iter()
        .map(|it| rest(it))
        .filter(|it| find_text(it, 1) == Some(table));
    Ok(chains
        .map(|it| ListedChain {
            name: find_text(it, 3).unwrap_or_default().to_owned(),
            hook: find(it, 4)
                .and_then(|hook| Some((find_be32(hook, 1)?, find_be32(hook, 2)?.cast_signed()))),
        })
        .collect())
}

fn list_rules(socket: &Socket, family: Family, table: &str) -> Result<Vec<ListedRule>, Failure> {
    let rules = socket
        .dump(GET_RULE, &of(family).text(1, table))
        .map_err(|errno| whole("the list of rules", errno))?;
    let rules = rules
        .iter()
        .map(|it| rest(it))
        .filter(|it| find_text(it, 1) == Some(table));
    Ok(rules
        .map(|it| ListedRule {
            chain: find_text(it, 2).unwrap_or_default().to_owned(),
            handle: find(it, 3).unwrap_or_default().to_vec(),
            expressions: expr::decode(find(it, 4).unwrap_or_default()),
        })
        .collect())
}

/// The attributes of an nf_tables message.
fn rest(body: &[u8]) -> &[u8] {
    body.get(4..).unwrap_or_default()
}
