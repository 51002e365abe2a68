//! The whole pod with its real programs: agent-init, then agent and app, a manager and a
//! workstation elsewhere, and callers on both sides, for each way of programming the redirect.
#![allow(clippy::unwrap_used)] // A test that cannot go on panics.

mod families;

use std::fs::Permissions;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use harness::apps::App;
use harness::pod::{Pod, Space};
use harness::process::Process;
use harness::wait::{WAIT_TIMEOUT, until};
use harness::{caller, programs};

/// The agent's own group; that is how the rules know it. It shares its user with the app.
const AGENT: Who = Who(1000, 7439);
const APP: Who = Who(1000, 1000);
const ROOT: Who = Who(0, 0);

#[derive(Debug, Clone, Copy)]
struct Who(u32, u32);

const CONFIG: &str = "\
agentName: echo
namespace: default
workloadName: echo
workloadKind: Deployment
managerHost: 10.88.0.1
managerPort: 8081
containers:
- name: app
  envPrefix: A_
  mountPoint: /tel_app_mounts/app
  intercepts:
  - {containerPortName: http, serviceName: echo, servicePortName: http, servicePort: 80, targetPortNumeric: true,
     protocol: TCP, containerPort: 8080, agentPort: 9900}
  - {containerPortName: admin, serviceName: echo, servicePortName: admin, servicePort: 81, targetPortNumeric: false,
     protocol: TCP, containerPort: 7070, agentPort: 9901}
  - {containerPortName: dns, serviceName: echo, servicePortName: dns, servicePort: 53, targetPortNumeric: true,
     protocol: UDP, containerPort: 5353, agentPort: 9902}
";

#[test]
fn nft_redirects_a_numeric_port_and_leaves_a_named_one() {
    the_whole_pod("nft");
}

#[test]
fn iptables_nft_redirects_a_numeric_port_and_leaves_a_named_one() {
    the_whole_pod("iptables-nft");
}

#[test]
fn iptables_legacy_redirects_a_numeric_port_and_leaves_a_named_one() {
    the_whole_pod("iptables-legacy");
}

fn the_whole_pod(backend: &str) {
    let (pod, root) = (Pod::new(), file_tree());
    init(&pod.inside, root.path(), backend);
    count_self_calls(&pod.inside);
    let app = http_app(&pod.inside, APP, 8080, "app");
    let named = http_app(&pod.inside, APP, 7070, "named");
    udp_app(&pod.inside, APP, 5353);
    http_app(&pod.outside, ROOT, 3000, "workstation");
    let manager = manager(&pod.outside);
    let agent = agent(&pod.inside, root.path());
    until("the agent to arrive", || {
        assert!(agent.is_running(), "the agent has ended");
        root.path().join("tmp/agent/ready").exists().then_some(())
    });

    // Nobody intercepts: as if there were no agent.
    everybody_gets(&pod, &[], "app");
    for address in [Pod::IP, Pod::IP6] {
        assert_eq!(
            datagram(&pod.outside, ROOT, address),
            "dns",
            "a caller from elsewhere to {address}"
        );
        assert_eq!(
            datagram(&pod.inside, APP, address),
            "dns",
            "a neighbour to {address}"
        );
    }
    for address in ["127.0.0.1", "::1"] {
        assert_eq!(
            datagram(&pod.inside, APP, address),
            "dns",
            "a neighbour to {address}"
        );
    }
    the_named_port_is_left_alone(&pod, &[]);

    // Somebody does: their requests go to them, all others to the app.
    let mine = [("x-dev", "a")];
    let client = client(&pod.outside);
    client.line("state=ACTIVE");
    until("the agent to follow", || {
        (who_answers(&pod.outside, ROOT, Pod::IP, 8080, &mine) == "workstation").then_some(())
    });
    everybody_gets(&pod, &mine, "workstation");
    everybody_gets(&pod, &[("x-dev", "b")], "app");
    the_named_port_is_left_alone(&pod, &mine);

    client.terminate();
    until("the agent to follow", || {
        (who_answers(&pod.outside, ROOT, Pod::IP, 8080, &mine) == "app").then_some(())
    });
    everybody_gets(&pod, &mine, "app");
    let calls = pod.inside.sh("nft list table inet watch");
    assert!(
        calls.contains("counter packets 0 bytes 0"),
        "the agent called itself: {calls}"
    );
    // The workstation's count is its own affair: a client that leaves may cut connections that are
    // idle.
    assert_eq!(
        [app.failures(), named.failures()].concat(),
        [""; 0],
        "connections to the app broke"
    );
    drop((manager, agent));
}

/// Callers from elsewhere and neighbours in the pod, of both families; and the agent on loopback,
/// which is the app.
fn everybody_gets(pod: &Pod, headers: &[(&str, &str)], expected: &str) {
    for address in [Pod::IP, Pod::IP6] {
        let outside = who_answers(&pod.outside, ROOT, address, 8080, headers);
        assert_eq!(outside, expected, "a caller from elsewhere to {address}");
        assert_eq!(
            who_answers(&pod.inside, APP, address, 8080, headers),
            expected,
            "a neighbour to {address}"
        );
    }
    for address in ["127.0.0.1", "::1"] {
        assert_eq!(
            who_answers(&pod.inside, APP, address, 8080, headers),
            expected,
            "a neighbour to {address}"
        );
        assert_eq!(
            who_answers(&pod.inside, AGENT, address, 8080, headers),
            "app",
            "the agent to {address}"
        );
    }
}

/// Checks that callers reach the app by the agent's port and by the app's own.
fn the_named_port_is_left_alone(pod: &Pod, headers: &[(&str, &str)]) {
    for address in [Pod::IP, Pod::IP6] {
        for port in [7070, 9901] {
            assert_eq!(
                who_answers(&pod.outside, ROOT, address, port, headers),
                "named",
                "port {port} of {address}"
            );
        }
    }
    assert_eq!(
        who_answers(&pod.inside, APP, "127.0.0.1", 7070, headers),
        "named"
    );
}

/// Creates a folder for the containers' file systems, writable for every user.
fn file_tree() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for below in ["", "etc", "etc/traffic-agent", "tmp", "tel_app_exports"] {
        let path = root.path().join(below);
        std::fs::create_dir_all(&path).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o777)).unwrap();
    }
    std::fs::write(root.path().join("etc/traffic-agent/config.yaml"), CONFIG).unwrap();
    root
}

/// The init container: runs to its end, and must end well.
fn init(pod: &Space, root: &Path, backend: &str) {
    let mut command = Command::new(programs::path("agent-init"));
    command
        .args(["agent-init", "--backend", backend, "--root"])
        .arg(root);
    command
        .env("POD_IPS", format!("{},{}", Pod::IP, Pod::IP6))
        .env("AGENT_GID", AGENT.1.to_string());
    let done = pod.run(|| command.output().unwrap());
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
}

fn agent(pod: &Space, root: &Path) -> Process {
    let mut command = Command::new(programs::path("traffic-agent"));
    command
        .args(["agent", "--root"])
        .arg(root)
        .env_clear()
        .env("LOG_LEVEL", "debug");
    command
        .env("_TEL_AGENT_POD_IP", Pod::IP)
        .env("_TEL_AGENT_NAME", "echo-1")
        .env("_TEL_AGENT_POD_UID", "uid-1");
    pod.run_as(AGENT.0, AGENT.1, || {
        Process::start("traffic-agent", &mut command)
    })
}

fn manager(outside: &Space) -> Process {
    let mut command = Command::new(programs::path("traffic-manager"));
    command.args(["--listen", "10.88.0.1:8081"]);
    let manager = outside.run(|| Process::start("traffic-manager", &mut command));
    manager.line("listening=");
    manager
}

fn client(outside: &Space) -> Process {
    let mut command = Command::new(programs::path("intercept"));
    command.args([
        "create",
        "echo",
        "--port",
        "3000:8080",
        "--http-header",
        "x-dev=a",
        "--manager",
        "10.88.0.1:8081",
    ]);
    outside.run(|| Process::start("intercept", &mut command))
}

/// An app on every address of its namespace.
fn http_app(space: &Space, who: Who, port: u16, name: &str) -> App {
    App::on(
        name,
        space.run_as(who.0, who.1, || TcpListener::bind(("::", port)).unwrap()),
    )
}

/// An app that answers datagrams from the address they came to.
fn udp_app(space: &Space, who: Who, port: u16) {
    for address in [Pod::IP, Pod::IP6, "127.0.0.1", "::1"] {
        let socket = space.run_as(who.0, who.1, || UdpSocket::bind((address, port)).unwrap());
        std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while let Ok((_, caller)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(b"dns", caller);
            }
        });
    }
}

/// Counts connections from the agent to any of its own ports.
fn count_self_calls(pod: &Space) {
    pod.sh(&format!(
        "nft 'table inet watch {{ chain out {{ type filter hook output priority 0; \
         meta skgid {} ct state new ct direction original tcp dport 9900-9902 counter; }}; }}'",
        AGENT.1
    ));
}

/// Returns the name of the app that answers a GET, or the error.
fn who_answers(
    space: &Space,
    who: Who,
    address: &str,
    port: u16,
    headers: &[(&str, &str)],
) -> String {
    let to = SocketAddr::new(address.parse().unwrap(), port);
    let answer = space.run_as(who.0, who.1, || caller::get(to, "/", headers));
    answer.map_or_else(|error| error.to_string(), |answer| answer.by().to_owned())
}

/// Sends a datagram to the app and returns the answer.
fn datagram(space: &Space, who: Who, address: &str) -> String {
    let to = SocketAddr::new(address.parse().unwrap(), 5353);
    space.run_as(who.0, who.1, || {
        let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
        socket.connect(to).unwrap();
        socket.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
        let mut buffer = [0; 2048];
        let answer = socket.send(b"?").and_then(|_| socket.recv(&mut buffer));
        answer.map_or_else(
            |error| error.to_string(),
            |got| String::from_utf8_lossy(&buffer[..got]).into_owned(),
        )
    })
}
