//! The program as a chained CNI plugin, called as container runtimes do.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use agent_init::rule::Transport::Tcp;
use serde_json::{Value, json};

use crate::parties::{agent, app, asked};
use crate::program::{BACKENDS, Port};
use crate::sandbox::json_config;
use crate::space::{APP, As, Families, Net, ROOT, Space, all_rules, privileged};

const PORTS: &[Port] = &[Port::tcp(8080, 9900)];
const AGENT: As = As {
    uid: 7777,
    gid: 7439,
};

/// Input of a call for a pod with these annotations.
fn input(annotations: Value, more: Value) -> Value {
    let mut input = json!({
        "cniVersion": "1.0.0",
        "name": "pods",
        "type": "agent-init",
        "capabilities": { "io.kubernetes.cri.pod-annotations": true },
        "runtimeConfig": { "io.kubernetes.cri.pod-annotations": annotations },
        "prevResult": {
            "cniVersion": "1.0.0",
            "interfaces": [{ "name": "eth0", "sandbox": "/var/run/netns/x" }],
            "ips": [
                { "address": "10.77.0.2/24", "gateway": "10.77.0.1", "interface": 0 },
                { "address": "fd77::2/64", "interface": 0 },
            ],
        },
    });
    for (key, value) in more.as_object().unwrap() {
        input[key] = value.clone();
    }
    input
}

fn injected() -> Value {
    json!({ "telepresence.io/agent-config": json_config().to_string() })
}

/// Calls the plugin from the node.
fn call(node: &Space, command: &str, pod: &Space, input: &str) -> Output {
    node.run(ROOT, || {
        let mut child = Command::new(env!("CARGO_BIN_EXE_agent-init"))
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", "c1")
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", "/opt/cni/bin")
            .env("CNI_NETNS", pod.path())
            // A runtime's own environment is no fact of the pod's.
            .env("POD_IP", "192.0.2.1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(input.as_bytes())
            .unwrap();
        child.wait_with_output().unwrap()
    })
}

fn answer(done: &Output) -> Value {
    serde_json::from_slice(&done.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&done.stdout)))
}

#[test]
fn a_pod_with_a_configuration_is_redirected_from_the_node() {
    if !privileged() {
        return;
    }
    for backend in BACKENDS {
        let (node, net) = (Space::new(), Net::new(Families::Dual));
        let input = input(injected(), json!({ "backend": backend }));
        let text = input.to_string();
        let done = call(&node, "ADD", &net.pod, &text);
        let log = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(0), "{log}");
        assert_eq!(answer(&done), input["prevResult"], "{backend}");
        assert_eq!(all_rules(&node), "", "{backend}");
        app(&net, APP, Tcp, 8080);
        agent(&net, AGENT, Tcp, 9900, PORTS[0].proxy_port(PORTS));
        for address in net.families.pod() {
            let caller = asked(&net.outside, ROOT, Tcp, address, 8080);
            assert_eq!(caller, "agent9900>app8080", "{backend}");
        }
        assert_eq!(call(&node, "CHECK", &net.pod, &text).status.code(), Some(0));
        assert_eq!(call(&node, "DEL", &net.pod, &text).status.code(), Some(0));
    }
}

#[test]
fn pods_without_numeric_ports_are_passed_on_untouched() {
    if !privileged() {
        return;
    }
    let (node, pod) = (Space::new(), Space::of_pod());
    let named = json_config()
        .to_string()
        .replace("\"targetPortNumeric\":true", "\"targetPortNumeric\":false");
    for annotations in [
        Value::Null,
        json!({}),
        json!({ "other": "x" }),
        json!({ "telepresence.io/agent-config": named }),
    ] {
        let input = input(annotations, json!({}));
        let done = call(&node, "ADD", &pod, &input.to_string());
        assert_eq!(done.status.code(), Some(0), "{done:?}");
        assert_eq!(answer(&done), input["prevResult"]);
        assert_eq!(all_rules(&pod), "");
    }
}

#[test]
fn a_check_sees_rules_that_are_gone() {
    if !privileged() {
        return;
    }
    let (node, pod) = (Space::new(), Space::of_pod());
    let input = input(injected(), json!({})).to_string();
    assert_eq!(call(&node, "ADD", &pod, &input).status.code(), Some(0));
    pod.sh("nft delete table ip tel_agent");
    let done = call(&node, "CHECK", &pod, &input);
    assert_eq!(done.status.code(), Some(1));
    let fault = answer(&done);
    assert!(
        fault["details"].as_str().unwrap().contains("missing"),
        "{fault}"
    );
}

#[test]
fn faults_are_answered_as_the_specification_says() {
    if !privileged() {
        return;
    }
    let (node, pod) = (Space::new(), Space::of_pod());
    let bad = json!({ "telepresence.io/agent-config": "{\"containers\":3}" });
    for (command, input, code, words) in [
        ("ADD", "nonsense".to_owned(), 6, "standard input"),
        (
            "ADD",
            json!({ "cniVersion": "9.0" }).to_string(),
            1,
            "1.1.0",
        ),
        ("MOVE", input(injected(), json!({})).to_string(), 4, "MOVE"),
        (
            "ADD",
            input(injected(), json!({ "agentGid": "x" })).to_string(),
            7,
            "agentGid",
        ),
        (
            "ADD",
            input(injected(), json!({ "excludeUids": [-1] })).to_string(),
            164,
            "-1",
        ),
        ("ADD", input(bad, json!({})).to_string(), 164, "containers"),
    ] {
        let done = call(&node, command, &pod, &input);
        assert_eq!(done.status.code(), Some(1), "{input}");
        let fault = answer(&done);
        assert_eq!(fault["code"], code, "{fault}");
        assert!(
            fault["details"].as_str().unwrap().contains(words),
            "{fault}"
        );
        assert!(
            fault["cniVersion"].is_string() && fault["msg"].is_string(),
            "{fault}"
        );
    }
    assert_eq!(all_rules(&pod), "");
}

#[test]
fn versions_are_told_and_the_rest_of_the_life_needs_nothing() {
    if !privileged() {
        return;
    }
    let (node, pod) = (Space::new(), Space::of_pod());
    let done = call(
        &node,
        "VERSION",
        &pod,
        &json!({ "cniVersion": "1.0.0" }).to_string(),
    );
    let versions = answer(&done);
    assert_eq!(versions["cniVersion"], "1.0.0");
    let supported = versions["supportedVersions"].as_array().unwrap();
    assert!(supported.contains(&json!("0.4.0")), "{versions}");
    let input = input(injected(), json!({})).to_string();
    for command in ["DEL", "GC", "STATUS"] {
        let done = call(&node, command, &pod, &input);
        assert_eq!(
            (done.status.code(), done.stdout.len()),
            (Some(0), 0),
            "{command}"
        );
    }
}
