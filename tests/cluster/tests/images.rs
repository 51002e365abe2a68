//! Our images as careful clusters run them: as anybody, on a read-only root, without capabilities.
//! What is in them is looked at in `tests/images`.

use std::path::Path;
use std::process::Command;

use cluster_tests::{Cluster, HEADER, Manager, Namespace, Workload, Workstation};
use k8s_openapi::api::core::v1::{Container, Pod};
use serde_json::{Value, json};

use super::life::has_agent;

/// A user that no image names.
const ANYBODY: i64 = 7777;

/// The agent's own group.
const AGENT_GROUP: i64 = 7439;

fn nothing_allowed() -> Value {
    json!({
        "runAsUser": ANYBODY, "runAsGroup": ANYBODY, "runAsNonRoot": true,
        "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false,
        "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
    })
}

/// Facts of the first process of a container, by the node's /proc.
fn process(cluster: &Cluster, container: &str) -> String {
    let socket = cluster.folder().join("run/containerd.sock");
    let script = format!(
        "pid=$(ctr --address {} --namespace k8s.io tasks list | awk '$1 == \"{container}\" {{print $2}}')\n\
         cat /proc/$pid/status; head -1 /proc/$pid/mountinfo",
        socket.display()
    );
    let rig = Path::new(env!("CARGO_MANIFEST_DIR")).join("rig");
    let mut enter = Command::new(rig);
    enter.arg("--folder").arg(cluster.folder());
    let output = enter.args(["enter", "sh", "-c", &script]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{container}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

fn id_of(pod: &Pod, container: &str) -> String {
    let status = pod.status.as_ref().unwrap();
    let inits = status.init_container_statuses.iter().flatten();
    let mut all = status.container_statuses.iter().flatten().chain(inits);
    let found = all.find(|it| it.name == container).unwrap();
    let id = found.container_id.clone().unwrap();
    id.trim_start_matches("containerd://").to_owned()
}

/// The container's process is nobody special and can write nowhere but where the pod says.
fn is_harmless(cluster: &Cluster, pod: &Pod, container: &str) {
    let seen = process(cluster, &id_of(pod, container));
    let line = |name: &str| seen.lines().find(|it| it.starts_with(name)).unwrap();
    let ids: Vec<_> = line("Uid:").split_whitespace().skip(1).collect();
    assert_eq!(ids, ["7777"; 4], "{container}: {seen}");
    for set in ["CapEff:", "CapPrm:", "CapBnd:", "CapAmb:"] {
        assert!(
            line(set).ends_with("0000000000000000"),
            "{container}: {seen}"
        );
    }
    assert!(line("NoNewPrivs:").ends_with('1'), "{container}: {seen}");
    let root = seen.lines().last().unwrap();
    let options = root.split(' ').nth(5).unwrap();
    assert!(
        options.split(',').any(|it| it == "ro"),
        "{container}: {root}"
    );
}

fn container<'a>(pod: &'a Pod, name: &str) -> &'a Container {
    let spec = pod.spec.as_ref().unwrap();
    let inits = spec.init_containers.iter().flatten();
    let mut all = spec.containers.iter().chain(inits);
    all.find(|it| it.name == name).unwrap()
}

fn only_pod(namespace: &Namespace<'_>, labels: &str) -> Pod {
    let name = namespace.pods(labels).pop().unwrap();
    namespace.ready_pod(&name)
}

#[test]
fn manager_and_agent_run_as_anybody_on_a_read_only_root_without_capabilities() {
    let cluster = Cluster::shared();
    let home = cluster.namespace("manager");
    let namespace = cluster.namespace_with(
        "harmless",
        &[("pod-security.kubernetes.io/enforce", "restricted")],
    );
    let values = json!({
        "securityContext": nothing_allowed(),
        "agent": {"securityContext": nothing_allowed()},
    });
    let manager = Manager::install(&home, &[&namespace], &values);
    let mut web = Workload::new("Deployment", "web", 1, "http");
    web.container()["securityContext"] = nothing_allowed();
    web.start(&namespace);
    let workstation = Workstation::new(&manager);
    let served = workstation.intercept(namespace.name(), "web", &[]);
    namespace.settled("web", 1, has_agent);
    let caller = cluster.namespace("caller");
    let asker = caller.caller();
    let url = format!("http://web.{}", namespace.name());
    harness::wait::until("the intercept", || {
        let answer = asker.try_get(&url, &["-H", HEADER]).ok()?;
        (answer.by == served.answers_as).then_some(())
    });
    assert_eq!(asker.get(&url, &[]).by, "web");
    let (web, managing) = (
        only_pod(&namespace, "app=web"),
        only_pod(&home, "app=traffic-manager"),
    );
    is_harmless(cluster, &web, "traffic-agent");
    is_harmless(cluster, &managing, "traffic-manager");
    // Nobody who gets in finds anything to run.
    for (namespace, pod, container) in [
        (&namespace, &web, "traffic-agent"),
        (&home, &managing, "traffic-manager"),
    ] {
        let name = pod.metadata.name.as_deref().unwrap();
        let mut kubectl = cluster.kubectl();
        kubectl.args(["exec", name, "--container", container, "--namespace"]);
        let tried = kubectl.arg(namespace.name()).args(["--", "sh", "-c", "id"]);
        let tried = tried.output().unwrap();
        let said = String::from_utf8_lossy(&tried.stderr);
        assert!(!tried.status.success(), "{container} has a shell");
        assert!(said.contains("executable file not found"), "{said}");
    }
    served.leave();
}

#[test]
fn init_alone_has_a_capability_and_no_other_than_it_needs() {
    let cluster = Cluster::shared();
    let (home, namespace) = (cluster.namespace("manager"), cluster.namespace("numeric"));
    let mut init = nothing_allowed();
    // A file capability is what a user other than root needs, and that wants this.
    init["allowPrivilegeEscalation"] = true.into();
    init["capabilities"]["add"] = json!(["NET_ADMIN"]);
    // Rules tell the agent from the app by a group that nobody else in the pod has.
    let mut agent = nothing_allowed();
    agent["runAsGroup"] = AGENT_GROUP.into();
    let values = json!({"agent": {"securityContext": agent, "initSecurityContext": init}});
    let manager = Manager::install(&home, &[&namespace], &values);
    Workload::new("Deployment", "web", 1, "8080").start(&namespace);
    let workstation = Workstation::new(&manager);
    let served = workstation.intercept(namespace.name(), "web", &[]);
    namespace.settled("web", 1, has_agent);
    let caller = namespace.caller();
    harness::wait::until("the intercept", || {
        let answer = caller.try_get("http://web", &["-H", HEADER]).ok()?;
        (answer.by == served.answers_as).then_some(())
    });
    assert_eq!(caller.get("http://web", &[]).by, "web");
    let web = only_pod(&namespace, "app=web");
    is_harmless(cluster, &web, "traffic-agent");
    let context = container(&web, "tel-agent-init").security_context.clone();
    let context = context.unwrap();
    assert_eq!(context.run_as_user, Some(ANYBODY));
    let capabilities = context.capabilities.unwrap();
    assert_eq!(capabilities.add.unwrap(), ["NET_ADMIN"]);
    assert_eq!(capabilities.drop.unwrap(), ["ALL"]);
    served.leave();
}

#[test]
fn a_group_that_agent_and_init_share_is_refused_in_inits_own_words() {
    let cluster = Cluster::shared();
    let (home, namespace) = (cluster.namespace("manager"), cluster.namespace("shared"));
    let mut init = nothing_allowed();
    init["allowPrivilegeEscalation"] = true.into();
    init["capabilities"]["add"] = json!(["NET_ADMIN"]);
    let values = json!({"agent": {
        "securityContext": nothing_allowed(), "initSecurityContext": init,
    }});
    let manager = Manager::install(&home, &[&namespace], &values);
    Workload::new("Deployment", "web", 1, "8080").start(&namespace);
    let workstation = Workstation::new(&manager);
    let refused = workstation.start(namespace.name(), "web", &[]);
    assert_eq!(refused.process().exit().code(), Some(1));
    refused
        .process()
        .line("Give the agent container a runAsGroup of its own");
    namespace.settled("web", 1, |pod| !has_agent(pod));
}
