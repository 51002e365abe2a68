//! Destinations of connections, found by connecting: every backend, family, transport and number of
//! ports.

use agent_init::rule::Transport;

use crate::parties::{agent, app, asked, outsider};
use crate::program::{Port, Program};
use crate::space::{APP, As, Families, Net, POD_V4, POD_V6, ROOT, privileged};

const AGENT: As = As {
    uid: 7777,
    gid: 7439,
};

/// Sets a pod up and connects to every port in it.
fn everybody_lands_where_the_plan_says(backend: &str, ports: &[Port], agent_mark: (&str, u32)) {
    if !privileged() {
        return;
    }
    for families in Families::ALL {
        let dir = tempfile::tempdir().unwrap();
        let net = Net::new(families);
        let program = Program::new(dir.path(), ports, families, backend)
            .env("AGENT_GID", "")
            .env(agent_mark.0, &agent_mark.1.to_string());
        let log = program.must(&net.pod);
        for port in ports {
            assert!(
                log.contains(&format!("{} {}", port.transport, port.container_port)),
                "{log}"
            );
            app(&net, APP, port.transport, port.container_port);
            agent(
                &net,
                AGENT,
                port.transport,
                port.agent_port,
                port.proxy_port(ports),
            );
            outsider(&net, port.transport, 20_000 + port.container_port);
        }
        for port in ports {
            ask_around(&net, port, port.proxy_port(ports), backend);
        }
    }
}

fn ask_around(net: &Net, port: &Port, proxy_port: u16, backend: &str) {
    let (transport, number) = (port.transport, port.container_port);
    let by_itself = format!("app{number}");
    let by_agent = format!("agent{}>app{number}", port.agent_port);
    let expected = if port.numeric { &by_agent } else { &by_itself };
    let families = net.families;
    let check = |got: String, wanted: &str, what: &str| {
        assert_eq!(
            got, wanted,
            "{backend}, {families:?}, {transport} {number}, {what}"
        );
    };

    for address in families.pod() {
        check(
            asked(&net.outside, ROOT, transport, address, number),
            expected,
            "a caller from elsewhere",
        );
        check(
            asked(&net.pod, APP, transport, address, number),
            expected,
            "a neighbour, at the pod's address",
        );
        check(
            asked(&net.pod, ROOT, transport, address, number),
            expected,
            "a neighbour that is root",
        );
        check(
            asked(&net.pod, AGENT, transport, address, number),
            expected,
            "the agent, at the pod's address",
        );
        let proxy = if port.numeric {
            by_itself.as_str()
        } else {
            "refused"
        };
        check(
            asked(&net.pod, AGENT, transport, address, proxy_port),
            proxy,
            "the agent, at its proxy port",
        );
        check(
            asked(&net.outside, ROOT, transport, address, proxy_port),
            "refused",
            "the proxy port, from elsewhere",
        );
    }
    for localhost in families.localhosts() {
        check(
            asked(&net.pod, APP, transport, localhost, number),
            expected,
            "a neighbour, on loopback",
        );
        check(
            asked(&net.pod, AGENT, transport, localhost, number),
            &by_itself,
            "the agent, on loopback",
        );
    }
    if families == Families::V4 {
        check(
            asked(&net.pod, APP, transport, "::1", number),
            &by_itself,
            "a family without an address is left alone",
        );
    }
    for address in families.outside() {
        check(
            asked(&net.pod, AGENT, transport, address, 20_000 + number),
            "outside",
            "the agent, elsewhere",
        );
        check(
            asked(&net.pod, APP, transport, address, 20_000 + number),
            "outside",
            "the app, elsewhere",
        );
    }
}

const GROUP: (&str, u32) = ("AGENT_GID", AGENT.gid);
const USER: (&str, u32) = ("AGENT_UID", AGENT.uid);
const ONE_TCP: &[Port] = &[Port::tcp(8080, 9900)];
const ONE_UDP: &[Port] = &[Port::udp(5353, 9900)];
const SEVERAL: &[Port] = &[
    Port::tcp(8080, 9900),
    Port::udp(5353, 9901),
    Port::tcp(9090, 9902),
    Port::tcp(7070, 9903).named(),
];

#[test]
fn nft_one_tcp_port() {
    everybody_lands_where_the_plan_says("nft", ONE_TCP, GROUP);
}

#[test]
fn nft_one_udp_port() {
    everybody_lands_where_the_plan_says("nft", ONE_UDP, USER);
}

#[test]
fn nft_several_ports_beside_a_named_one() {
    everybody_lands_where_the_plan_says("nft", SEVERAL, GROUP);
}

#[test]
fn iptables_nft_one_tcp_port() {
    everybody_lands_where_the_plan_says("iptables-nft", ONE_TCP, USER);
}

#[test]
fn iptables_nft_one_udp_port() {
    everybody_lands_where_the_plan_says("iptables-nft", ONE_UDP, GROUP);
}

#[test]
fn iptables_nft_several_ports_beside_a_named_one() {
    everybody_lands_where_the_plan_says("iptables-nft", SEVERAL, USER);
}

#[test]
fn iptables_legacy_one_tcp_port() {
    everybody_lands_where_the_plan_says("iptables-legacy", ONE_TCP, GROUP);
}

#[test]
fn iptables_legacy_one_udp_port() {
    everybody_lands_where_the_plan_says("iptables-legacy", ONE_UDP, USER);
}

#[test]
fn iptables_legacy_several_ports_beside_a_named_one() {
    everybody_lands_where_the_plan_says("iptables-legacy", SEVERAL, GROUP);
}

#[test]
fn an_app_with_the_agents_user_is_told_apart_by_the_group() {
    if !privileged() {
        return;
    }
    let ports = ONE_TCP;
    let app_as = As {
        uid: AGENT.uid,
        gid: 1000,
    };
    for backend in crate::program::BACKENDS {
        let dir = tempfile::tempdir().unwrap();
        let net = Net::new(Families::V4);
        let program = Program::new(dir.path(), ports, Families::V4, backend);
        program.must(&net.pod);
        app(&net, app_as, Transport::Tcp, 8080);
        agent(
            &net,
            AGENT,
            Transport::Tcp,
            9900,
            ports[0].proxy_port(ports),
        );
        assert_eq!(
            asked(&net.pod, app_as, Transport::Tcp, "127.0.0.1", 8080),
            "agent9900>app8080",
            "{backend}"
        );
        assert_eq!(
            asked(&net.pod, AGENT, Transport::Tcp, "127.0.0.1", 8080),
            "app8080",
            "{backend}"
        );
        assert_eq!(
            asked(
                &net.pod,
                AGENT,
                Transport::Tcp,
                POD_V4,
                ports[0].proxy_port(ports)
            ),
            "app8080",
            "{backend}"
        );
        // A group the app may have is refused, and what was in force goes.
        let log = program.env("AGENT_GID", "0").must_end_with(&net.pod, 64);
        assert!(
            log.contains("AGENT_GID=0") && log.contains("could match the app"),
            "{log}"
        );
        assert_eq!(
            asked(&net.outside, ROOT, Transport::Tcp, POD_V4, 8080),
            "app8080",
            "{backend}"
        );
    }
}

#[test]
fn without_a_group_the_programs_own_user_is_the_agents_and_a_warning_says_so() {
    if !privileged() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let net = Net::new(Families::V4);
    let program = Program::new(dir.path(), ONE_TCP, Families::V4, "nft").env("AGENT_GID", "");
    let log = program.must(&net.pod);
    assert!(
        log.contains("uid 0") && log.contains("treated as the agent"),
        "{log}"
    );
    app(&net, APP, Transport::Tcp, 8080);
    agent(
        &net,
        ROOT,
        Transport::Tcp,
        9900,
        ONE_TCP[0].proxy_port(ONE_TCP),
    );
    assert_eq!(
        asked(&net.outside, ROOT, Transport::Tcp, POD_V4, 8080),
        "agent9900>app8080"
    );
    assert_eq!(
        asked(&net.pod, ROOT, Transport::Tcp, "127.0.0.1", 8080),
        "app8080"
    );
}

#[test]
fn addresses_and_loopback_are_found_without_being_told() {
    if !privileged() {
        return;
    }
    for backend in crate::program::BACKENDS {
        let dir = tempfile::tempdir().unwrap();
        let net = Net::new(Families::Dual);
        // The loopback is known by its flag, whatever its name.
        net.pod
            .sh("ip link set lo down; ip link set lo name loop0; ip link set loop0 up");
        let program = Program::new(dir.path(), ONE_TCP, Families::Dual, backend).env("POD_IP", "");
        let log = program.must(&net.pod);
        assert!(log.contains(POD_V4) && log.contains(POD_V6), "{log}");
        app(&net, APP, Transport::Tcp, 8080);
        agent(
            &net,
            AGENT,
            Transport::Tcp,
            9900,
            ONE_TCP[0].proxy_port(ONE_TCP),
        );
        for address in [POD_V4, POD_V6, "127.0.0.1", "::1"] {
            assert_eq!(
                asked(&net.pod, APP, Transport::Tcp, address, 8080),
                "agent9900>app8080",
                "{backend} {address}"
            );
        }
    }
}

#[test]
fn hundreds_of_ports_fit_into_a_transaction() {
    if !privileged() {
        return;
    }
    let ports: Vec<Port> = (0..300)
        .map(|at| Port::tcp(10_000 + at, 20_000 + at))
        .collect();
    for backend in crate::program::BACKENDS {
        let dir = tempfile::tempdir().unwrap();
        let net = Net::new(Families::Dual);
        let program = Program::new(dir.path(), &ports, Families::Dual, backend)
            .env("POD_IPS", "10.77.0.2,fd77::2");
        program.must(&net.pod);
        program.clone().argument("--check").must(&net.pod);
        app(&net, APP, Transport::Tcp, 10_299);
        agent(
            &net,
            AGENT,
            Transport::Tcp,
            20_299,
            ports[299].proxy_port(&ports),
        );
        assert_eq!(
            asked(&net.outside, ROOT, Transport::Tcp, POD_V6, 10_299),
            "agent20299>app10299",
            "{backend}"
        );
        program.remove(&net.pod);
        assert!(
            !crate::space::all_rules(&net.pod).contains("TEL_"),
            "{backend}"
        );
    }
}
