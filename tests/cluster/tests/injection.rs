//! What pods become: by their annotations in every spelling, as a native sidecar or an ordinary
//! container.

use std::io::Write;
use std::process::{Command, Stdio};

use cluster_tests::{Cluster, HEADER, Manager, Namespace, Workload, Workstation};
use harness::certs::Authority;
use harness::ports;
use harness::process::Process;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::life::has_agent;

/// Annotations of a template, whether its pods get an agent, and words of the warning that whoever
/// creates one is given; none: no warning.
type Row = (
    &'static [(&'static str, &'static str)],
    bool,
    &'static [&'static str],
);

const ROWS: [Row; 14] = [
    (&[], false, &[]),
    (
        &[("telepresence.io/inject-traffic-agent", "enabled")],
        true,
        &[],
    ),
    (
        &[(
            "telepresence.getambassador.io/inject-traffic-agent",
            "enabled",
        )],
        true,
        &[],
    ),
    (
        &[("telepresence.io/inject-traffic-agent", "disabled")],
        false,
        &[],
    ),
    (
        &[(
            "telepresence.getambassador.io/inject-traffic-agent",
            "false",
        )],
        false,
        &[],
    ),
    (
        &[("telepresence.io/inject-traffic-agent", "maybe")],
        false,
        &["inject-traffic-agent", "maybe"],
    ),
    (
        &[
            ("telepresence.io/inject-traffic-agent", "enabled"),
            ("telepresence.io/inject-service-name", "web"),
        ],
        true,
        &[],
    ),
    (
        &[
            ("telepresence.io/inject-traffic-agent", "enabled"),
            (
                "telepresence.getambassador.io/inject-service-name",
                "nobody",
            ),
        ],
        false,
        &["nobody"],
    ),
    (
        &[
            ("telepresence.io/inject-traffic-agent", "enabled"),
            ("telepresence.io/inject-service-ports", "http"),
        ],
        true,
        &[],
    ),
    (
        &[
            ("telepresence.io/inject-traffic-agent", "enabled"),
            ("telepresence.getambassador.io/inject-service-ports", "a,b,"),
        ],
        true,
        &["inject-service-ports"],
    ),
    (
        &[
            ("telepresence.io/inject-traffic-agent", "enabled"),
            ("telepresence.io/inject-container-ports", "8080"),
        ],
        true,
        &[],
    ),
    (
        &[
            ("telepresence.io/inject-traffic-agent", "enabled"),
            ("telepresence.io/inject-ignore-volume-mounts", "data, /tmp"),
        ],
        true,
        &[],
    ),
    (
        &[
            ("telepresence.io/inject-traffic-agent", "enabled"),
            (
                "telepresence.getambassador.io/inject-terminating-tls-secret",
                "tls",
            ),
        ],
        true,
        &[],
    ),
    (&[("telepresence.io/manually-injected", "true")], false, &[]),
];

/// A pod of a workload as the API server would make it, and the warnings.
fn rehearsed(namespace: &Namespace<'_>, workload: &mut Workload) -> (Pod, String) {
    let sets: Api<ReplicaSet> = namespace.api();
    let set = namespace.cluster().block_on(sets.get(&workload.name));
    pod_of(namespace, workload, &set.unwrap())
}

/// The same for a pod of one of its ReplicaSets.
fn pod_of(namespace: &Namespace<'_>, workload: &mut Workload, set: &ReplicaSet) -> (Pod, String) {
    let mut pod = workload.template().clone();
    pod["apiVersion"] = "v1".into();
    pod["kind"] = "Pod".into();
    pod["metadata"]["name"] = format!("{}-x", workload.name).into();
    pod["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "controller": true,
        "name": set.metadata.name, "uid": set.metadata.uid,
    }]);
    let mut kubectl = namespace.cluster().kubectl();
    kubectl.args([
        "create",
        "--dry-run=server",
        "--output=json",
        "--filename=-",
    ]);
    kubectl.args(["--namespace", namespace.name()]);
    kubectl
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = kubectl.spawn().unwrap();
    let text = pod.to_string();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let warnings = String::from_utf8(output.stderr).unwrap();
    let pod = serde_json::from_slice(&output.stdout);
    (pod.unwrap_or_else(|_| panic!("{warnings}")), warnings)
}

/// Waits until the webhook has said something to a pod that asks for an agent: an API server reads
/// a new webhook configuration a moment after the manager is ready, and ignores it until then.
fn webhook_called(
    namespace: &Namespace<'_>,
    workload: &mut Workload,
    set: &ReplicaSet,
) -> (Pod, String) {
    harness::wait::until("the webhook to be called", || {
        let (pod, warnings) = pod_of(namespace, workload, set);
        (has_agent(&pod) || !warnings.is_empty()).then_some((pod, warnings))
    })
}

#[test]
fn annotations_of_every_spelling_decide_and_mistakes_are_warned_of() {
    let cluster = Cluster::shared();
    let (home, namespace) = (cluster.namespace("manager"), cluster.namespace("spelled"));
    let _manager = Manager::install(&home, &[&namespace], &json!({}));
    let service = Workload::new("ReplicaSet", "web", 0, "http");
    namespace.apply(&service.service.as_ref().unwrap().to_string());
    let mut first = Workload::new("ReplicaSet", "first", 0, "http")
        .annotated("telepresence.io/inject-traffic-agent", "enabled");
    first.apply(&namespace);
    let set = cluster.block_on(namespace.api::<ReplicaSet>().get("first"));
    webhook_called(&namespace, &mut first, &set.unwrap());
    for (number, (annotations, injected, words)) in ROWS.iter().enumerate() {
        let mut workload = Workload::new("ReplicaSet", &format!("row-{number}"), 0, "http");
        workload = workload.without_service();
        for (key, value) in *annotations {
            workload = workload.annotated(key, value);
        }
        // All of them are behind the Service `web`.
        workload.template()["metadata"]["labels"]["app"] = "web".into();
        workload.object["spec"]["selector"]["matchLabels"]["app"] = "web".into();
        workload.apply(&namespace);
        let (pod, warnings) = rehearsed(&namespace, &mut workload);
        assert_eq!(has_agent(&pod), *injected, "{annotations:?}: {warnings}");
        assert_eq!(
            words.is_empty(),
            warnings.is_empty(),
            "{annotations:?}: {warnings}"
        );
        for word in *words {
            assert!(warnings.contains(word), "{annotations:?}: {warnings}");
        }
    }
}

#[test]
fn pods_of_a_deployment_that_had_none_get_their_agent_at_once() {
    let cluster = Cluster::shared();
    let (home, namespace) = (cluster.namespace("manager"), cluster.namespace("nothing"));
    let _manager = Manager::install(&home, &[&namespace], &json!({}));
    let mut web = Workload::new("Deployment", "web", 0, "http")
        .annotated("telepresence.io/inject-traffic-agent", "enabled");
    web.apply(&namespace);
    let sets: Api<ReplicaSet> = namespace.api();
    let of_web = ListParams::default().labels("app=web");
    let set = harness::wait::until("its ReplicaSet", || {
        let found = cluster.block_on(sets.list(&of_web)).unwrap();
        found.items.into_iter().next()
    });
    // Its first pod may come before the manager has heard that it is to have any.
    let (pod, warnings) = webhook_called(&namespace, &mut web, &set);
    assert!(has_agent(&pod), "{warnings}");
}

/// The agent is one of the ordinary containers.
fn is_ordinary(pod: &Pod) -> bool {
    let containers = &pod.spec.as_ref().unwrap().containers;
    containers.iter().any(|it| it.name == "traffic-agent")
}

#[test]
fn an_ordinary_container_serves_as_well_as_a_native_sidecar_and_becomes_one() {
    let cluster = Cluster::shared();
    let (home, namespace) = (cluster.namespace("manager"), cluster.namespace("ordinary"));
    let kind = |native: &str| -> Value { json!({"agent": {"nativeSidecar": native}}) };
    let manager = Manager::install(&home, &[&namespace], &kind("never"));
    let readiness = namespace.readiness();
    let caller = namespace.caller();
    let workstation = Workstation::new(&manager);
    let served = [("named", "http"), ("numeric", "8080")].map(|(name, target)| {
        Workload::new("Deployment", name, 1, target).start(&namespace);
        workstation.intercept(namespace.name(), name, &[])
    });
    let all_answer = || {
        for (name, served) in ["named", "numeric"].iter().zip(&served) {
            let url = format!("http://{name}");
            harness::wait::until(&format!("{name}'s intercept"), || {
                let answer = caller.try_get(&url, &["-H", HEADER]).ok()?;
                (answer.by == served.answers_as).then_some(())
            });
            assert_eq!(caller.get(&url, &[]).by, *name);
        }
    };
    for name in ["named", "numeric"] {
        namespace.settled(name, 1, |pod| has_agent(pod) && is_ordinary(pod));
    }
    all_answer();
    manager.upgrade(&[&kind("auto")]);
    for name in ["named", "numeric"] {
        namespace.settled(name, 1, |pod| has_agent(pod) && !is_ordinary(pod));
    }
    all_answer();
    readiness.was_kept();
}

/// A webhook of somebody else, beside the cluster, that puts a variable into every container.
struct Hook<'a> {
    namespace: &'a Namespace<'a>,
    name: String,
    _server: Process,
    _folder: TempDir,
}

impl<'a> Hook<'a> {
    /// Webhooks are called in the order of their names.
    fn start(namespace: &'a Namespace<'a>, begins: &str, variable: &str) -> Self {
        let cluster = namespace.cluster();
        let host = cluster.facts().host.to_string();
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new("webhook authority");
        authority.write_secret(folder.path(), &authority.sign(&[&host]));
        let address = format!("{host}:{}", ports::free());
        let mut server = Command::new(cluster.facts().programs.join("app"));
        server.args(["hook", "-https", &address, "-env", variable]);
        server.arg("-cert").arg(folder.path().join("tls.crt"));
        server.arg("-key").arg(folder.path().join("tls.key"));
        let server = Process::start(begins, &mut server);
        let name = format!("{begins}-{}", namespace.name());
        let bundle = k8s_openapi::ByteString(authority.pem().into());
        let configuration = json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "MutatingWebhookConfiguration", "metadata": {"name": name},
            "webhooks": [{
                "name": "hook.example.test", "admissionReviewVersions": ["v1"],
                "sideEffects": "None", "failurePolicy": "Fail", "reinvocationPolicy": "IfNeeded",
                "clientConfig": {"url": format!("https://{address}/"), "caBundle": bundle},
                "namespaceSelector":
                    {"matchLabels": {"kubernetes.io/metadata.name": namespace.name()}},
                "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"],
                    "resources": ["pods"]}],
            }],
        });
        namespace.apply(&configuration.to_string());
        Self {
            namespace,
            name,
            _server: server,
            _folder: folder,
        }
    }
}

impl Drop for Hook<'_> {
    fn drop(&mut self) {
        let mut kubectl = self.namespace.cluster().kubectl();
        let kind = "mutatingwebhookconfiguration";
        let _ = kubectl.args(["delete", kind, &self.name]).output();
    }
}

/// Every container of the pod has these variables.
fn has_variables(pod: &Pod, names: &[&str]) -> bool {
    let spec = pod.spec.as_ref().unwrap();
    let inits = spec.init_containers.iter().flatten();
    let mut containers = spec.containers.iter().chain(inits);
    containers.all(|container| {
        let has = |name: &&str| container.env.iter().flatten().any(|it| it.name == **name);
        names.iter().all(has)
    })
}

#[test]
fn webhooks_before_and_after_ours_may_change_the_agent_and_nothing_is_rolled_again() {
    let cluster = Cluster::shared();
    let (home, namespace) = (cluster.namespace("manager"), cluster.namespace("hooked"));
    let manager = Manager::install(&home, &[&namespace], &json!({}));
    Workload::new("Deployment", "web", 2, "8080").start(&namespace);
    let _before = Hook::start(&namespace, "a-before", "BEFORE");
    let _after = Hook::start(&namespace, "z-after", "AFTER");
    let workstation = Workstation::new(&manager);
    let served = workstation.intercept(namespace.name(), "web", &[]);
    let both = ["BEFORE", "AFTER"];
    namespace.settled("web", 2, |pod| has_agent(pod) && has_variables(pod, &both));
    let pods = namespace.pods("app=web");
    let load = namespace.load("http://web", 100, &["-header", "x-dev=me"]);
    let tally = load.goes_on_for(500);
    assert_eq!(tally.failed(), 0, "{tally:?}");
    assert_eq!(namespace.pods("app=web"), pods, "pods were replaced again");
    let _ = load.stop();
    served.leave();
}
