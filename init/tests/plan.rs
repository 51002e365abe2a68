//! Comparison of the plan with the policy: golden texts for the documented examples, and for
//! generated pods an independent reading of the policy, packet by packet.
#![allow(clippy::unwrap_used)] // A test that cannot go on panics.

use std::net::{IpAddr, SocketAddr};

use agent_init::cidr::Cidr;
use agent_init::plan::{Options, Pod, PortPlan, PortRange};
use agent_init::render::{iptables_text, json_text, nft_text};
use agent_init::rule::{Action, Chain, Family, Owner, Rule, Test, Transport};
use proptest::prelude::*;

fn port(container_port: u16, agent_port: u16, entries: u16, transport: Transport) -> PortPlan {
    let proxy_port = agent_port + 11 + entries;
    PortPlan {
        container: "app".into(),
        container_port,
        agent_port,
        proxy_port,
        transport,
        numeric: true,
    }
}

fn named(container_port: u16, agent_port: u16, entries: u16) -> PortPlan {
    PortPlan {
        numeric: false,
        ..port(container_port, agent_port, entries, Transport::Tcp)
    }
}

/// Plan without exceptions.
fn plan(ports: &[PortPlan], pod: &Pod) -> Vec<Rule> {
    agent_init::plan::plan(ports, pod, &Options::default())
}

fn pod(addresses: &[&str], agent: Owner) -> Pod {
    Pod {
        addresses: addresses.iter().map(|it| it.parse().unwrap()).collect(),
        loopback: "lo".into(),
        agent,
    }
}

/// Compares with the golden file, or writes it when `UPDATE_GOLDEN` is set.
fn assert_golden(name: &str, text: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let golden = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(text, golden, "{name}; UPDATE_GOLDEN=1 writes it anew");
}

#[test]
fn one_tcp_port_of_an_ipv4_pod() {
    let rules = plan(
        &[port(8080, 9900, 1, Transport::Tcp)],
        &pod(&["10.1.0.2"], Owner::Uid(0)),
    );
    assert_golden("one_tcp_port.rules", &iptables_text(&rules));
    assert_golden("one_tcp_port.nft", &nft_text(&rules));
}

#[test]
fn one_tcp_port_of_an_ipv6_pod() {
    let rules = plan(
        &[port(8080, 9900, 1, Transport::Tcp)],
        &pod(&["fd00::2"], Owner::Uid(1001)),
    );
    assert_golden("one_tcp_port_ipv6.rules", &iptables_text(&rules));
    assert_golden("one_tcp_port_ipv6.nft", &nft_text(&rules));
}

#[test]
fn tcp_and_udp_of_a_dual_stack_pod_beside_a_named_port() {
    let ports = [
        port(8080, 9900, 4, Transport::Tcp),
        port(5353, 9901, 4, Transport::Udp),
        port(9090, 9902, 4, Transport::Tcp),
        named(7070, 9903, 4),
    ];
    let pod = pod(&["10.1.0.2", "fd00::2"], Owner::Gid(7439));
    let rules = plan(&ports, &pod);
    assert_golden("dual_stack.rules", &iptables_text(&rules));
    assert_golden("dual_stack.nft", &nft_text(&rules));
    assert_golden("dual_stack.json", &json_text(&rules, &pod));
}

#[test]
fn exceptions_stand_before_the_redirects() {
    let options = Options {
        excluded_ports: vec!["9090".parse().unwrap()],
        excluded_sources: vec!["10.9.0.0/16".parse().unwrap()],
        excluded_owners: vec![Owner::Uid(1337)],
        mesh_subnets: vec!["10.8.0.0/16".parse().unwrap()],
        ..Options::default()
    };
    let ports = [
        port(8080, 9900, 2, Transport::Tcp),
        port(9090, 9901, 2, Transport::Tcp),
    ];
    let pod = pod(&["10.1.0.2"], Owner::Gid(7439));
    let rules = agent_init::plan::plan(&ports, &pod, &options);
    assert_golden("exceptions.rules", &iptables_text(&rules));
    assert_golden("exceptions.nft", &nft_text(&rules));
}

#[test]
fn named_ports_alone_need_no_rule() {
    assert_eq!(
        plan(&[named(8080, 9900, 1)], &pod(&["10.1.0.2"], Owner::Uid(0))),
        []
    );
}

/// Sender of a packet, as far as rules tell them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sender {
    Agent,
    /// Process of an excluded owner.
    Excluded,
    Other,
}

const EXCLUDED: Owner = Owner::Uid(1337);

/// First packet of a connection, as the rules see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Packet {
    arrives: bool,
    from: IpAddr,
    to: SocketAddr,
    transport: Transport,
    sender: Sender,
    over_loopback: bool,
    /// To an address of the pod itself.
    local: bool,
    /// Assigned to a transparent socket.
    claimed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Untouched,
    LeftAlone,
    ToPort(u16),
    To(SocketAddr),
}

/// Verdict of a chain.
enum Verdict {
    Final(Fate),
    Returned,
}

/// Evaluates a chain as the kernel does.
fn verdict(rules: &[Rule], chain: Chain, packet: Packet) -> Verdict {
    let family = Family::of(packet.to.ip());
    for rule in rules
        .iter()
        .filter(|rule| rule.family == family && rule.chain == chain)
    {
        if !rule.when.iter().all(|test| holds(test, packet)) {
            continue;
        }
        match rule.then {
            Action::Jump(next) => {
                if let Verdict::Final(fate) = verdict(rules, next, packet) {
                    return Verdict::Final(fate);
                }
            }
            Action::Return => return Verdict::Returned,
            Action::Redirect(port) => return Verdict::Final(Fate::ToPort(port)),
            Action::Translate(to) => return Verdict::Final(Fate::To(to)),
            Action::LeaveAlone => return Verdict::Final(Fate::LeftAlone),
        }
    }
    Verdict::Returned
}

fn holds(test: &Test, packet: Packet) -> bool {
    let sent_by = |owner: Owner| match packet.sender {
        Sender::Agent => owner != EXCLUDED,
        Sender::Excluded => owner == EXCLUDED,
        Sender::Other => false,
    };
    match test {
        Test::FromSubnet(subnet) => subnet.contains(packet.from),
        Test::To(address) => packet.to.ip() == *address,
        Test::NotTo(address) => packet.to.ip() != *address,
        Test::ToSubnet(subnet) => subnet.contains(packet.to.ip()),
        Test::Over(_) => packet.over_loopback,
        Test::Carried(transport) => packet.transport == *transport,
        Test::Local => packet.local,
        Test::Claimed => packet.claimed,
        Test::From(owner) => sent_by(*owner),
        Test::NotFrom(owner) => !sent_by(*owner),
        Test::Port(transport, port) => packet.transport == *transport && packet.to.port() == *port,
    }
}

fn fate_of(rules: &[Rule], packet: Packet) -> Fate {
    let hook = if packet.arrives {
        Chain::Prerouting
    } else {
        Chain::Output
    };
    match verdict(rules, hook, packet) {
        Verdict::Final(fate) => fate,
        Verdict::Returned => Fate::Untouched,
    }
}

/// Policy in other words than the plan's.
fn wanted(ports: &[PortPlan], pod: &Pod, options: &Options, packet: Packet) -> Fate {
    let numeric = || ports.iter().filter(|port| port.numeric);
    let has_family = pod
        .addresses
        .iter()
        .any(|it| it.is_ipv4() == packet.to.is_ipv4());
    if !has_family || numeric().next().is_none() {
        return Fate::Untouched;
    }
    let to_port = |number: u16| (number, packet.transport);
    let at = to_port(packet.to.port());
    let app = numeric()
        .filter(|it| !options.excludes(it))
        .find(|it| to_port(it.container_port) == at && it.transport == packet.transport);
    if packet.arrives {
        let excluded = options
            .excluded_sources
            .iter()
            .any(|it| it.contains(packet.from));
        return match app {
            Some(port) if packet.local && !packet.claimed && !excluded => {
                Fate::ToPort(port.agent_port)
            }
            _ => Fate::Untouched,
        };
    }
    let by_agent = packet.sender == Sender::Agent;
    let direct = by_agent && packet.to.ip().is_loopback();
    // An exclusion is for a transport that has redirects.
    let has_redirects =
        numeric().any(|it| it.transport == packet.transport && !options.excludes(it));
    let excluded =
        packet.sender == Sender::Excluded && !options.excluded_owners.is_empty() && has_redirects;
    if packet.over_loopback && !direct && !excluded {
        let own = pod.addresses.contains(&packet.to.ip());
        match app {
            Some(port) if own => {
                return Fate::To(SocketAddr::new(packet.to.ip(), port.agent_port));
            }
            Some(port) => return Fate::ToPort(port.agent_port),
            None => {}
        }
        let proxy = numeric()
            .find(|it| it.transport == packet.transport && it.proxy_port == packet.to.port());
        if let Some(port) = proxy.filter(|_| own) {
            return Fate::To(SocketAddr::new(packet.to.ip(), port.container_port));
        }
    }
    let through_mesh = packet.to.port() == 53
        || options
            .mesh_subnets
            .iter()
            .any(|it| it.contains(packet.to.ip()));
    match by_agent {
        true if !through_mesh => Fate::LeftAlone,
        _ => Fate::Untouched,
    }
}

/// Packets that could be treated differently by any of the rules.
fn packets(ports: &[PortPlan], pod: &Pod) -> Vec<Packet> {
    let parsed = |it: &str| it.parse::<IpAddr>().expect("an address");
    let elsewhere = [
        "127.0.0.1",
        "::1",
        "192.0.2.7",
        "2001:db8::7",
        "10.8.0.1",
        "fd08::1",
    ]
    .map(parsed);
    let callers = ["198.51.100.1", "10.9.0.1", "2001:db8::9", "fd09::1"].map(parsed);
    let mut numbers: Vec<u16> = ports
        .iter()
        .flat_map(|it| [it.container_port, it.agent_port, it.proxy_port])
        .collect();
    numbers.extend([1, 53]);
    let mut packets = Vec::new();
    for address in pod.addresses.iter().chain(&elsewhere) {
        let own = pod.addresses.contains(address);
        for number in &numbers {
            for transport in [Transport::Tcp, Transport::Udp] {
                let packet = Packet {
                    arrives: false,
                    from: *address,
                    to: SocketAddr::new(*address, *number),
                    transport,
                    sender: Sender::Other,
                    over_loopback: own || address.is_loopback(),
                    local: own || address.is_loopback(),
                    claimed: false,
                };
                for sender in [Sender::Agent, Sender::Excluded, Sender::Other] {
                    packets.push(Packet { sender, ..packet });
                }
                for from in callers
                    .iter()
                    .filter(|it| it.is_ipv4() == address.is_ipv4())
                {
                    for claimed in [false, true] {
                        packets.push(Packet {
                            arrives: true,
                            from: *from,
                            over_loopback: false,
                            claimed,
                            ..packet
                        });
                    }
                }
            }
        }
    }
    packets
}

fn any_options() -> impl Strategy<Value = Options> {
    let subnets = |subnets: [&'static str; 2]| {
        prop::sample::subsequence(subnets.map(|it| it.parse::<Cidr>().unwrap()).to_vec(), 0..3)
    };
    let ports = prop::collection::vec((1024u16..9000, 0u16..2000), 0..3);
    let owners = prop::sample::subsequence(vec![EXCLUDED], 0..2);
    (
        ports,
        subnets(["10.9.0.0/16", "fd09::/16"]),
        owners,
        subnets(["10.8.0.0/16", "fd08::/16"]),
    )
        .prop_map(|(ports, excluded_sources, excluded_owners, mesh_subnets)| {
            let range = |(first, count): (u16, u16)| PortRange {
                first,
                last: first + count,
                transport: None,
            };
            Options {
                excluded_ports: ports.into_iter().map(range).collect(),
                excluded_sources,
                excluded_owners,
                mesh_subnets,
                ..Options::default()
            }
        })
}

fn any_ports() -> impl Strategy<Value = Vec<PortPlan>> {
    let one = (
        1024u16..9000,
        any::<bool>(),
        prop::bool::weighted(0.7),
        1u16..3,
    );
    prop::collection::vec(one, 1..9).prop_map(|wanted| {
        let entries: u16 = wanted.iter().map(|(_, _, _, services)| services).sum();
        let mut ports: Vec<PortPlan> = Vec::new();
        for (container_port, udp, numeric, _) in wanted {
            if ports.iter().all(|it| it.container_port != container_port) {
                let agent_port = 9900 + u16::try_from(ports.len()).unwrap();
                let transport = if udp { Transport::Udp } else { Transport::Tcp };
                ports.push(PortPlan {
                    numeric,
                    ..port(container_port, agent_port, entries + 8, transport)
                });
            }
        }
        ports
    })
}

fn any_pod() -> impl Strategy<Value = Pod> {
    let families: [&[&str]; 4] = [
        &["10.1.0.2"],
        &["fd00::2"],
        &["10.1.0.2", "fd00::2"],
        &["10.1.0.2", "10.2.0.2", "fd00::2", "fd01::2"],
    ];
    let agent = prop_oneof![
        any::<u32>().prop_map(Owner::Uid),
        any::<u32>().prop_map(Owner::Gid)
    ];
    (prop::sample::select(families.to_vec()), agent)
        .prop_map(|(addresses, agent)| pod(addresses, agent))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_packet_goes_where_the_policy_says(ports in any_ports(), pod in any_pod(), options in any_options()) {
        let rules = agent_init::plan::plan(&ports, &pod, &options);
        for packet in packets(&ports, &pod) {
            let wanted = wanted(&ports, &pod, &options, packet);
            prop_assert_eq!(fate_of(&rules, packet), wanted, "{:?}", packet);
        }
    }

    #[test]
    fn no_rule_is_without_effect(ports in any_ports(), pod in any_pod(), options in any_options()) {
        let rules = agent_init::plan::plan(&ports, &pod, &options);
        let packets = packets(&ports, &pod);
        for at in 0..rules.len() {
            let mut fewer = rules.clone();
            let rule = fewer.remove(at);
            let matters = packets.iter().any(|it| fate_of(&rules, *it) != fate_of(&fewer, *it));
            prop_assert!(matters, "{} is without effect", rule);
        }
    }

    #[test]
    fn the_same_config_gives_the_same_texts(ports in any_ports(), pod in any_pod(), options in any_options()) {
        let made = || agent_init::plan::plan(&ports.clone(), &pod.clone(), &options.clone());
        let (first, second) = (made(), made());
        prop_assert_eq!(iptables_text(&first), iptables_text(&second));
        prop_assert_eq!(nft_text(&first), nft_text(&second));
        prop_assert_eq!(json_text(&first, &pod), json_text(&second, &pod));
    }
}
