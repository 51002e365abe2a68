//! Translation of a typed rule to the kernel's own list of expressions: load a field into a
//! register, compare it, act. Pure.
//!
//! Numbers of `linux/netfilter/nf_tables.h`. Traps: owner ids are in the host's byte order, ports
//! and addresses in the network's; a value must be loaded before it is compared; register 0 is the
//! verdict.

use std::net::IpAddr;

use super::attribute::{
    COMPARE_DATA, COMPARE_OPERATION, COMPARE_SOURCE, DATA_VALUE, DATA_VERDICT, EXPRESSION_DATA,
    EXPRESSION_NAME, IMMEDIATE_DATA, IMMEDIATE_DESTINATION, LIST_ELEMENT, META_DESTINATION,
    META_KEY, NAT_ADDRESS, NAT_FAMILY, NAT_PORT, NAT_TYPE, PAYLOAD_BASE, PAYLOAD_DESTINATION,
    PAYLOAD_LENGTH, PAYLOAD_OFFSET, REDIRECT_PORT, VERDICT_CHAIN, VERDICT_CODE,
};
use crate::netlink::{Attributes, attributes, find, find_text};
use crate::rule::{Action, Agent, Family, Rule, Test};

const REGISTER_VERDICT: u32 = 0;
const REGISTER_1: u32 = 1;
const REGISTER_2: u32 = 2;

const META_OUTPUT_INTERFACE: u32 = 7;
const META_UID: u32 = 10;
const META_GID: u32 = 11;
const META_TRANSPORT: u32 = 16;

const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
const PORT_OFFSET: u32 = 2;

const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;
const NAT_TO_DESTINATION: u32 = 1;
const VERDICT_JUMP: i32 = -3;
const INTERFACE_NAME_LENGTH: usize = 16;

/// Expression: its name in the kernel and its attributes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expression {
    /// Name in the kernel, which is also the name of the module that brings it.
    pub name: String,
    data: Vec<u8>,
}

impl Expression {
    fn new(name: &str, data: Attributes) -> Self {
        Self {
            name: name.to_owned(),
            data: data.0,
        }
    }

    /// True when the kernel's `other` does what this one says: it may tell more than we did, not
    /// less, and a counter's count is its own affair.
    fn is_kept_by(&self, other: &Self) -> bool {
        let same = |(kind, payload): (u16, &[u8])| find(&other.data, kind) == Some(payload);
        self.name == other.name && attributes(&self.data).all(same)
    }
}

/// Lists the expressions of `rule`, with a packet counter in front of the action when asked.
pub fn expressions(rule: &Rule, counter: bool) -> Vec<Expression> {
    let mut list = Vec::new();
    for test in &rule.when {
        list.extend(test_expressions(test, rule.family));
    }
    if counter {
        list.push(Expression::new("counter", Attributes::default()));
    }
    list.extend(action_expressions(rule));
    list
}

/// Encodes the list as the attribute a rule carries.
pub fn encode(list: &[Expression]) -> Attributes {
    list.iter().fold(Attributes::default(), |all, one| {
        let data = Attributes(one.data.clone());
        all.nest(
            LIST_ELEMENT,
            Attributes::default()
                .text(EXPRESSION_NAME, &one.name)
                .nest(EXPRESSION_DATA, data),
        )
    })
}

/// Decodes the list in an attribute that the kernel gave.
pub fn decode(bytes: &[u8]) -> Vec<Expression> {
    attributes(bytes)
        .map(|(_, element)| Expression {
            name: find_text(element, EXPRESSION_NAME)
                .unwrap_or_default()
                .to_owned(),
            data: find(element, EXPRESSION_DATA).unwrap_or_default().to_vec(),
        })
        .collect()
}

/// True when a rule that the kernel lists is `rule`, with or without a counter.
pub fn is_in_force(rule: &Rule, listed: &[Expression]) -> bool {
    let wanted = expressions(rule, false);
    let listed: Vec<_> = listed.iter().filter(|it| it.name != "counter").collect();
    wanted.len() == listed.len()
        && wanted
            .iter()
            .zip(listed)
            .all(|(ours, theirs)| ours.is_kept_by(theirs))
}

/// Chain that a listed rule jumps to, if it does.
pub fn jump_target(listed: &[Expression]) -> Option<&str> {
    let immediate = listed.iter().find(|it| it.name == "immediate")?;
    find_text(
        find(find(&immediate.data, IMMEDIATE_DATA)?, DATA_VERDICT)?,
        VERDICT_CHAIN,
    )
}

fn test_expressions(test: &Test, family: Family) -> Vec<Expression> {
    match test {
        Test::To(address) => vec![load_destination(family), compare(EQUAL, &octets(*address))],
        Test::NotTo(address) => vec![
            load_destination(family),
            compare(NOT_EQUAL, &octets(*address)),
        ],
        Test::Over(interface) => {
            let mut name = interface.as_bytes().to_vec();
            name.resize(INTERFACE_NAME_LENGTH, 0);
            vec![load_meta(META_OUTPUT_INTERFACE), compare(EQUAL, &name)]
        }
        Test::Carried(transport) => vec![
            load_meta(META_TRANSPORT),
            compare(EQUAL, &[transport.number()]),
        ],
        Test::From(agent) => owner(*agent, EQUAL),
        Test::NotFrom(agent) => owner(*agent, NOT_EQUAL),
        Test::Port(transport, port) => {
            let mut list = test_expressions(&Test::Carried(*transport), family);
            list.push(load_payload(TRANSPORT_HEADER, PORT_OFFSET, 2));
            list.push(compare(EQUAL, &port.to_be_bytes()));
            list
        }
    }
}

fn owner(agent: Agent, how: u32) -> Vec<Expression> {
    let (key, id) = match agent {
        Agent::Uid(id) => (META_UID, id),
        Agent::Gid(id) => (META_GID, id),
    };
    vec![load_meta(key), compare(how, &id.to_ne_bytes())]
}

fn action_expressions(rule: &Rule) -> Vec<Expression> {
    match rule.then {
        Action::Jump(chain) => {
            let verdict = Attributes::default()
                .bytes(VERDICT_CODE, &VERDICT_JUMP.to_be_bytes())
                .text(VERDICT_CHAIN, chain.name());
            let data = Attributes::default().nest(DATA_VERDICT, verdict);
            vec![Expression::new(
                "immediate",
                Attributes::default()
                    .be32(IMMEDIATE_DESTINATION, REGISTER_VERDICT)
                    .nest(IMMEDIATE_DATA, data),
            )]
        }
        Action::Redirect(port) => vec![
            immediate(REGISTER_1, &port.to_be_bytes()),
            Expression::new(
                "redir",
                Attributes::default().be32(REDIRECT_PORT, REGISTER_1),
            ),
        ],
        Action::Translate(to) => vec![
            immediate(REGISTER_1, &octets(to.ip())),
            immediate(REGISTER_2, &to.port().to_be_bytes()),
            Expression::new(
                "nat",
                translation(rule.family)
                    .be32(NAT_ADDRESS, REGISTER_1)
                    .be32(NAT_PORT, REGISTER_2),
            ),
        ],
        Action::LeaveAlone => {
            vec![
                load_destination(rule.family),
                Expression::new(
                    "nat",
                    translation(rule.family).be32(NAT_ADDRESS, REGISTER_1),
                ),
            ]
        }
    }
}

/// Type (destination) and family of a translation.
fn translation(family: Family) -> Attributes {
    Attributes::default()
        .be32(NAT_TYPE, NAT_TO_DESTINATION)
        .be32(NAT_FAMILY, u32::from(family.number()))
}

fn immediate(register: u32, value: &[u8]) -> Expression {
    let data = Attributes::default().bytes(DATA_VALUE, value);
    Expression::new(
        "immediate",
        Attributes::default()
            .be32(IMMEDIATE_DESTINATION, register)
            .nest(IMMEDIATE_DATA, data),
    )
}

fn compare(how: u32, value: &[u8]) -> Expression {
    let data = Attributes::default().bytes(DATA_VALUE, value);
    Expression::new(
        "cmp",
        Attributes::default()
            .be32(COMPARE_SOURCE, REGISTER_1)
            .be32(COMPARE_OPERATION, how)
            .nest(COMPARE_DATA, data),
    )
}

fn load_meta(key: u32) -> Expression {
    Expression::new(
        "meta",
        Attributes::default()
            .be32(META_DESTINATION, REGISTER_1)
            .be32(META_KEY, key),
    )
}

fn load_payload(base: u32, offset: u32, length: u32) -> Expression {
    let data = Attributes::default()
        .be32(PAYLOAD_DESTINATION, REGISTER_1)
        .be32(PAYLOAD_BASE, base)
        .be32(PAYLOAD_OFFSET, offset)
        .be32(PAYLOAD_LENGTH, length);
    Expression::new("payload", data)
}

fn load_destination(family: Family) -> Expression {
    match family {
        Family::V4 => load_payload(NETWORK_HEADER, 16, 4),
        Family::V6 => load_payload(NETWORK_HEADER, 24, 16),
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(it) => it.octets().to_vec(),
        IpAddr::V6(it) => it.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule::{Chain, Transport};
    use proptest::prelude::*;

    fn redirect(port: u16) -> Rule {
        let when = vec![Test::Port(Transport::Tcp, port)];
        Rule {
            family: Family::V4,
            chain: Chain::Inbound(Transport::Tcp),
            when,
            then: Action::Redirect(9900),
        }
    }

    #[test]
    fn a_rule_is_recognised_with_and_without_its_counter_and_no_other_is() {
        let rule = redirect(8080);
        for counter in [false, true] {
            let listed = decode(&encode(&expressions(&rule, counter)).0);
            assert!(is_in_force(&rule, &listed));
            assert!(!is_in_force(&redirect(8081), &listed));
            assert!(!is_in_force(&rule, &listed[1..]));
        }
    }

    #[test]
    fn the_target_of_a_jump_is_found() {
        let then = Action::Jump(Chain::Bypass);
        let jump = Rule {
            family: Family::V6,
            chain: Chain::Output,
            when: vec![Test::From(Agent::Gid(7439))],
            then,
        };
        assert_eq!(
            jump_target(&expressions(&jump, true)),
            Some("TEL_MESH_BYPASS")
        );
        assert_eq!(jump_target(&expressions(&redirect(1), true)), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let listed = decode(&bytes);
            let _ = (jump_target(&listed), is_in_force(&redirect(1), &listed));
        }
    }
}
