//! Comparison of the plan with the policy: golden texts for the documented examples, and for generated
//! pods an independent reading of the policy, packet by packet.
#![allow(clippy::unwrap_used)] // A test that cannot go on panics.

use std::net::{IpAddr, SocketAddr};

use agent_init::plan::{Pod, PortPlan, plan};
use agent_init::render::{iptables_text, json_text, nft_text};
use agent_init::rule::{Action, Agent, Chain, Family, Rule, Test, Transport};
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

fn pod(addresses: &[&str], agent: Agent) -> Pod {
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
        &pod(&["10.1.0.2"], Agent::Uid(0)),
    );
    assert_golden("one_tcp_port.rules", &iptables_text(&rules));
    assert_golden("one_tcp_port.nft", &nft_text(&rules));
}

#[test]
fn one_tcp_port_of_an_ipv6_pod() {
    let rules = plan(
        &[port(8080, 9900, 1, Transport::Tcp)],
        &pod(&["fd00::2"], Agent::Uid(1001)),
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
    let pod = pod(&["10.1.0.2", "fd00::2"], Agent::Gid(7439));
    let rules = plan(&ports, &pod);
    assert_golden("dual_stack.rules", &iptables_text(&rules));
    assert_golden("dual_stack.nft", &nft_text(&rules));
    assert_golden("dual_stack.json", &json_text(&rules, &pod));
}

#[test]
fn named_ports_alone_need_no_rule() {
    assert_eq!(
        plan(&[named(8080, 9900, 1)], &pod(&["10.1.0.2"], Agent::Uid(0))),
        []
    );
}

/// A connection's first packet, as the rules see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Packet {
    arrives: bool,
    to: SocketAddr,
    transport: Transport,
    by_agent: bool,
    over_loopback: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Untouched,
    LeftAlone,
    ToPort(u16),
    To(SocketAddr),
}

/// Evaluates a chain as the kernel does.
fn fate(rules: &[Rule], chain: Chain, packet: Packet) -> Option<Fate> {
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
                if let Some(fate) = fate(rules, next, packet) {
                    return Some(fate);
                }
            }
            Action::Redirect(port) => return Some(Fate::ToPort(port)),
            Action::Translate(to) => return Some(Fate::To(to)),
            Action::LeaveAlone => return Some(Fate::LeftAlone),
        }
    }
    None
}

fn holds(test: &Test, packet: Packet) -> bool {
    match test {
        Test::To(address) => packet.to.ip() == *address,
        Test::NotTo(address) => packet.to.ip() != *address,
        Test::Over(_) => packet.over_loopback,
        Test::Carried(transport) => packet.transport == *transport,
        Test::From(_) => packet.by_agent,
        Test::NotFrom(_) => !packet.by_agent,
        Test::Port(transport, port) => packet.transport == *transport && packet.to.port() == *port,
    }
}

fn fate_of(rules: &[Rule], packet: Packet) -> Fate {
    let hook = if packet.arrives {
        Chain::Prerouting
    } else {
        Chain::Output
    };
    fate(rules, hook, packet).unwrap_or(Fate::Untouched)
}

/// Policy in other words than the plan's.
fn wanted(ports: &[PortPlan], pod: &Pod, packet: Packet) -> Fate {
    let numeric = || ports.iter().filter(|port| port.numeric);
    let has_family = pod
        .addresses
        .iter()
        .any(|it| it.is_ipv4() == packet.to.is_ipv4());
    if !has_family || numeric().next().is_none() {
        return Fate::Untouched;
    }
    let app = numeric()
        .find(|it| it.transport == packet.transport && it.container_port == packet.to.port());
    let proxy =
        numeric().find(|it| it.transport == packet.transport && it.proxy_port == packet.to.port());
    let to_localhost = packet.to.ip().is_loopback();
    let sees_redirect =
        packet.arrives || (packet.over_loopback && !(packet.by_agent && to_localhost));
    match (app, proxy) {
        (Some(port), _) if sees_redirect => Fate::ToPort(port.agent_port),
        (_, Some(port))
            if sees_redirect && !packet.arrives && pod.addresses.contains(&packet.to.ip()) =>
        {
            Fate::To(SocketAddr::new(packet.to.ip(), port.container_port))
        }
        _ if packet.by_agent => Fate::LeftAlone,
        _ => Fate::Untouched,
    }
}

/// Packets that could be treated differently by any of the rules.
fn packets(ports: &[PortPlan], pod: &Pod) -> Vec<Packet> {
    let elsewhere: [IpAddr; 4] =
        ["127.0.0.1", "::1", "192.0.2.7", "2001:db8::7"].map(|it| it.parse().expect("an address"));
    let mut numbers: Vec<u16> = ports
        .iter()
        .flat_map(|it| [it.container_port, it.agent_port, it.proxy_port])
        .collect();
    numbers.push(1);
    let mut packets = Vec::new();
    for address in pod.addresses.iter().chain(&elsewhere) {
        let own = pod.addresses.contains(address);
        for number in &numbers {
            for transport in [Transport::Tcp, Transport::Udp] {
                let to = SocketAddr::new(*address, *number);
                for by_agent in [false, true] {
                    let over_loopback = own || address.is_loopback();
                    packets.push(Packet {
                        arrives: false,
                        to,
                        transport,
                        by_agent,
                        over_loopback,
                    });
                }
                if own {
                    packets.push(Packet {
                        arrives: true,
                        to,
                        transport,
                        by_agent: false,
                        over_loopback: false,
                    });
                }
            }
        }
    }
    packets
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
        any::<u32>().prop_map(Agent::Uid),
        any::<u32>().prop_map(Agent::Gid)
    ];
    (prop::sample::select(families.to_vec()), agent)
        .prop_map(|(addresses, agent)| pod(addresses, agent))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_packet_goes_where_the_policy_says(ports in any_ports(), pod in any_pod()) {
        let rules = plan(&ports, &pod);
        for packet in packets(&ports, &pod) {
            prop_assert_eq!(fate_of(&rules, packet), wanted(&ports, &pod, packet), "{:?}", packet);
        }
    }

    #[test]
    fn no_rule_is_without_effect(ports in any_ports(), pod in any_pod()) {
        let rules = plan(&ports, &pod);
        let packets = packets(&ports, &pod);
        for at in 0..rules.len() {
            let mut fewer = rules.clone();
            let rule = fewer.remove(at);
            let matters = packets.iter().any(|it| fate_of(&rules, *it) != fate_of(&fewer, *it));
            prop_assert!(matters, "{} is without effect", rule);
        }
    }

    #[test]
    fn the_same_config_gives_the_same_texts(ports in any_ports(), pod in any_pod()) {
        let (first, second) = (plan(&ports, &pod), plan(&ports.clone(), &pod.clone()));
        prop_assert_eq!(iptables_text(&first), iptables_text(&second));
        prop_assert_eq!(nft_text(&first), nft_text(&second));
        prop_assert_eq!(json_text(&first, &pod), json_text(&second, &pod));
    }
}
