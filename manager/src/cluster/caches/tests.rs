use super::*;
use crate::cluster::objects::{PodObject, WorkloadObject};
use serde_json::{Value, json};

fn meta(name: &str, owner: Option<(&str, &str)>) -> Value {
    let owners = owner
        .map(|(kind, name)| {
            json!({"kind": kind, "name": name, "controller": true,
            "apiVersion": "v1", "uid": "u"})
        })
        .into_iter();
    json!({"name": name, "namespace": "n", "ownerReferences": owners.collect::<Vec<_>>()})
}

fn workload(caches: &Caches, kind: Kind, name: &str, owner: Option<(&str, &str)>) {
    let template = json!({"metadata": {"labels": {"made-by": name}}, "spec": {"containers": [{"name": "app"}]}});
    let object = json!({"metadata": meta(name, owner), "spec": {"template": template}});
    let object: WorkloadObject = serde_json::from_value(object).unwrap();
    let facts = WorkloadFacts::new(kind, &object);
    caches.workloads(kind).put("n", name, facts);
}

fn pod(caches: &Caches, name: &str, owner: Option<(&str, &str)>) {
    let object = json!({"metadata": meta(name, owner), "spec": {"containers": []}});
    let object: PodObject = serde_json::from_value(object).unwrap();
    caches.pods.put("n", name, PodFacts::from(&object));
}

#[test]
fn pods_of_a_workload_are_those_whose_owners_lead_to_it() {
    let caches = Caches::new(&[Kind::Deployment, Kind::ReplicaSet, Kind::StatefulSet]);
    workload(&caches, Kind::Deployment, "web", None);
    workload(
        &caches,
        Kind::ReplicaSet,
        "web-1",
        Some(("Deployment", "web")),
    );
    workload(
        &caches,
        Kind::ReplicaSet,
        "web-2",
        Some(("Deployment", "web")),
    );
    workload(
        &caches,
        Kind::ReplicaSet,
        "other-1",
        Some(("Deployment", "other")),
    );
    workload(&caches, Kind::ReplicaSet, "web", None);
    workload(&caches, Kind::StatefulSet, "db", Some(("Operator", "db")));
    for (name, owner) in [
        ("old", Some(("ReplicaSet", "web-1"))),
        ("new", Some(("ReplicaSet", "web-2"))),
        ("of-other", Some(("ReplicaSet", "other-1"))),
        ("of-namesake", Some(("ReplicaSet", "web"))),
        ("of-nobody", None),
        ("db-0", Some(("StatefulSet", "db"))),
        ("job", Some(("Job", "web"))),
    ] {
        pod(&caches, name, owner);
    }
    let pods = |kind, name: &str| -> Vec<(String, String)> {
        let key = Key {
            namespace: "n".to_owned(),
            kind,
            name: name.to_owned(),
        };
        let found = caches.pods_of(&key).into_iter();
        found
            .map(|(pod, template)| (pod.name.clone(), template.labels["made-by"].clone()))
            .collect()
    };
    let pair = |pod: &str, template: &str| (pod.to_owned(), template.to_owned());
    let web = [pair("new", "web-2"), pair("old", "web-1")];
    assert_eq!(pods(Kind::Deployment, "web"), web);
    assert_eq!(pods(Kind::ReplicaSet, "web"), [pair("of-namesake", "web")]);
    assert_eq!(pods(Kind::StatefulSet, "db"), [pair("db-0", "db")]);
    // A ReplicaSet that belongs to something is no workload itself.
    assert_eq!(pods(Kind::ReplicaSet, "web-1"), []);
    assert_eq!(pods(Kind::Deployment, "other"), []);
}

#[test]
fn pods_of_a_deployment_are_found_where_replica_sets_are_no_workloads() {
    let caches = Caches::new(&[Kind::Deployment, Kind::StatefulSet]);
    workload(&caches, Kind::Deployment, "web", None);
    let web = Some(("Deployment", "web"));
    workload(&caches, Kind::ReplicaSet, "web-1", web);
    workload(&caches, Kind::ReplicaSet, "bare", None);
    let owners = |name: &str| {
        let kind = "ReplicaSet".to_owned();
        let name = name.to_owned();
        caches.owners("n", Some(OwnerRef { kind, name }))
    };
    assert!(matches!(owners("web-1"), Owners::Found(it, _) if it.name == "web"));
    assert!(matches!(owners("bare"), Owners::Foreign(kind, _) if kind == "ReplicaSet"));
    let roots: Vec<_> = caches.roots("n").iter().map(|it| it.kind).collect();
    assert_eq!(roots, [Kind::Deployment]);
    assert_eq!(
        Caches::new(&[Kind::StatefulSet]).followed,
        [Kind::StatefulSet]
    );
}

#[test]
fn services_around_a_template_are_those_that_a_plan_looks_at() {
    let caches = Caches::new(&[]);
    for (name, selector) in [
        ("of-web", json!({"app": "web", "tier": "front"})),
        ("of-front", json!({"tier": "front"})),
        ("of-other-web", json!({"app": "web", "tier": "back"})),
        ("of-api", json!({"app": "api"})),
        ("of-nobody", json!({})),
    ] {
        let object = json!({"metadata": {"name": name}, "spec": {"selector": selector}});
        let service: k8s_openapi::api::core::v1::Service = serde_json::from_value(object).unwrap();
        caches.services.put("n", name, ServiceFacts::from(&service));
        caches
            .services
            .put("elsewhere", name, ServiceFacts::from(&service));
    }
    let found = |annotations: Value| {
        let spec = json!({"metadata": {"labels": {"app": "web", "tier": "front", "x": "y"},
            "annotations": annotations}});
        let spec: k8s_openapi::api::core::v1::PodTemplateSpec =
            serde_json::from_value(spec).unwrap();
        let template = Template::from(&spec);
        let around = caches.around("n", &template.labels, &template);
        let names = around.services.iter().map(|it| it.name.clone());
        names.collect::<BTreeSet<_>>()
    };
    let names = |names: &[&str]| names.iter().map(|it| (*it).to_owned()).collect();
    assert_eq!(found(json!({})), names(&["of-front", "of-web"]));
    let named = |name: &str| found(json!({"telepresence.io/inject-service-name": name}));
    assert_eq!(named("of-api"), names(&["of-api"]));
    assert_eq!(named("of-none"), names(&[]));
}

#[test]
fn owners_that_go_round_in_a_circle_have_an_end() {
    let caches = Caches::new(&[Kind::ReplicaSet]);
    let names = ["a", "b"];
    workload(&caches, Kind::ReplicaSet, "a", Some(("ReplicaSet", "b")));
    workload(&caches, Kind::ReplicaSet, "b", Some(("ReplicaSet", "a")));
    pod(&caches, "of-a", Some(("ReplicaSet", "a")));
    let pods = names.map(|name| {
        caches.pods_of(&Key {
            namespace: "n".to_owned(),
            kind: Kind::ReplicaSet,
            name: name.to_owned(),
        })
    });
    // Which of the two the way ends at does not matter.
    assert_eq!(pods.iter().map(Vec::len).sum::<usize>(), 1);
}
