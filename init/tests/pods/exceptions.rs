//! Exceptions from the redirect, work in another namespace, and connections that were open before.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use agent_init::rule::Transport::{Tcp, Udp};

use crate::mesh::ISTIO;
use crate::parties::{agent, answer_to, app, asked, outsider};
use crate::program::{BACKENDS, Port, Program};
use crate::space::{
    APP, As, Families, Net, OUTSIDE_V4, OUTSIDE_V6, ROOT, Space, all_rules, privileged,
};

const PORTS: &[Port] = &[
    Port::tcp(8080, 9900),
    Port::tcp(8081, 9901),
    Port::udp(5353, 9902),
];
const AGENT: As = As {
    uid: 7777,
    gid: 7439,
};
const EXCLUDED: As = As {
    uid: 4242,
    gid: 4242,
};

fn pod(net: &Net) {
    for port in PORTS {
        app(net, APP, port.transport, port.container_port);
        let proxy_port = port.proxy_port(PORTS);
        agent(net, AGENT, port.transport, port.agent_port, proxy_port);
    }
}

#[test]
fn excluded_ports_callers_and_owners_reach_the_app() {
    if !privileged() {
        return;
    }
    for backend in BACKENDS {
        let (dir, net) = (tempfile::tempdir().unwrap(), Net::new(Families::Dual));
        net.outside
            .sh("ip address add 10.77.0.9/24 dev eth0; ip address add fd77::9/64 nodad dev eth0");
        let program = Program::new(dir.path(), PORTS, Families::Dual, backend)
            .env("POD_IPS", "10.77.0.2,fd77::2")
            .env("AGENT_EXCLUDE_INBOUND_PORTS", "8081,5353/udp")
            .env("AGENT_EXCLUDE_INBOUND_CIDRS", "10.77.0.9/32,fd77::9")
            .argument("--exclude-uids=4242");
        let log = program.must(&net.pod);
        assert!(log.contains("TCP 8081 (c1): excluded"), "{log}");
        pod(&net);
        for address in net.families.pod() {
            let to = |port| SocketAddr::new(address.parse().unwrap(), port);
            let source = if address.contains(':') {
                OUTSIDE_V6
            } else {
                OUTSIDE_V4
            };
            let source = Some(source.parse().unwrap());
            let caller = |port| net.outside.run(ROOT, || answer_to(source, to(port)));
            assert_eq!(caller(8080), "agent9900>app8080", "{backend}");
            assert_eq!(caller(8081), "app8081", "{backend}");
            let neighbour = |who, port| asked(&net.pod, who, Tcp, address, port);
            assert_eq!(neighbour(APP, 8080), "agent9900>app8080", "{backend}");
            assert_eq!(neighbour(APP, 8081), "app8081", "{backend}");
            assert_eq!(neighbour(EXCLUDED, 8080), "app8080", "{backend}");
            let datagram = asked(&net.outside, ROOT, Udp, address, 5353);
            assert_eq!(datagram, "app5353", "{backend}");
        }
        for (source, to) in [("10.77.0.9", "10.77.0.2"), ("fd77::9", "fd77::2")] {
            let to = SocketAddr::new(to.parse().unwrap(), 8080);
            let source = Some(source.parse().unwrap());
            let answer = net.outside.run(ROOT, || answer_to(source, to));
            assert_eq!(answer, "app8080", "{backend}");
        }
        program.clone().argument("--check").must(&net.pod);
        program.remove(&net.pod);
        assert!(!all_rules(&net.pod).contains("TEL_"), "{backend}");
    }
}

#[test]
fn an_exclusion_of_the_agent_itself_is_refused() {
    if !privileged() {
        return;
    }
    let (dir, space) = (tempfile::tempdir().unwrap(), Space::of_pod());
    let log = Program::new(dir.path(), PORTS, Families::V4, "nft")
        .argument("--exclude-gids=7439")
        .must_end_with(&space, 64);
    assert!(log.contains("gid 7439 is excluded"), "{log}");
}

#[test]
fn names_and_mesh_subnets_are_asked_for_through_the_mesh() {
    if !privileged() {
        return;
    }
    for (backend, flavour) in BACKENDS.into_iter().zip(["nft", "nft", "legacy"]) {
        let (dir, net) = (tempfile::tempdir().unwrap(), Net::new(Families::Dual));
        ISTIO.program(&net.pod, flavour);
        Program::new(dir.path(), PORTS, Families::Dual, backend)
            .env("POD_IPS", "10.77.0.2,fd77::2")
            .env("AGENT_MESH_DIAL_SUBNETS", "10.79.0.0/16,fd79::/64")
            .must(&net.pod);
        let _proxy = ISTIO.start(&net);
        for port in [53, 443] {
            outsider(&net, Tcp, port);
        }
        for (address, meshed) in [(OUTSIDE_V4, "10.79.0.1"), (OUTSIDE_V6, "fd79::1")] {
            let agents = |address, port| asked(&net.pod, AGENT, Tcp, address, port);
            assert_eq!(agents(address, 443), "outside", "{backend}");
            assert_eq!(agents(address, 53), "mesh>out", "{backend}");
            net.pod.sh(
                "ip route replace default via 10.77.0.1; ip -6 route replace default via fd77::1",
            );
            assert_eq!(agents(meshed, 443), "mesh>out", "{backend}");
        }
    }
}

#[test]
fn the_node_works_in_a_pods_namespace() {
    if !privileged() {
        return;
    }
    for backend in BACKENDS {
        let (dir, net) = (tempfile::tempdir().unwrap(), Net::new(Families::Dual));
        let elsewhere = Space::of_pod();
        let program = Program::new(dir.path(), PORTS, Families::Dual, backend)
            .env("POD_IP", "")
            .env("AGENT_GID", "")
            .argument(&format!("--netns={}", net.pod.path()));
        let log = program.must(&elsewhere);
        assert!(log.contains("gid 7439"), "{log}");
        assert_eq!(all_rules(&elsewhere), "", "{backend}");
        pod(&net);
        for address in net.families.pod() {
            let answer = asked(&net.outside, ROOT, Tcp, address, 8080);
            assert_eq!(answer, "agent9900>app8080", "{backend}");
        }
        program.clone().argument("--check").must(&elsewhere);
        program.argument("--remove").must(&elsewhere);
        assert!(!all_rules(&net.pod).contains("TEL_"), "{backend}");
    }
}

#[test]
fn a_namespace_that_is_none_is_the_users_mistake() {
    if !privileged() {
        return;
    }
    let (dir, space) = (tempfile::tempdir().unwrap(), Space::of_pod());
    for path in ["/nowhere", "/etc/hostname", "/proc/self/ns/pid"] {
        let log = Program::new(dir.path(), PORTS, Families::V4, "nft")
            .argument(&format!("--netns={path}"))
            .must_end_with(&space, 64);
        assert!(log.contains(path), "{log}");
    }
}

#[test]
fn connections_that_were_open_meet_the_rules_that_come() {
    if !privileged() {
        return;
    }
    for backend in BACKENDS {
        let (dir, net) = (tempfile::tempdir().unwrap(), Net::new(Families::Dual));
        // Something has to make the kernel track connections before our rules do.
        net.pod.sh(
            "nft 'table inet track { chain in { type filter hook input priority 0; ct state \
                 new counter; }; }'",
        );
        for address in net.families.pod() {
            let at = |port| SocketAddr::new(address.parse().unwrap(), port);
            let (to, other) = (at(8080), at(6060));
            let listeners = net
                .pod
                .run(APP, || [to, other].map(|to| TcpListener::bind(to).unwrap()));
            let open = |to: SocketAddr| net.outside.run(ROOT, || TcpStream::connect(to).unwrap());
            let (mut redirected, mut untouched) = (open(to), open(other));
            let mut accepted = listeners.map(|it| it.accept().unwrap().0);
            for stream in [&mut redirected, &mut untouched] {
                stream
                    .set_read_timeout(Some(Duration::from_secs(20)))
                    .unwrap();
                stream.write_all(b"a").unwrap();
            }
            for stream in &mut accepted {
                stream.read_exact(&mut [0]).unwrap();
            }
            let program = Program::new(dir.path(), PORTS, Families::Dual, backend)
                .env("POD_IPS", "10.77.0.2,fd77::2");
            let log = program.must(&net.pod);
            assert!(log.contains("dropped 1 tracked connections"), "{log}");
            // Its next packet meets the rules, and the agent knows no such connection.
            let _ = redirected.write_all(b"b");
            let error = redirected.read(&mut [0]).unwrap_err();
            let reset = std::io::ErrorKind::ConnectionReset;
            assert_eq!(error.kind(), reset, "{backend} {address}");
            untouched.write_all(b"b").unwrap();
            accepted[1].read_exact(&mut [0]).unwrap();
            // A run that changes nothing cuts nothing.
            assert!(!program.must(&net.pod).contains("dropped"));
            program.remove(&net.pod);
        }
    }
}
