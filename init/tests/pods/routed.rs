//! Traffic that is only routed through the pod, and the node's own network.

use std::net::IpAddr;
use std::path::Path;

use agent_init::rule::Transport::Tcp;

use crate::parties::{Party, agent, app, asked, end_of_the_way};
use crate::program::{BACKENDS, Port, Program};
use crate::space::{APP, As, Families, Net, POD_V4, POD_V6, ROOT, Space, all_rules, privileged};

const PORTS: &[Port] = &[Port::tcp(8080, 9900)];
const AGENT: As = As {
    uid: 7777,
    gid: 7439,
};
const INNER: [&str; 2] = ["10.78.0.2", "fd78::2"];

/// A container within the pod, behind an interface of the pod's.
fn nested(net: &Net) -> Space {
    let inner = Space::new();
    net.pod.sh(&format!(
        "ip link add inner type veth peer name cable && ip link set cable netns {} name eth0
         ip address add 10.78.0.1/24 dev inner; ip address add fd78::1/64 nodad dev inner; ip link set inner up
         sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1",
        inner.path()
    ));
    inner.sh(
        "ip link set eth0 up; ip address add 10.78.0.2/24 dev eth0; ip address add fd78::2/64 nodad dev eth0
         ip route add default via 10.78.0.1; ip -6 route add default via fd78::1",
    );
    net.outside.sh(&format!(
        "ip route add 10.78.0.0/24 via {POD_V4}; ip -6 route add fd78::/64 via {POD_V6}"
    ));
    inner
}

#[test]
fn what_is_routed_through_the_pod_is_left_alone() {
    if !privileged() {
        return;
    }
    for backend in BACKENDS {
        let (dir, net) = (tempfile::tempdir().unwrap(), Net::new(Families::Dual));
        let inner = nested(&net);
        Program::new(dir.path(), PORTS, Families::Dual, backend)
            .env("POD_IPS", "10.77.0.2,fd77::2")
            .must(&net.pod);
        agent(&net, AGENT, Tcp, 9900, PORTS[0].proxy_port(PORTS));
        app(&net, APP, Tcp, 8080);
        let addresses: Vec<IpAddr> = INNER.iter().map(|it| it.parse().unwrap()).collect();
        Party {
            space: &inner,
            who: ROOT,
        }
        .serve(Tcp, &addresses, 8080, "inner", end_of_the_way);
        for (nested, pod) in INNER.into_iter().zip([POD_V4, POD_V6]) {
            assert_eq!(
                asked(&net.outside, ROOT, Tcp, nested, 8080),
                "inner",
                "{backend}, a caller of the nested container"
            );
            assert_eq!(
                asked(&net.outside, ROOT, Tcp, pod, 8080),
                "agent9900>app8080",
                "{backend}, a caller of the pod"
            );
        }
    }
}

#[test]
fn the_machines_own_network_is_refused() {
    let machines_own = Path::new("/proc/sys/net/core/netdev_max_backlog").exists();
    if !privileged() || !machines_own {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for backend in ["auto", "nft", "iptables"] {
        let program = Program::new(dir.path(), PORTS, Families::V4, backend);
        let done = program.command().output().unwrap();
        let log = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(64), "{log}");
        for words in ["hostNetwork", "--allow-host-network", "named target port"] {
            assert!(log.contains(words), "{words}: {log}");
        }
    }
}

#[test]
fn a_nodes_network_is_known_by_kube_proxy_and_can_be_allowed() {
    if !privileged() {
        return;
    }
    for proxy in [
        "nft 'table ip kube-proxy { chain services { }; }'",
        "iptables-nft -t nat -N KUBE-SERVICES",
        "iptables-legacy -t nat -N KUBE-SERVICES",
    ] {
        let (dir, space) = (tempfile::tempdir().unwrap(), Space::of_pod());
        space.sh(proxy);
        let before = all_rules(&space);
        let program = Program::new(dir.path(), PORTS, Families::V4, "auto");
        let log = program.must_end_with(&space, 64);
        assert!(log.contains("kube-proxy"), "{log}");
        assert_eq!(all_rules(&space), before, "{proxy}");
        program.argument("--allow-host-network").must(&space);
    }
}
