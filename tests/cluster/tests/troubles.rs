//! What the cluster says while a client waits for an agent reaches that client within seconds, and
//! the app goes on as if nothing had been asked.

use std::time::{Duration, Instant};

use cluster_tests::{Cluster, Manager, Namespace, Workload, Workstation};
use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, ListParams};
use serde_json::{Value, json};

use super::life::has_agent;

/// How long after an event of the cluster its client may still wait.
const MAX_DELAY: Duration = Duration::from_secs(3);

/// A reason for which no agent comes.
struct Row {
    name: &'static str,
    /// Values of the chart.
    values: Value,
    /// Object in the workload's namespace.
    object: Option<Value>,
    /// Reason of the cluster's event; empty where the manager refuses by itself.
    event: &'static str,
    /// What the client is told.
    said: &'static [&'static str],
}

/// Waits for an event with that reason that comes after those known, and returns when that was.
fn event(namespace: &Namespace<'_>, reason: &str) -> Instant {
    let (api, all): (Api<Event>, _) = (namespace.api(), ListParams::default());
    harness::wait::until(&format!("an event {reason}"), || {
        let events = namespace.cluster().block_on(api.list(&all)).unwrap();
        let found = events.iter().any(|it| {
            let (kind, why) = (it.type_.as_deref(), it.reason.as_deref());
            kind == Some("Warning") && why == Some(reason)
        });
        found.then(Instant::now)
    })
}

fn is_told(row: &Row) {
    let cluster = Cluster::shared();
    let (home, namespace) = (cluster.namespace("manager"), cluster.namespace("trouble"));
    let manager = Manager::install(&home, &[&namespace], &row.values);
    let workstation = Workstation::new(&manager);
    Workload::new("Deployment", "web", 1, "http").start(&namespace);
    let caller = namespace.caller();
    if let Some(object) = &row.object {
        namespace.apply(&object.to_string());
    }
    let served = workstation.start(namespace.name(), "web", &[]);
    let told = std::thread::scope(|scope| {
        let seen = scope.spawn(|| event(&namespace, row.event));
        assert_eq!(served.process().exit().code(), Some(1));
        (seen.join().unwrap(), Instant::now())
    });
    let delay = told.1.saturating_duration_since(told.0);
    assert!(delay < MAX_DELAY, "{}: told after {delay:?}", row.name);
    for words in row.said {
        served.process().line(words);
    }
    let answer = caller.get("http://web", &["-H", cluster_tests::HEADER]);
    assert_eq!(answer.by, "web", "the app goes on");
    // What was asked for is taken back, and the workload is as before.
    namespace.settled("web", 1, |pod| !has_agent(pod));
}

#[test]
fn an_image_that_cannot_be_pulled() {
    is_told(&Row {
        name: "image",
        values: json!({"agent": {"image": {"name": "not-there"}}}),
        object: None,
        event: "Failed",
        said: &["no agent for Deployment web", "not-there"],
    });
}

#[test]
fn a_quota_that_is_used_up() {
    is_told(&Row {
        name: "quota",
        values: json!({}),
        object: Some(json!({
            "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "few"},
            "spec": {"hard": {"pods": "2"}},
        })),
        event: "FailedCreate",
        said: &["no agent for Deployment web", "exceeded quota: few"],
    });
}

#[test]
fn a_limit_that_the_agent_is_above() {
    is_told(&Row {
        name: "limit",
        values: json!({"agent": {"resources": {
            "requests": {"memory": "24Mi"}, "limits": {"memory": "512Mi"},
        }}}),
        object: Some(json!({
            "apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "small"},
            "spec": {"limits": [{"type": "Container", "max": {"memory": "400Mi"}}]},
        })),
        event: "FailedCreate",
        said: &[
            "no agent for Deployment web",
            "maximum memory usage per Container is 400Mi",
        ],
    });
}

#[test]
fn no_room_in_the_cluster() {
    is_told(&Row {
        name: "room",
        values: json!({"agent": {"resources": {
            "requests": {"memory": "900Gi"}, "limits": {"memory": "900Gi"},
        }}}),
        object: None,
        event: "FailedScheduling",
        said: &["the cluster has no room", "Insufficient memory"],
    });
}

#[test]
fn pod_security_admits_named_ports_and_numeric_ones_are_refused_in_words() {
    let cluster = Cluster::shared();
    let home = cluster.namespace("manager");
    let levels = ["restricted", "baseline"];
    let namespaces = levels.map(|level| {
        let label = ("pod-security.kubernetes.io/enforce", level);
        cluster.namespace_with(level, &[label])
    });
    let managed = namespaces.each_ref();
    let manager = Manager::install(&home, &managed, &json!({}));
    for (level, namespace) in levels.iter().zip(&namespaces) {
        let workstation = Workstation::new(&manager);
        for (name, target) in [("named", "http"), ("numeric", "8080")] {
            let mut workload = Workload::new("Deployment", name, 1, target);
            workload.container()["securityContext"] = json!({
                "runAsUser": 1000, "runAsNonRoot": true, "allowPrivilegeEscalation": false,
                "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
            });
            workload.start(namespace);
        }
        let served = workstation.intercept(namespace.name(), "named", &[]);
        namespace.settled("named", 1, has_agent);
        served.leave();
        let refused = workstation.start(namespace.name(), "numeric", &[]);
        assert_eq!(refused.process().exit().code(), Some(1), "{level}");
        refused.process().line(level);
        refused.process().line("NET_ADMIN");
        namespace.settled("numeric", 1, |pod| !has_agent(pod));
    }
}
