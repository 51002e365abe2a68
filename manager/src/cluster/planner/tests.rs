use super::*;
use crate::cluster::caches::NamespaceFacts;
use crate::cluster::objects::{PodObject, WorkloadObject};
use injector::{InjectPolicy, Kind, PodSecurity};
use serde_json::{Value, json};
use std::time::SystemTime;

fn key(name: &str) -> Key {
    Key {
        namespace: "n".to_owned(),
        kind: Kind::StatefulSet,
        name: name.to_owned(),
    }
}

fn template(name: &str, annotations: &Value) -> Value {
    json!({"metadata": {"labels": {"app": name}, "annotations": annotations},
        "spec": {"containers": [{"name": "app", "ports": [{"containerPort": 8080}]}]}})
}

fn workload(planner: &Planner, name: &str, template: &Value) {
    let object =
        json!({"metadata": {"name": name, "namespace": "n"}, "spec": {"template": template}});
    let object: WorkloadObject = serde_json::from_value(object).unwrap();
    let facts = WorkloadFacts::new(Kind::StatefulSet, &object);
    planner.caches.stateful_sets.put("n", name, facts);
}

fn service(planner: &Planner, port: u16) {
    let object = json!({"metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": port, "targetPort": 8080}]}});
    let service: k8s_openapi::api::core::v1::Service = serde_json::from_value(object).unwrap();
    let service = injector::Service::from(&service);
    planner.caches.services.put("n", "web", service);
}

fn pod(planner: &Planner, workload: &str, digest: Option<String>) {
    let name = format!("{workload}-0");
    let object = json!({"metadata": {"name": name, "namespace": "n", "ownerReferences": [{
        "apiVersion": "apps/v1", "kind": "StatefulSet", "name": workload, "uid": "u", "controller": true,
    }]}, "spec": {}});
    let object: PodObject = serde_json::from_value(object).unwrap();
    let facts = PodFacts {
        has_agent: digest.is_some(),
        digest,
        ..PodFacts::from(&object)
    };
    planner.caches.pods.put("n", &name, facts);
}

fn planner() -> Planner {
    let caches = Caches::new(&[Kind::StatefulSet]);
    let settings = Settings {
        image: "agent:1".to_owned(),
        policy: InjectPolicy::OnDemand,
        ..Settings::default()
    };
    Planner::new(caches, Arc::default(), settings)
}

#[test]
fn pods_are_judged_by_what_is_there_now() {
    let planner = planner();
    let digest = || {
        let workload = planner.caches.workload(&key("web")).unwrap();
        planner.plan(&workload).unwrap().digest
    };
    // Twice, since the second look finds what the first one has kept.
    let matches = || {
        let looks = [0, 1].map(|_| planner.judge(&key("web")).remove(0).matches);
        assert_eq!(looks[0], looks[1]);
        looks[0]
    };
    workload(&planner, "web", &template("web", &json!({})));
    service(&planner, 80);
    planner.wishes.want(&key("web"), SystemTime::UNIX_EPOCH);
    pod(&planner, "web", Some(digest()));
    assert!(matches());

    service(&planner, 81);
    assert!(!matches(), "another Service");
    service(&planner, 80);
    assert!(matches(), "the first Service once more");

    let facts = NamespaceFacts {
        pod_security: PodSecurity::Restricted,
        ..NamespaceFacts::default()
    };
    planner.caches.namespaces.put("", "n", facts);
    // Port 8080 is numeric and would need a redirect, which is refused here.
    let is_planned = planner.plan(&planner.caches.workload(&key("web")).unwrap());
    assert!(is_planned.is_err());
    pod(&planner, "web", None);
    assert!(matches(), "refused, so left as it is");
    planner.caches.namespaces.remove("", "n");
    assert!(!matches(), "an agent is wanted again");
    pod(&planner, "web", Some(digest()));
    assert!(matches());

    let others = json!({"telepresence.io/inject-container-ports": "9090"});
    workload(&planner, "web", &template("web", &others));
    assert!(!matches(), "another template");
    workload(&planner, "web", &template("web", &json!({})));
    assert!(matches());

    planner.wishes.release(&key("web"));
    assert!(!matches(), "nobody wants it");
    pod(&planner, "web", None);
    assert!(matches());
    planner.wishes.want(&key("web"), SystemTime::UNIX_EPOCH);
    assert!(!matches());
    planner.wishes.terminate();
    assert!(matches(), "nothing is wanted at the end");
}

#[test]
fn workloads_concern_us_by_wish_annotation_or_agent() {
    let planner = planner();
    let none = json!({});
    let enabled = json!({"telepresence.io/inject-traffic-agent": "enabled"});
    let all = [
        ("enabled", &enabled, None),
        ("idle", &none, None),
        ("left", &none, Some("digest".to_owned())),
        ("wished", &none, None),
    ];
    for (name, annotations, digest) in all {
        workload(&planner, name, &template(name, annotations));
        pod(&planner, name, digest);
    }
    planner.wishes.want(&key("wished"), SystemTime::UNIX_EPOCH);
    let concerned = ["enabled", "left", "wished"].map(key);
    assert_eq!(planner.relevant("n"), concerned);
    assert_eq!(planner.relevant("elsewhere"), []);
    workload(&planner, "enabled", &template("enabled", &none));
    pod(&planner, "left", None);
    planner.wishes.release(&key("wished"));
    assert_eq!(planner.relevant("n"), []);
}
