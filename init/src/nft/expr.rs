//! Translation of a typed rule to the kernel's own list of expressions: load a field into a
//! register, compare it, act. Pure.
//!
//! Numbers of `linux/netfilter/nf_tables.h`. Traps: owner ids are in the host's byte order, ports
//! and addresses in the network's; a value must be loaded before it is compared; register 0 is the
//! verdict.

use std::net::IpAddr;

use super::attribute::{
    BITWISE_DESTINATION, BITWISE_LENGTH, BITWISE_MASK, BITWISE_SOURCE, BITWISE_XOR, COMPARE_DATA,
    COMPARE_OPERATION, COMPARE_SOURCE, DATA_VALUE, DATA_VERDICT, EXPRESSION_DATA, EXPRESSION_NAME,
    EXTENSION_INFO, EXTENSION_NAME, FIB_DESTINATION, FIB_FLAGS, FIB_RESULT, IMMEDIATE_DATA,
    IMMEDIATE_DESTINATION, LIST_ELEMENT, META_DESTINATION, META_KEY, NAT_ADDRESS, NAT_FAMILY,
    NAT_PORT, NAT_TYPE, PAYLOAD_BASE, PAYLOAD_DESTINATION, PAYLOAD_LENGTH, PAYLOAD_OFFSET,
    REDIRECT_PORT, SOCKET_DESTINATION, SOCKET_KEY, VERDICT_CHAIN, VERDICT_CODE,
};
use crate::cidr::Cidr;
use crate::netlink::{Attributes, attributes, find, find_be32, find_text};
use crate::ours::{self, Seen};
use crate::rule::{Action, Family, Owner, Rule, Test};

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

/// `NFT_FIB_RESULT_ADDRTYPE`.
const FIB_ADDRESS_TYPE: u32 = 3;
/// `NFTA_FIB_F_DADDR`.
const FIB_OF_DESTINATION: u32 = 1 << 1;
/// `RTN_LOCAL`.
const ROUTE_LOCAL: u32 = 2;
/// `NFT_SOCKET_TRANSPARENT`.
const SOCKET_TRANSPARENT: u32 = 0;

const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;
const NAT_TO_DESTINATION: u32 = 1;
const VERDICT_JUMP: i32 = -3;
const VERDICT_RETURN: i32 = -5;
const INTERFACE_NAME_LENGTH: usize = 16;

/// Expression: its name in the kernel and its attributes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Expression {
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

    /// True for the match of this name of iptables.
    fn is_extension(&self, name: &str) -> bool {
        self.name == "match" && find_text(&self.data, EXTENSION_NAME) == Some(name)
    }

    /// True when the kernel's `other` does what this one says: it may tell more than we did, not
    /// less, and a counter's count is its own affair.
    fn is_kept_by(&self, other: &Self) -> bool {
        let same = |(kind, payload): (u16, &[u8])| find(&other.data, kind) == Some(payload);
        self.name == other.name && attributes(&self.data).all(same)
    }
}

/// Lists the expressions of `rule`, with a packet counter in front of the action when asked.
pub(crate) fn expressions(rule: &Rule, counter: bool) -> Vec<Expression> {
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
pub(crate) fn encode(list: &[Expression]) -> Attributes {
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
pub(crate) fn decode(bytes: &[u8]) -> Vec<Expression> {
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
pub(crate) fn is_in_force(rule: &Rule, listed: &[Expression]) -> bool {
    let wanted = expressions(rule, false);
    // A counter changes nothing of what a rule does, and somebody may have reset or removed ours.
    let listed: Vec<_> = listed.iter().filter(|it| it.name != "counter").collect();
    wanted.len() == listed.len()
        && wanted
            .iter()
            .zip(listed)
            .all(|(ours, theirs)| ours.is_kept_by(theirs))
}

/// Chain that a listed rule jumps to, if it does.
pub(crate) fn jump_target(listed: &[Expression]) -> Option<&str> {
    find_text(verdict(listed)?, VERDICT_CHAIN)
}

/// Verdict of a listed rule.
fn verdict(listed: &[Expression]) -> Option<&[u8]> {
    listed
        .iter()
        .filter(|it| it.name == "immediate")
        .find_map(|it| find(find(&it.data, IMMEDIATE_DATA)?, DATA_VERDICT))
}

/// A listed rule as far as it matters for telling whose it is.
pub(crate) fn seen(chain: &str, listed: &[Expression]) -> Seen {
    let code = verdict(listed).and_then(|it| find_be32(it, VERDICT_CODE));
    let returns = code.map(u32::cast_signed) == Some(VERDICT_RETURN);
    let plain = |it: &Expression| {
        // Whoever added any other test meant a rule of their own.
        let harmless = ["meta", "cmp", "payload", "counter", "immediate"];
        harmless.contains(&it.name.as_str()) || it.is_extension("owner")
    };
    let owner = owner_of(listed);
    Seen {
        chain: chain.to_owned(),
        jump: jump_target(listed).map(str::to_owned),
        owner: owner.map(|(owner, _)| owner),
        returns_owner: returns
            && listed.iter().all(plain)
            && owner.is_some_and(|(_, inverted)| !inverted),
    }
}

/// Owner that a listed rule tests for, and whether it is the exception: by the kernel's own
/// expressions, or by the match of iptables.
fn owner_of(listed: &[Expression]) -> Option<(Owner, bool)> {
    let by_match = listed
        .iter()
        .find(|it| it.is_extension("owner"))
        .and_then(|it| ours::owner_in_match(find(&it.data, EXTENSION_INFO)?));
    by_match.or_else(|| {
        listed.windows(2).find_map(|pair| {
            let [load, test] = pair else { return None };
            let owner: fn(u32) -> Owner = match find_be32(&load.data, META_KEY)? {
                META_UID if load.name == "meta" => Owner::Uid,
                META_GID if load.name == "meta" => Owner::Gid,
                _ => return None,
            };
            let value = find(find(&test.data, COMPARE_DATA)?, DATA_VALUE)?;
            // Written in the host's byte order by us and by iptables-nft.
            let id = u32::from_ne_bytes(value.try_into().ok()?);
            let inverted = find_be32(&test.data, COMPARE_OPERATION)? == NOT_EQUAL;
            Some((owner(id), inverted))
        })
    })
}

/// True when a listed rule assigns packets to a transparent proxy.
pub(crate) fn assigns_to_proxy(listed: &[Expression]) -> bool {
    let is_proxy = |it: &Expression| {
        let target = it.name == "target" && find_text(&it.data, EXTENSION_NAME) == Some("TPROXY");
        it.name == "tproxy" || target
    };
    listed.iter().any(is_proxy)
}

fn test_expressions(test: &Test, family: Family) -> Vec<Expression> {
    match test {
        Test::FromSubnet(subnet) => in_subnet(load_source(family), *subnet),
        Test::ToSubnet(subnet) => in_subnet(load_destination(family), *subnet),
        Test::Local => vec![
            load_address_type(),
            compare(EQUAL, &ROUTE_LOCAL.to_ne_bytes()),
        ],
        // A mesh in TPROXY mode listens on a transparent socket, and the kernel finds that socket for the
        // packets it has assigned.
        Test::Claimed => vec![load_transparent(), compare(EQUAL, &[1])],
        Test::To(address) => vec![load_destination(family), compare(EQUAL, &octets(*address))],
        Test::NotTo(address) => vec![
            load_destination(family),
            compare(NOT_EQUAL, &octets(*address)),
        ],
        Test::Over(interface) => {
            let mut name = interface.as_bytes().to_vec();
            // The kernel compares the whole field, so without the zeros `eth0` would match
            // `eth01`.
            name.resize(INTERFACE_NAME_LENGTH, 0);
            vec![load_meta(META_OUTPUT_INTERFACE), compare(EQUAL, &name)]
        }
        Test::Carried(transport) => vec![
            load_meta(META_TRANSPORT),
            compare(EQUAL, &[transport.number()]),
        ],
        Test::From(who) => owner(*who, EQUAL),
        Test::NotFrom(who) => owner(*who, NOT_EQUAL),
        Test::Port(transport, port) => {
            // Other protocols have other things where TCP and UDP have the port.
            let mut list = test_expressions(&Test::Carried(*transport), family);
            list.push(load_payload(TRANSPORT_HEADER, PORT_OFFSET, 2));
            list.push(compare(EQUAL, &port.to_be_bytes()));
            list
        }
    }
}

fn owner(owner: Owner, how: u32) -> Vec<Expression> {
    let (key, id) = match owner {
        Owner::Uid(id) => (META_UID, id),
        Owner::Gid(id) => (META_GID, id),
    };
    // Owner ids come in the host's byte order, unlike everything from the packet.
    vec![load_meta(key), compare(how, &id.to_ne_bytes())]
}

fn action_expressions(rule: &Rule) -> Vec<Expression> {
    match rule.then {
        Action::Jump(chain) => {
            let verdict = Attributes::default()
                .bytes(VERDICT_CODE, &VERDICT_JUMP.to_be_bytes())
                .text(VERDICT_CHAIN, chain.name());
            vec![verdict_expression(verdict)]
        }
        Action::Return => {
            let verdict = Attributes::default().bytes(VERDICT_CODE, &VERDICT_RETURN.to_be_bytes());
            vec![verdict_expression(verdict)]
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
                // A translation to its own destination settles the connection: chains of a mesh
                // that come later leave it alone.
                load_destination(rule.family),
                Expression::new(
                    "nat",
                    translation(rule.family).be32(NAT_ADDRESS, REGISTER_1),
                ),
            ]
        }
    }
}

fn verdict_expression(verdict: Attributes) -> Expression {
    let data = Attributes::default().nest(DATA_VERDICT, verdict);
    Expression::new(
        "immediate",
        Attributes::default()
            .be32(IMMEDIATE_DESTINATION, REGISTER_VERDICT)
            .nest(IMMEDIATE_DATA, data),
    )
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

fn load_source(family: Family) -> Expression {
    match family {
        Family::V4 => load_payload(NETWORK_HEADER, 12, 4),
        Family::V6 => load_payload(NETWORK_HEADER, 8, 16),
    }
}

fn in_subnet(load: Expression, subnet: Cidr) -> Vec<Expression> {
    let mask = subnet.mask();
    let network = octets(subnet.network());
    let data = |value: &[u8]| Attributes::default().bytes(DATA_VALUE, value);
    let cut = Attributes::default()
        .be32(BITWISE_SOURCE, REGISTER_1)
        .be32(BITWISE_DESTINATION, REGISTER_1)
        .be32(BITWISE_LENGTH, u32::try_from(mask.len()).unwrap_or(0))
        .nest(BITWISE_MASK, data(&mask))
        .nest(BITWISE_XOR, data(&vec![0; mask.len()]));
    vec![
        load,
        Expression::new("bitwise", cut),
        compare(EQUAL, &network),
    ]
}

/// Loads the type of the destination in the routing tables.
fn load_address_type() -> Expression {
    let data = Attributes::default()
        .be32(FIB_DESTINATION, REGISTER_1)
        .be32(FIB_RESULT, FIB_ADDRESS_TYPE)
        .be32(FIB_FLAGS, FIB_OF_DESTINATION);
    Expression::new("fib", data)
}

/// Loads 1 when the packet's socket is transparent.
fn load_transparent() -> Expression {
    let data = Attributes::default()
        .be32(SOCKET_KEY, SOCKET_TRANSPARENT)
        .be32(SOCKET_DESTINATION, REGISTER_1);
    Expression::new("socket", data)
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
            when: vec![Test::From(Owner::Gid(7439))],
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
