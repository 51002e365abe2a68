//! Pods beside a mesh: the published capture chains of Istio and of Linkerd, put there before or
//! after our rules, and little proxies that stand where the mesh's would.

use std::io::Read as _;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use agent_init::rule::Transport::Tcp;

use crate::parties::{Party, agent, answer_to, app, asked, outsider, pod_addresses};
use crate::program::{Port, Program};
use crate::space::{
    APP, As, Families, Net, OUTSIDE_V4, OUTSIDE_V6, ROOT, Space, all_rules, privileged,
    without_counters,
};

const AGENT: As = As {
    uid: 7777,
    gid: 7439,
};
const PORTS: &[Port] = &[Port::tcp(8080, 9900), Port::tcp(7070, 9901).named()];
/// A port of the app that no Service names and no agent knows.
const OTHER: u16 = 6060;
const FAR: u16 = 443;

/// Mesh as far as the pod's rules know it.
#[derive(Clone, Copy)]
pub(crate) struct Mesh {
    name: &'static str,
    who: As,
    inbound: u16,
    outbound: u16,
    rules: fn(v6: bool) -> String,
    /// True when callers are assigned to its listener, and not redirected to it.
    transparent: bool,
}

pub(crate) const ISTIO: Mesh = Mesh {
    name: "istio",
    who: As {
        uid: 1337,
        gid: 1337,
    },
    inbound: 15006,
    outbound: 15001,
    rules: istio,
    transparent: false,
};
const ISTIO_TPROXY: Mesh = Mesh {
    name: "istio in TPROXY mode",
    // Transparent sockets take rights.
    who: As { uid: 0, gid: 1337 },
    inbound: 15006,
    outbound: 15001,
    rules: istio_tproxy,
    transparent: true,
};
const LINKERD: Mesh = Mesh {
    name: "linkerd",
    who: As {
        uid: 2102,
        gid: 2102,
    },
    inbound: 4143,
    outbound: 4140,
    rules: linkerd,
    transparent: false,
};

fn istio(v6: bool) -> String {
    let (local, passthrough) = if v6 {
        ("::1/128", "::6/128")
    } else {
        ("127.0.0.1/32", "127.0.0.6/32")
    };
    format!(
        "*nat\n:ISTIO_INBOUND - [0:0]\n:ISTIO_IN_REDIRECT - [0:0]\n:ISTIO_OUTPUT - \
         [0:0]\n:ISTIO_REDIRECT - [0:0]\n-A PREROUTING -p tcp -j ISTIO_INBOUND\n-A OUTPUT -p tcp \
         -j ISTIO_OUTPUT\n-A ISTIO_INBOUND -p tcp --dport 15008 -j RETURN\n-A ISTIO_INBOUND -p tcp \
         --dport 15090 -j RETURN\n-A ISTIO_INBOUND -p tcp --dport 15021 -j RETURN\n-A \
         ISTIO_INBOUND -p tcp --dport 15020 -j RETURN\n-A ISTIO_INBOUND -p tcp -j \
         ISTIO_IN_REDIRECT\n-A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006\n-A \
         ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001\n-A ISTIO_OUTPUT -s {passthrough} -o \
         lo -j RETURN\n-A ISTIO_OUTPUT ! -d {local} -o lo -p tcp -m tcp ! --dport 15008 -m owner \
         --uid-owner 1337 -j ISTIO_IN_REDIRECT\n-A ISTIO_OUTPUT -o lo -m owner ! --uid-owner 1337 \
         -j RETURN\n-A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN\n-A ISTIO_OUTPUT ! -d \
         {local} -o lo -p tcp -m tcp ! --dport 15008 -m owner --gid-owner 1337 -j \
         ISTIO_IN_REDIRECT\n-A ISTIO_OUTPUT -o lo -m owner ! --gid-owner 1337 -j RETURN\n-A \
         ISTIO_OUTPUT -m owner --gid-owner 1337 -j RETURN\n-A ISTIO_OUTPUT -d {local} -j \
         RETURN\n-A ISTIO_OUTPUT -j ISTIO_REDIRECT\nCOMMIT\n"
    )
}

fn istio_tproxy(v6: bool) -> String {
    let (local, passthrough) = if v6 {
        ("::1/128", "::6/128")
    } else {
        ("127.0.0.1/32", "127.0.0.6/32")
    };
    format!(
        "*mangle\n:ISTIO_INBOUND - [0:0]\n:ISTIO_DIVERT - [0:0]\n:ISTIO_TPROXY - [0:0]\n-A \
         PREROUTING -p tcp -j ISTIO_INBOUND\n-A PREROUTING -p tcp -m mark --mark 1337 -j CONNMARK \
         --save-mark\n-A OUTPUT -p tcp -m connmark --mark 1337 -j CONNMARK --restore-mark\n-A \
         ISTIO_DIVERT -j MARK --set-mark 1337\n-A ISTIO_DIVERT -j ACCEPT\n-A ISTIO_TPROXY ! -d \
         {local} -p tcp -j TPROXY --tproxy-mark 1337/0xffffffff --on-port 15006\n-A ISTIO_INBOUND \
         -p tcp -m mark --mark 1337 -j RETURN\n-A ISTIO_INBOUND -p tcp -s {passthrough} -i lo -j \
         RETURN\n-A ISTIO_INBOUND -p tcp -i lo -m mark ! --mark 1337 -j RETURN\n-A ISTIO_INBOUND \
         -p tcp --dport 15008 -j RETURN\n-A ISTIO_INBOUND -p tcp --dport 15090 -j RETURN\n-A \
         ISTIO_INBOUND -p tcp --dport 15021 -j RETURN\n-A ISTIO_INBOUND -p tcp -m conntrack \
         --ctstate RELATED,ESTABLISHED -j ISTIO_DIVERT\n-A ISTIO_INBOUND -p tcp -j \
         ISTIO_TPROXY\nCOMMIT\n*nat\n:ISTIO_OUTPUT - [0:0]\n:ISTIO_REDIRECT - [0:0]\n-A OUTPUT -p \
         tcp -j ISTIO_OUTPUT\n-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001\n-A \
         ISTIO_OUTPUT -s {passthrough} -o lo -j RETURN\n-A ISTIO_OUTPUT -o lo -m owner ! \
         --gid-owner 1337 -j RETURN\n-A ISTIO_OUTPUT -m owner --gid-owner 1337 -j RETURN\n-A \
         ISTIO_OUTPUT -d {local} -j RETURN\n-A ISTIO_OUTPUT -j ISTIO_REDIRECT\nCOMMIT\n"
    )
}

fn linkerd(_: bool) -> String {
    "*nat\n:PROXY_INIT_REDIRECT - [0:0]\n:PROXY_INIT_OUTPUT - [0:0]\n-A PREROUTING -m comment \
     --comment install-proxy-init-prerouting -j PROXY_INIT_REDIRECT\n-A OUTPUT -m comment \
     --comment install-proxy-init-output -j PROXY_INIT_OUTPUT\n-A PROXY_INIT_REDIRECT -p tcp -m \
     multiport --dports 4190,4191,4567,4568 -j RETURN\n-A PROXY_INIT_REDIRECT -p tcp -j REDIRECT \
     --to-ports 4143\n-A PROXY_INIT_OUTPUT -m owner --uid-owner 2102 -j RETURN\n-A \
     PROXY_INIT_OUTPUT -o lo -j RETURN\n-A PROXY_INIT_OUTPUT -p tcp -m multiport --dports \
     4567,4568 -j RETURN\n-A PROXY_INIT_OUTPUT -p tcp -j REDIRECT --to-ports 4140\nCOMMIT\n"
        .to_owned()
}

impl Mesh {
    pub(crate) fn program(self, space: &Space, flavour: &str) {
        for (program, v6) in [("iptables", false), ("ip6tables", true)] {
            space.sh(&format!(
                "{program}-{flavour}-restore --noflush <<END\n{}END",
                (self.rules)(v6)
            ));
        }
        if self.transparent {
            space.sh(
                "for family in -4 -6; do ip $family rule add fwmark 1337 lookup 133; \
                 ip $family route add local default dev lo table 133; done",
            );
        }
    }

    /// Starts its two listeners: what comes in is carried to its destination, from the address the
    /// mesh's own rules let pass; what goes out is announced.
    pub(crate) fn start(self, net: &Net) -> Option<TransparentProxy> {
        let party = Party {
            space: &net.pod,
            who: self.who,
        };
        net.pod.sh("ip -6 address add ::6/128 dev lo nodad");
        let carry = move |to: SocketAddr| {
            let source = match (self.name, to.is_ipv4()) {
                ("istio", true) => Some("127.0.0.6".parse().unwrap()),
                ("istio", false) => Some("::6".parse().unwrap()),
                _ => None,
            };
            answer_to(source, to)
        };
        party.serve(Tcp, &pod_addresses(net), self.outbound, "mesh>", |_| {
            "out".to_owned()
        });
        if self.transparent {
            return Some(TransparentProxy::start(net, self.who, self.inbound));
        }
        party.serve(Tcp, &pod_addresses(net), self.inbound, "mesh>", carry);
        None
    }
}

/// Proxy that takes callers by TPROXY and connects in their name.
pub(crate) struct TransparentProxy(Child);

impl TransparentProxy {
    fn start(net: &Net, who: As, port: u16) -> Self {
        let mut child = net.pod.run(who, || {
            Command::new("python3")
                .arg("-c")
                .arg(include_str!("transparent_mesh.py"))
                .arg(port.to_string())
                .args([8080, 7070, OTHER].map(|port| port.to_string()))
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        });
        let mut ready = [0; 6];
        child
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut ready)
            .unwrap();
        Self(child)
    }
}

impl Drop for TransparentProxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Lists the mesh's own rules in a flavour's tables.
pub(crate) fn mesh_rules(space: &Space, flavour: &str) -> Vec<String> {
    let both = ["iptables", "ip6tables"].map(|it| {
        space.sh(&format!(
            "for table in nat mangle; do {it}-{flavour}-save -t $table 2>/dev/null; done"
        ))
    });
    both.iter()
        .flat_map(|saved| without_counters(saved))
        .filter(|line| !line.contains("TEL_"))
        .collect()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    MeshFirst,
    MeshLater,
}

fn beside(mesh: Mesh, flavour: &str, backend: &str, order: Order) {
    if !privileged() {
        return;
    }
    let (dir, net, alone) = (
        tempfile::tempdir().unwrap(),
        Net::new(Families::Dual),
        Space::new(),
    );
    mesh.program(&alone, flavour);
    let untouched = mesh_rules(&alone, flavour);
    let program = Program::new(dir.path(), PORTS, Families::Dual, backend);
    if order == Order::MeshFirst {
        mesh.program(&net.pod, flavour);
        program.must(&net.pod);
    } else {
        program.must(&net.pod);
        mesh.program(&net.pod, flavour);
    }
    assert_eq!(
        mesh_rules(&net.pod, flavour),
        untouched,
        "the mesh's rules are as they were"
    );
    if backend == "nft" {
        assert!(
            !net.pod
                .sh(&format!("iptables-{flavour}-save 2>/dev/null"))
                .contains("TEL_")
        );
    }

    let _proxy = mesh.start(&net);
    agent(&net, AGENT, Tcp, 9900, PORTS[0].proxy_port(PORTS));
    for port in [8080, 7070, OTHER] {
        app(&net, APP, Tcp, port);
    }
    outsider(&net, Tcp, FAR);
    // The one limit: rules of one table stand in the order in which they came.
    let mesh_meets_callers_first =
        backend == "nft" || order == Order::MeshFirst || mesh.transparent;
    let inbound = if mesh_meets_callers_first {
        "mesh>agent9900>app8080"
    } else {
        "agent9900>app8080"
    };
    for address in net.families.pod() {
        let proxy_port = PORTS[0].proxy_port(PORTS);
        assert_eq!(
            asked(&net.outside, ROOT, Tcp, address, 8080),
            inbound,
            "a caller of the app"
        );
        assert_eq!(
            asked(&net.outside, ROOT, Tcp, address, 7070),
            "mesh>app7070",
            "a caller of the named port"
        );
        assert_eq!(
            asked(&net.outside, ROOT, Tcp, address, OTHER),
            "mesh>app6060",
            "a caller of another port"
        );
        assert_eq!(
            asked(&net.pod, APP, Tcp, address, 8080),
            "agent9900>app8080",
            "the app, at its pod's address"
        );
        assert_eq!(
            asked(&net.pod, APP, Tcp, address, OTHER),
            "app6060",
            "the app, at another port of its pod"
        );
        assert_eq!(
            asked(&net.pod, AGENT, Tcp, address, proxy_port),
            "app8080",
            "the agent, to the app"
        );
    }
    for address in [OUTSIDE_V4, OUTSIDE_V6] {
        assert_eq!(
            asked(&net.pod, APP, Tcp, address, FAR),
            "mesh>out",
            "the app's calls are captured"
        );
        assert_eq!(
            asked(&net.pod, AGENT, Tcp, address, FAR),
            "outside",
            "the agent's are not"
        );
    }
    assert_eq!(
        asked(&net.pod, AGENT, Tcp, "127.0.0.1", 8080),
        "app8080",
        "the agent, on loopback"
    );

    program.remove(&net.pod);
    assert_eq!(
        mesh_rules(&net.pod, flavour),
        untouched,
        "also after ours are gone"
    );
    assert!(!all_rules(&net.pod).contains("TEL_"));
}

macro_rules! meshes {
    ($($name:ident: $mesh:expr, $flavour:literal, $backend:literal, $order:expr;)*) => {
        $(#[test] fn $name() { beside($mesh, $flavour, $backend, $order); })*
    };
}

meshes! {
    nft_beside_istio_of_iptables_nft: ISTIO, "nft", "nft", Order::MeshFirst;
    nft_beside_istio_of_iptables_legacy: ISTIO, "legacy", "nft", Order::MeshFirst;
    nft_before_istio_of_iptables_nft: ISTIO, "nft", "nft", Order::MeshLater;
    nft_before_istio_of_iptables_legacy: ISTIO, "legacy", "nft", Order::MeshLater;
    nft_beside_istio_tproxy_of_iptables_nft: ISTIO_TPROXY, "nft", "nft", Order::MeshFirst;
    nft_beside_istio_tproxy_of_iptables_legacy: ISTIO_TPROXY, "legacy", "nft", Order::MeshFirst;
    nft_before_istio_tproxy_of_iptables_nft: ISTIO_TPROXY, "nft", "nft", Order::MeshLater;
    nft_before_istio_tproxy_of_iptables_legacy: ISTIO_TPROXY, "legacy", "nft", Order::MeshLater;
    iptables_beside_istio_tproxy_of_the_nft_flavour: ISTIO_TPROXY, "nft", "iptables", Order::MeshFirst;
    iptables_beside_istio_tproxy_of_the_legacy_flavour: ISTIO_TPROXY, "legacy", "iptables", Order::MeshFirst;
    iptables_nft_before_istio_tproxy: ISTIO_TPROXY, "nft", "iptables-nft", Order::MeshLater;
    iptables_legacy_before_istio_tproxy: ISTIO_TPROXY, "legacy", "iptables-legacy", Order::MeshLater;
    nft_beside_linkerd_of_iptables_nft: LINKERD, "nft", "nft", Order::MeshFirst;
    nft_beside_linkerd_of_iptables_legacy: LINKERD, "legacy", "nft", Order::MeshFirst;
    nft_before_linkerd_of_iptables_nft: LINKERD, "nft", "nft", Order::MeshLater;
    nft_before_linkerd_of_iptables_legacy: LINKERD, "legacy", "nft", Order::MeshLater;
    iptables_beside_istio_of_the_nft_flavour: ISTIO, "nft", "iptables", Order::MeshFirst;
    iptables_beside_istio_of_the_legacy_flavour: ISTIO, "legacy", "iptables", Order::MeshFirst;
    iptables_nft_before_istio: ISTIO, "nft", "iptables-nft", Order::MeshLater;
    iptables_legacy_before_istio: ISTIO, "legacy", "iptables-legacy", Order::MeshLater;
    iptables_beside_linkerd_of_the_nft_flavour: LINKERD, "nft", "iptables", Order::MeshFirst;
    iptables_beside_linkerd_of_the_legacy_flavour: LINKERD, "legacy", "iptables", Order::MeshFirst;
    iptables_nft_before_linkerd: LINKERD, "nft", "iptables-nft", Order::MeshLater;
    iptables_legacy_before_linkerd: LINKERD, "legacy", "iptables-legacy", Order::MeshLater;
}
