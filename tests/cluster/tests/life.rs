//! The whole life of intercepts, from nothing: a workload gets its agent because somebody wants to
//! intercept it, matched requests reach a process beside the cluster, the manager's death changes
//! nothing, and in the end no agent is left.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use cluster_tests::{Caller, Cluster, HEADER, Manager, Namespace, Workload, Workstation};
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

/// Time until every row has its intercept, and until the manager is back.
const MEETING_TIMEOUT: Duration = Duration::from_secs(180);

/// Where all rows meet with their intercepts active, while the manager is killed.
#[derive(Default)]
struct Meeting {
    arrived: AtomicUsize,
    is_over: AtomicBool,
}

impl Meeting {
    /// Waits until the manager was killed and is back.
    fn attend(&self) {
        self.arrived.fetch_add(1, Ordering::SeqCst);
        harness::wait::until_within(MEETING_TIMEOUT, "the manager's return", || {
            self.is_over.load(Ordering::SeqCst).then_some(())
        });
    }

    /// Kills the manager once all have come.
    fn hold(&self, manager: &Manager<'_>, rows: usize) {
        harness::wait::until_within(MEETING_TIMEOUT, "an intercept in every row", || {
            (self.arrived.load(Ordering::SeqCst) == rows).then_some(())
        });
        manager.kill();
        manager.is_ready();
        self.is_over.store(true, Ordering::SeqCst);
    }
}

/// A workload, and the way callers and its intercept take.
pub(crate) struct Row {
    pub(crate) workload: Workload,
    /// What callers ask; `POD` stands for the pod's address.
    pub(crate) url: &'static str,
    /// Options of the intercept.
    options: &'static [&'static str],
}

pub(crate) fn rows() -> Vec<Row> {
    let row = |workload, url, options| Row {
        workload,
        url,
        options,
    };
    let mut datagrams = Workload::new("Deployment", "datagrams", 1, "5000");
    datagrams.container()["args"] = json!(["serve", "datagrams", "-udp", ":5000"]);
    let port = json!({"name": "udp", "containerPort": 5000, "protocol": "UDP"});
    datagrams.container()["ports"]
        .as_array_mut()
        .unwrap()
        .push(port);
    datagrams.service.as_mut().unwrap()["spec"]["ports"] =
        json!([{"name": "udp", "port": 53, "targetPort": 5000, "protocol": "UDP"}]);
    let alone = Workload::new("Deployment", "alone", 1, "http").without_service();
    vec![
        row(
            Workload::new("Deployment", "by-name", 1, "http"),
            "http://by-name",
            &["--port=:http"],
        ),
        row(
            Workload::new("Deployment", "by-number", 2, "8080"),
            "http://by-number",
            &["--port=:80"],
        ),
        row(
            Workload::new("StatefulSet", "stateful", 1, "http"),
            "http://stateful",
            &[],
        ),
        row(
            Workload::new("ReplicaSet", "bare", 1, "8080"),
            "http://bare",
            &[],
        ),
        row(
            Workload::new("Deployment", "headless", 1, "8080").headless(),
            "http://headless:8080",
            &["--port=:8080"],
        ),
        row(
            datagrams,
            "datagrams:53",
            &["--port=:53/UDP", "--mechanism=tcp"],
        ),
        row(
            alone.annotated("telepresence.io/inject-container-ports", "http"),
            "http://POD:8080",
            &["--port=:http"],
        ),
    ]
}

/// Waits until this one answers; the node's proxy hears of pods a little later than the test does.
fn answered_by(
    namespace: &Namespace<'_>,
    caller: &Caller<'_>,
    row: &Row,
    header: &str,
    wanted: &str,
) {
    let what = format!("{wanted} to answer for {}", row.workload.name);
    harness::wait::until(&what, || {
        (answers(namespace, caller, row, header) == wanted).then_some(())
    });
}

/// Who answers a request with this header, or a datagram; an error's text when nobody does.
fn answers(namespace: &Namespace<'_>, caller: &Caller<'_>, row: &Row, header: &str) -> String {
    let Some(url) = row.url.strip_prefix("http://") else {
        let asked = caller.run(&["app", "datagram", row.url, "hello"]);
        return asked.stdout.split(' ').next().unwrap().to_owned();
    };
    let labels = format!("app={}", row.workload.name);
    let pods = namespace.pods_with(&labels);
    let ip = pods
        .first()
        .and_then(|it| it.status.as_ref()?.pod_ip.clone());
    let url = format!("http://{}", url.replace("POD", &ip.unwrap_or_default()));
    let answer = caller.try_get(&url, &["-H", header]);
    answer.map_or_else(|error| error, |it| it.by)
}

fn replicas(row: &Row) -> usize {
    usize::try_from(row.workload.object["spec"]["replicas"].as_u64().unwrap()).unwrap()
}

pub(crate) fn has_agent(pod: &Pod) -> bool {
    let spec = pod.spec.as_ref().unwrap();
    let containers = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten());
    containers.into_iter().any(|it| it.name == "traffic-agent")
}

/// The life of one row's agent; while its intercept is active something happens, and it goes on.
pub(crate) fn live(
    namespace: &Namespace<'_>,
    workstation: &Workstation<'_>,
    row: &Row,
    meanwhile: &dyn Fn(),
) {
    let (name, caller) = (row.workload.name.as_str(), namespace.caller());
    let is_http = row.url.starts_with("http");
    row.workload.start(namespace);
    answered_by(namespace, &caller, row, HEADER, name);
    let served = workstation.intercept(namespace.name(), name, row.options);
    namespace.settled(name, replicas(row), has_agent);
    answered_by(namespace, &caller, row, HEADER, &served.answers_as);
    if is_http {
        assert_eq!(answers(namespace, &caller, row, "x-dev: you"), name);
    }
    let labels = format!("app={name}");
    let pods = namespace.pods(&labels);
    meanwhile();
    answered_by(namespace, &caller, row, HEADER, &served.answers_as);
    assert_eq!(namespace.pods(&labels), pods, "{name} was rolled");
    served.leave();
    assert_eq!(answers(namespace, &caller, row, HEADER), name, "after");
    let removed = workstation.run(&["uninstall", name, "--namespace", namespace.name()]);
    assert_eq!(removed.code, 0, "{}", removed.text);
    namespace.settled(name, replicas(row), |pod| !has_agent(pod));
    answered_by(namespace, &caller, row, HEADER, name);
}

#[test]
fn every_kind_of_workload_is_injected_intercepted_and_released() {
    let cluster = Cluster::shared();
    let (home, namespace) = (cluster.namespace("manager"), cluster.namespace("life"));
    let manager = Manager::install(&home, &[&namespace], &json!({}));
    let readiness = namespace.readiness();
    let (rows, meeting) = (rows(), Meeting::default());
    std::thread::scope(|scope| {
        for row in &rows {
            let (manager, namespace, meeting) = (&manager, &namespace, &meeting);
            let attend = || meeting.attend();
            scope.spawn(move || live(namespace, &Workstation::new(manager), row, &attend));
        }
        meeting.hold(&manager, rows.len());
    });
    readiness.was_kept();
}
