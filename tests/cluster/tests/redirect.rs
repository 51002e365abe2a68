//! agent-init in real pods: as an init container of several users, refused where it has no right, and
//! as a CNI plugin of the node.

use std::path::PathBuf;
use std::process::Command;

use cluster_tests::{Cluster, Kind, Namespace};
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::ListParams;
use serde_json::{Value, json};

/// Sidecar configuration with one numeric port.
fn configuration(agent_port: u16) -> String {
    json!({
        "agentName": "echo", "namespace": "default", "managerHost": "manager",
        "containers": [{ "name": "app", "intercepts": [{
            "targetPortNumeric": true, "protocol": "TCP", "containerPort": 8080, "agentPort": agent_port,
        }] }],
    })
    .to_string()
}

/// Security context that fits into `restricted`.
fn strict(group: u32) -> Value {
    json!({
        "runAsUser": 1000, "runAsGroup": group, "runAsNonRoot": true, "allowPrivilegeEscalation": false,
        "capabilities": { "drop": ["ALL"] }, "seccompProfile": { "type": "RuntimeDefault" },
    })
}

/// Pod with an app, and a second app in the place of the agent, with its group.
fn pod(name: &str) -> Value {
    let container = |name: &str, arguments: &[&str], group| {
        json!({
            "name": name, "image": "localhost/rig/app:1", "imagePullPolicy": "Never",
            "args": arguments, "securityContext": strict(group),
        })
    };
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
        "spec": { "restartPolicy": "Never", "containers": [
            container("app", &["serve", "app"], 1000),
            container("agent", &["serve", "agent", "-http", ":9900"], 7439),
        ] },
    })
}

/// The same with agent-init as an init container.
fn with_init(name: &str, context: Value) -> Value {
    let mut pod = pod(name);
    let image = format!("localhost/traffic-agent:{}", env!("CARGO_PKG_VERSION"));
    pod["spec"]["initContainers"] = json!([{
        "name": "tel-agent-init", "image": image, "imagePullPolicy": "Never", "args": ["agent-init"],
        "env": [
            { "name": "AGENT_CONFIG", "value": configuration(9900) },
            { "name": "AGENT_GID", "value": "7439" },
            { "name": "POD_IP", "valueFrom": { "fieldRef": { "fieldPath": "status.podIP" } } },
        ],
        "securityContext": context,
    }]);
    pod
}

fn net_admin(mut context: Value) -> Value {
    context["capabilities"] = json!({ "drop": ["ALL"], "add": ["NET_ADMIN"] });
    context
}

/// Callers by each address of the pod reach the agent, and not the app.
fn assert_redirected(namespace: &Namespace<'_>, name: &str) {
    let pod = namespace.ready_pod(name);
    let addresses = pod.status.unwrap().pod_ips.unwrap();
    assert_eq!(addresses.len(), 2, "both families");
    let caller = namespace.caller();
    for address in addresses {
        let host = match address.ip {
            ip if ip.contains(':') => format!("[{ip}]"),
            ip => ip,
        };
        let answer = caller.get(&format!("http://{host}:8080/"), &["-g"]);
        assert_eq!(answer.by, "agent", "{name} at {host}");
    }
}

/// Log of the init container of a pod, once it has ended with this code.
fn ended_with(namespace: &Namespace<'_>, name: &str, code: i32) -> String {
    let ended = namespace.wait(name, "the end of agent-init", |pod: Option<&Pod>| {
        let status = pod?.status.as_ref()?;
        let init = status.init_container_statuses.as_ref()?.first()?;
        let terminated = init.state.as_ref()?.terminated.as_ref()?;
        Some(terminated.exit_code)
    });
    let log = namespace.logs(name, "tel-agent-init");
    assert_eq!(ended, code, "{log}");
    log
}

#[test]
fn an_init_container_of_any_user_redirects_the_pods_callers() {
    let namespace = Cluster::shared().namespace("redirect");
    for (name, context) in [
        ("root", json!({ "runAsUser": 0, "runAsGroup": 0 })),
        ("user", json!({ "runAsUser": 7777, "runAsGroup": 7777 })),
        ("image", json!({})),
    ] {
        namespace.apply(&with_init(name, net_admin(context)).to_string());
        assert_redirected(&namespace, name);
    }
}

#[test]
fn without_the_right_the_init_container_says_what_to_do() {
    let labels = [("pod-security.kubernetes.io/enforce", "restricted")];
    let namespace = Cluster::shared().namespace_with("strict", &labels);
    namespace.apply(&with_init("strict", strict(7777)).to_string());
    let log = ended_with(&namespace, "strict", 77);
    for words in [
        "NET_ADMIN is missing",
        "capabilities.add",
        "named target port",
    ] {
        assert!(log.contains(words), "{words}: {log}");
    }
    let refused = namespace.refusal(&with_init("admin", net_admin(strict(7777))).to_string());
    assert!(refused.to_string().contains("NET_ADMIN"), "{refused}");
}

#[test]
fn the_nodes_own_network_is_refused() {
    let namespace = Cluster::shared().namespace("host");
    let mut pod = with_init(
        "host",
        net_admin(json!({ "runAsUser": 0, "runAsGroup": 0 })),
    );
    pod["spec"]["hostNetwork"] = true.into();
    namespace.apply(&pod.to_string());
    let log = ended_with(&namespace, "host", 64);
    assert!(
        log.contains("hostNetwork") && log.contains("kube-proxy"),
        "{log}"
    );
}

/// The plugin on the node of a cluster, until it is dropped.
struct Plugin {
    program: PathBuf,
    configurations: PathBuf,
}

impl Plugin {
    fn install(cluster: &Cluster) -> Self {
        let plugin = Self {
            program: harness::programs::path("agent-init"),
            configurations: cluster.folder().join("conf/cni"),
        };
        plugin.run("--once");
        plugin
    }

    fn run(&self, task: &str) {
        let done = Command::new(&self.program)
            .args(["cni-install", "--bin-dir", "/usr/lib/cni", "--conf-dir"])
            .arg(&self.configurations)
            .arg(task)
            .output()
            .unwrap();
        let log = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{log}");
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        self.run("--remove");
    }
}

#[test]
fn a_plugin_of_the_node_redirects_the_callers_of_strict_pods() {
    let cluster = Cluster::start(Kind::Node);
    let plugin = Plugin::install(&cluster);
    let labels = [("pod-security.kubernetes.io/enforce", "restricted")];
    let namespace = cluster.namespace_with("plugin", &labels);
    let annotated = |name: &str, agent_port| {
        let mut pod = pod(name);
        let text = configuration(agent_port);
        pod["metadata"]["annotations"] = json!({ "telepresence.io/agent-config": text });
        pod.to_string()
    };
    namespace.apply(&annotated("good", 9900));
    namespace.apply(&annotated("bad", 8080));
    namespace.ready_pod("good");
    let callers = cluster.namespace("callers");
    let pod = cluster
        .block_on(namespace.api::<Pod>().get("good"))
        .unwrap();
    let caller = callers.caller();
    for address in pod.status.unwrap().pod_ips.unwrap() {
        let host = match address.ip {
            ip if ip.contains(':') => format!("[{ip}]"),
            ip => ip,
        };
        let answer = caller.get(&format!("http://{host}:8080/"), &["-g"]);
        assert_eq!(answer.by, "agent", "{host}");
    }
    // Rules that cannot be made keep the pod from starting, and the event says why.
    let told = harness::wait::until("the event", || {
        let events = cluster
            .block_on(namespace.api::<Event>().list(&ListParams::default()))
            .unwrap();
        let mut messages = events.into_iter().filter_map(|event| event.message);
        messages.find(|message| message.contains("agent-init"))
    });
    assert!(told.contains("agentPort=8080"), "{told}");
    drop(plugin);
}
