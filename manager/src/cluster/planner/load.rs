//! What single decisions cost beside 5 000 pods, without a cluster; benches/README.md has the command.

use std::time::{Duration, Instant};

use injector::{InjectPolicy, Kind};
use serde_json::{Value, json};

use super::*;
use crate::cluster::admission::Admission;
use crate::cluster::objects::{PodObject, WorkloadObject};

const PODS: usize = 5000;
const WORKLOADS: usize = 300;
const SERVICES: usize = 500;
const NAMESPACE: &str = "shop";

fn owner(kind: &str, name: &str) -> Value {
    json!([{"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": "u", "controller": true}])
}

fn template(app: &str, annotated: bool) -> Value {
    let env: Vec<_> = (0..20)
        .map(|n| json!({"name": format!("SETTING_{n}"), "value": "of some length, as they have"}))
        .collect();
    let annotations = match annotated {
        true => json!({"telepresence.io/inject-traffic-agent": "enabled"}),
        false => json!({}),
    };
    json!({"metadata": {"labels": {"app": app, "pod-template-hash": "1"}, "annotations": annotations},
        "spec": {"containers": [{"name": "app", "image": "localhost/rig/app:1", "args": ["serve", "web"],
            "ports": [{"name": "http", "containerPort": 8080}], "env": env}]}})
}

fn workload(caches: &Caches, n: usize, annotated: bool) {
    let app = format!("app-{n}");
    let set = format!("{app}-1");
    for (kind, name, owners) in [
        (Kind::Deployment, app.clone(), json!([])),
        (Kind::ReplicaSet, set, owner("Deployment", &app)),
    ] {
        let object = json!({"metadata": {"name": name, "namespace": NAMESPACE, "ownerReferences": owners},
            "spec": {"replicas": 17, "template": template(&app, annotated)}});
        let object: WorkloadObject = serde_json::from_value(object).unwrap();
        caches
            .workloads(kind)
            .put(NAMESPACE, &name, WorkloadFacts::new(kind, &object));
    }
}

fn pod(n: usize, digest: Option<&str>) -> PodFacts {
    let mut object = json!({"metadata": {"name": format!("app-{}-1-{n}", n % WORKLOADS), "namespace": NAMESPACE,
        "ownerReferences": owner("ReplicaSet", &format!("app-{}-1", n % WORKLOADS)), "uid": format!("u{n}")},
        "spec": {"containers": [{"name": "app"}]},
        "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": format!("10.64.{}.{}", n / 250, n % 250)}],
            "conditions": [{"type": "Ready", "status": "True"}]}});
    if let Some(digest) = digest {
        object["metadata"]["annotations"] = json!({"telepresence.io/agent-digest": digest});
        object["spec"]["containers"] = json!([{"name": "app"}, {"name": "traffic-agent"}]);
    }
    PodFacts::from(&serde_json::from_value::<PodObject>(object).unwrap())
}

fn planner(agents: usize) -> Planner {
    let caches = Caches::new(&[Kind::Deployment, Kind::ReplicaSet, Kind::StatefulSet]);
    let settings = Settings {
        image: "agent:1".to_owned(),
        policy: InjectPolicy::OnDemand,
        ..Settings::default()
    };
    for n in 0..SERVICES {
        let object = json!({"metadata": {"name": format!("service-{n}"), "namespace": NAMESPACE, "uid": format!("s{n}")},
            "spec": {"selector": {"app": format!("app-{}", n % WORKLOADS)}, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]}});
        let service: k8s_openapi::api::core::v1::Service = serde_json::from_value(object).unwrap();
        caches.services.put(
            NAMESPACE,
            &format!("service-{n}"),
            injector::Service::from(&service),
        );
    }
    let wishes = Arc::new(Wishes::default());
    for n in 0..WORKLOADS {
        workload(&caches, n, false);
    }
    let planner = Planner::new(caches.clone(), wishes.clone(), settings);
    for n in 0..agents {
        wishes.want(&key(n), std::time::SystemTime::now());
    }
    for n in 0..PODS {
        let digest = (n % WORKLOADS < agents).then(|| {
            planner
                .plan(&caches.workload(&key(n)).unwrap())
                .unwrap()
                .digest
        });
        let pod = pod(n, digest.as_deref());
        caches.pods.put(NAMESPACE, &pod.name.clone(), pod);
    }
    planner
}

fn key(n: usize) -> Key {
    Key {
        namespace: NAMESPACE.to_owned(),
        kind: Kind::Deployment,
        name: format!("app-{}", n % WORKLOADS),
    }
}

fn review(large: bool) -> Vec<u8> {
    let mut template = template("app-1", true);
    if large {
        let spec = &mut template["spec"];
        let one = spec["containers"][0].clone();
        spec["volumes"] = (0..20)
            .map(|n| json!({"name": format!("v{n}"), "emptyDir": {}}))
            .collect();
        spec["containers"] = (0..8).map(|n| {
            let mut one = one.clone();
            one["name"] = json!(format!("app{n}"));
            one["ports"] = json!([{"name": format!("http{n}"), "containerPort": 8080 + n}]);
            one["volumeMounts"] = (0..20).map(|n| json!({"name": format!("v{n}"), "mountPath": format!("/some/where/{n}")})).collect();
            one
        }).collect();
    }
    template["apiVersion"] = json!("v1");
    template["kind"] = json!("Pod");
    template["metadata"]["namespace"] = json!(NAMESPACE);
    template["metadata"]["generateName"] = json!("app-1-1-");
    template["metadata"]["ownerReferences"] = owner("ReplicaSet", "app-1-1");
    let kind = json!({"group": "", "version": "v1", "kind": "Pod"});
    let resource = json!({"group": "", "version": "v1", "resource": "pods"});
    serde_json::to_vec(&json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
        "uid": "1", "kind": kind, "resource": resource, "requestKind": kind, "requestResource": resource,
        "namespace": NAMESPACE, "operation": "CREATE", "object": template, "oldObject": null, "dryRun": false,
        "options": null, "userInfo": {"username": "bench"}}})).unwrap()
}

/// Median and p99 of single calls.
fn timed(what: &str, times: usize, mut call: impl FnMut()) {
    let mut took: Vec<Duration> = (0..times)
        .map(|_| {
            let begin = Instant::now();
            call();
            begin.elapsed()
        })
        .collect();
    took.sort();
    println!(
        "{what:40} {:9.1?} p99 {:9.1?}",
        took[times / 2],
        took[times * 99 / 100]
    );
}

#[test]
#[ignore = "measures"]
fn load() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let _guard = runtime.enter();
    let config = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
    let only = std::env::var("LOAD_ONLY").unwrap_or_default();
    let times: usize = std::env::var("LOAD_TIMES")
        .ok()
        .map_or(300, |it| it.parse().unwrap());
    for agents in [0, 5, 300] {
        let planner = planner(agents);
        let admission = Admission {
            client: kube::Client::try_from(config.clone()).unwrap(),
            planner: planner.clone(),
            counts: Arc::default(),
        };
        let is = |what: &str| only.is_empty() || only == what;
        if is("review") {
            for large in [false, true] {
                let body = review(large);
                timed(
                    &format!("{agents} agents: review of {} bytes", body.len()),
                    times,
                    || {
                        let answer = runtime.block_on(admission.review(&body)).unwrap();
                        let answer = serde_json::to_vec(&answer).unwrap();
                        assert!(answer.len() > 1000, "{}", String::from_utf8_lossy(&answer));
                    },
                );
            }
        }
        if is("relevant") {
            timed(&format!("{agents} agents: relevant"), times, || {
                assert_eq!(planner.relevant(NAMESPACE).len(), agents)
            });
        }
        if is("judge") {
            let mut n = 0;
            timed(&format!("{agents} agents: judge"), times, || {
                n += 7;
                let judged = planner.judge(&key(n));
                assert!(judged.len() >= 16 && judged.iter().all(|it| it.matches));
            });
        }
        if is("put") {
            let mut n = 0;
            timed(&format!("{agents} agents: a pod changes"), times, || {
                n += 7;
                let mut pod = pod(n % PODS, None);
                pod.ready = n % 2 == 0;
                let name = pod.name.clone();
                planner.caches.pods.put(NAMESPACE, &name, pod);
            });
        }
    }
}
