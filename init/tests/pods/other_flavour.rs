//! A mesh in one flavour's tables and an image with the programs of the other: the order is right,
//! or the program says that it cannot be.

use agent_init::rule::Transport::Tcp;

use crate::mesh::{ISTIO, mesh_rules};
use crate::parties::{agent, app, asked, outsider};
use crate::program::{Port, Program};
use crate::space::{APP, As, Families, Net, OUTSIDE_V4, POD_V4, ROOT, all_rules, privileged};

const PORTS: &[Port] = &[Port::tcp(8080, 9900)];
const AGENT: As = As {
    uid: 7777,
    gid: 7439,
};
const FAR: u16 = 443;

/// Script that leaves the programs of one flavour in the image.
fn image_with(flavour: &str, dir: &std::path::Path) -> String {
    let image = dir.join("sbin");
    std::fs::create_dir(&image).unwrap();
    let multi = format!("xtables-{flavour}-multi");
    std::fs::copy(
        std::path::Path::new("/usr/sbin").join(&multi),
        image.join(&multi),
    )
    .unwrap();
    for name in ["iptables", "ip6tables"] {
        for what in ["save", "restore"] {
            std::os::unix::fs::symlink(&multi, image.join(format!("{name}-{what}"))).unwrap();
        }
    }
    format!("mount --bind {} /usr/sbin && exec \"$@\"", image.display())
}

fn callers_meet_the_mesh_first(net: &Net) {
    let _proxy = ISTIO.start(net);
    agent(net, AGENT, Tcp, 9900, PORTS[0].proxy_port(PORTS));
    app(net, APP, Tcp, 8080);
    outsider(net, Tcp, FAR);
    assert_eq!(
        asked(&net.outside, ROOT, Tcp, POD_V4, 8080),
        "mesh>agent9900>app8080"
    );
    assert_eq!(asked(&net.pod, AGENT, Tcp, OUTSIDE_V4, FAR), "outside");
    assert_eq!(asked(&net.pod, APP, Tcp, OUTSIDE_V4, FAR), "mesh>out");
}

#[test]
fn an_image_with_the_other_flavour_uses_netlink_and_says_so() {
    if !privileged() {
        return;
    }
    for (image, mesh) in [("nft", "legacy"), ("legacy", "nft")] {
        let (dir, net) = (tempfile::tempdir().unwrap(), Net::new(Families::Dual));
        ISTIO.program(&net.pod, mesh);
        let script = image_with(image, dir.path());
        let under = ["unshare", "--mount", "sh", "-c", &script, "sh"];
        let program = Program::new(dir.path(), PORTS, Families::Dual, "iptables").under(&under);
        let log = program.must(&net.pod);
        assert!(log.contains("; nft,") && log.contains("using nft"), "{log}");
        callers_meet_the_mesh_first(&net);
    }
}

#[test]
fn a_flavour_that_would_be_met_in_the_wrong_order_is_refused_with_the_remedy() {
    if !privileged() {
        return;
    }
    for (asked_for, mesh) in [("iptables-nft", "legacy"), ("iptables-legacy", "nft")] {
        let (dir, net) = (tempfile::tempdir().unwrap(), Net::new(Families::Dual));
        ISTIO.program(&net.pod, mesh);
        let untouched = mesh_rules(&net.pod, mesh);
        let program = Program::new(dir.path(), PORTS, Families::Dual, asked_for);
        let log = program.must_end_with(&net.pod, 69);
        for words in ["wrong order", "--backend auto"] {
            assert!(log.contains(words), "{words}: {log}");
        }
        assert_eq!(mesh_rules(&net.pod, mesh), untouched);
        assert!(!all_rules(&net.pod).contains("TEL_"));
    }
}

#[test]
fn a_mesh_in_tables_of_its_own_is_beside_the_netlink_backend_only() {
    if !privileged() {
        return;
    }
    let (dir, net) = (tempfile::tempdir().unwrap(), Net::new(Families::V4));
    let table = "table inet istio-proxy-nat {
        chain prerouting { type nat hook prerouting priority dstnat; meta l4proto tcp redirect to :15006; };
        chain output { type nat hook output priority -100; oifname lo return; meta skuid 1337 return;
            meta l4proto tcp redirect to :15001; }; }";
    net.pod.sh(&format!("nft '{table}'"));
    let with = |backend| Program::new(dir.path(), PORTS, Families::V4, backend);
    for backend in ["iptables-nft", "iptables-legacy"] {
        let log = with(backend).must_end_with(&net.pod, 69);
        assert!(log.contains("inet istio-proxy-nat"), "{log}");
    }
    let log = with("iptables").must(&net.pod);
    assert!(log.contains("; nft,"), "{log}");
    callers_meet_the_mesh_first(&net);
}
