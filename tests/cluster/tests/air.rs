//! No part of ours asks for a name or an address beyond what it was told: what a cluster without a
//! way out shows is looked at packet by packet, on the node and on the workstation.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::Command;

use cluster_tests::{Cluster, HEADER, Manager, Namespace, Workload, Workstation};
use harness::process::Process;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::Api;
use serde_json::json;

use super::life::has_agent;

/// Where somebody went: protocol, address, port.
type Way = (&'static str, IpAddr, u16);

/// Listens to all that pods begin to say.
struct Ear {
    process: Process,
}

impl Ear {
    fn start(cluster: &Cluster) -> Self {
        let mut tcpdump = cluster.on_node("tcpdump");
        tcpdump.args(["-i", "any", "-nn", "-l", "-t", "-B", "32768", "-s", "512"]);
        // First packets of connections, and datagrams.
        tcpdump.arg("(tcp[tcpflags] & (tcp-syn|tcp-ack) = tcp-syn) or (ip6 and tcp) or udp");
        let process = Process::start("tcpdump", &mut tcpdump);
        process.line("listening on any");
        Self { process }
    }

    /// Ways from one of these addresses, and the names it asked for.
    fn heard(&self, from: &BTreeSet<IpAddr>) -> (BTreeSet<Way>, BTreeSet<String>) {
        let (mut ways, mut names) = (BTreeSet::new(), BTreeSet::new());
        for line in self.process.lines("") {
            let Some((source, target, rest)) = packet(&line) else {
                continue;
            };
            if !from.contains(&source.0) {
                continue;
            }
            if target.1 == 53 {
                names.extend(asked(rest));
            }
            let protocol = if rest.contains("Flags [") {
                "tcp"
            } else {
                "udp"
            };
            // Answers of servers: IPv6 packets are not told apart by their flags.
            if protocol == "udp" || rest.contains("Flags [S]") {
                ways.insert((protocol, target.0, target.1));
            }
        }
        (ways, names)
    }
}

/// One end of a packet's way.
type End = (IpAddr, u16);

/// `veth1 In IP 10.0.0.1.5000 > 10.0.0.2.80: …`: source, target, the rest.
fn packet(line: &str) -> Option<(End, End, &str)> {
    let (from, rest) = line.split_once(" > ")?;
    let (to, rest) = rest.split_once(": ")?;
    let end = |text: &str| {
        let (address, port) = text.rsplit_once('.')?;
        Some((address.parse().ok()?, port.parse().ok()?))
    };
    Some((end(from.rsplit(' ').next()?)?, end(to)?, rest))
}

/// The name in `4242+ A? web.shop. (40)`.
fn asked(query: &str) -> Option<String> {
    let (_, after) = query.split_once("? ")?;
    after.split(' ').next().map(str::to_owned)
}

fn addresses(pods: &[Pod]) -> BTreeSet<IpAddr> {
    let of = |pod: &Pod| {
        let all = pod.status.clone()?.pod_ips?;
        Some(all.into_iter().filter_map(|it| it.ip.parse().ok()))
    };
    pods.iter().filter_map(of).flatten().collect()
}

fn service_addresses(namespace: &str, name: &str) -> BTreeSet<IpAddr> {
    let cluster = Cluster::shared();
    let api: Api<Service> = Api::namespaced(cluster.client(), namespace);
    let service = cluster.block_on(api.get(name)).unwrap();
    let all = service.spec.unwrap().cluster_ips.unwrap_or_default();
    all.iter().filter_map(|it| it.parse().ok()).collect()
}

/// What the client's process did by itself, from its system calls.
fn calls(trace: &str) -> BTreeSet<(String, u16)> {
    let mut found = BTreeSet::new();
    for line in trace.lines() {
        let value = |begin: &str| {
            let (_, rest) = line.split_once(begin)?;
            rest.split(['"', ')']).next()
        };
        let Some(port) = value("htons(") else {
            continue;
        };
        let address = value("inet_addr(\"").or_else(|| value("inet_pton(AF_INET6, \""));
        let address = address.unwrap_or("unknown").to_owned();
        found.insert((address, port.parse().unwrap()));
    }
    found
}

/// The client's `create` under strace, which leaves it a child of this process.
fn traced(workstation: &Workstation<'_>, trace: &str, arguments: &[&str]) -> Process {
    let plain = workstation.command(arguments);
    let mut command = Command::new("strace");
    command.args(["-D", "-f", "-qq", "-o", trace]);
    command.args(["-e", "trace=connect,sendto,sendmsg,sendmmsg", "--"]);
    command.arg(plain.get_program()).args(plain.get_args());
    Process::start("intercept", &mut command)
}

fn manager_pods(home: &Namespace<'_>) -> Vec<Pod> {
    home.pods_with("app=traffic-manager")
}

#[test]
fn nobody_asks_for_a_name_or_an_address_beyond_what_it_was_told() {
    let cluster = Cluster::shared();
    let (home, namespace) = (cluster.namespace("manager"), cluster.namespace("quiet"));
    Workload::new("Deployment", "web", 1, "8080").start(&namespace);
    let caller = namespace.caller();
    let ear = Ear::start(cluster);
    let values = json!({"prometheus": {"port": 9090}});
    let manager = Manager::install(&home, &[&namespace], &values);
    let workstation = Workstation::new(&manager);
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("calls");
    let port = harness::ports::free();
    let mut app = Command::new(cluster.facts().programs.join("app"));
    let _app = Process::start(
        "app",
        app.args(["serve", "mine", "-http", &format!("127.0.0.1:{port}")]),
    );
    let client = traced(
        &workstation,
        trace.to_str().unwrap(),
        &[
            "create",
            "quiet",
            "--workload",
            "web",
            "--namespace",
            namespace.name(),
            &format!("--port={port}"),
            "--http-header",
            "x-dev=me",
            "--timeout=60",
        ],
    );
    client.line("Intercepting");
    namespace.settled("web", 1, has_agent);
    harness::wait::until("the intercept", || {
        (caller.get("http://web", &["-H", HEADER]).by == "mine").then_some(())
    });
    assert_eq!(caller.get("http://web", &[]).by, "web");
    let (web, managing) = (namespace.pods_with("app=web"), manager_pods(&home));
    client.terminate();

    let names_of = |name: &str, place: &str| service_addresses(place, name);
    let api = names_of("kubernetes", "default");
    let node: IpAddr = cluster.facts().node.into();
    let is_dns = |way: &Way| way.2 == 53;
    let (ways, names) = ear.heard(&addresses(&managing));
    let is_api =
        |way: &Way| (way.2 == 443 && api.contains(&way.1)) || (way.1 == node && way.2 == 6443);
    assert!(
        ways.iter().any(is_api),
        "the manager is not heard: {ways:?}"
    );
    let strange: Vec<_> = ways
        .iter()
        .filter(|it| !is_api(it) && !is_dns(it))
        .collect();
    assert!(strange.is_empty(), "the manager went to {strange:?}");
    assert!(names.is_empty(), "the manager asked for {names:?}");

    let (ways, names) = ear.heard(&addresses(&web));
    let managers = addresses(&managing);
    let is_manager = |way: &Way| way.2 == 8081 && managers.contains(&way.1);
    assert!(
        ways.iter().any(is_manager),
        "the agent is not heard: {ways:?}"
    );
    let strange: Vec<_> = ways
        .iter()
        .filter(|it| !is_manager(it) && !is_dns(it))
        .collect();
    assert!(strange.is_empty(), "the agent went to {strange:?}");
    let told = format!("traffic-manager.{}", home.name());
    let is_told = |name: &String| name.starts_with(&told);
    assert!(names.iter().any(is_told), "{names:?}");
    let strange: Vec<_> = names.iter().filter(|it| !is_told(it)).collect();
    assert!(strange.is_empty(), "the agent asked for {strange:?}");

    let calls = calls(&std::fs::read_to_string(&trace).unwrap());
    let told = [(node.to_string(), 6443), ("127.0.0.1".to_owned(), port)];
    assert!(told.iter().all(|it| calls.contains(it)), "{calls:?}");
    let strange: Vec<_> = calls.iter().filter(|it| !told.contains(it)).collect();
    assert!(strange.is_empty(), "the client went to {strange:?}");
}
