//! Pods, workloads and Services in few words, and a look at what a patch made of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use injector::{
    Decision, Kind, NativeSidecar, OwnerOf, Service, Settings, Surroundings, Template, Verdict,
    Wanted, Workload, decide,
};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec, Service as KubeService};
use serde_json::{Value, json};

/// Settings of a chart's defaults, with an image.
pub(crate) fn settings() -> Settings {
    Settings {
        image: "registry.example/traffic-agent:1.2.3".to_owned(),
        pull_policy: "IfNotPresent".to_owned(),
        policy: injector::InjectPolicy::OnDemand,
        native_sidecar: NativeSidecar::Never,
        log_level: "info".to_owned(),
        ..Settings::default()
    }
}

/// A pod of workload `shop`, from its template.
pub(crate) fn pod(template: &Value) -> Pod {
    let mut pod = template.clone();
    pod["metadata"]["generateName"] = json!("shop-7d9-");
    pod["metadata"]["namespace"] = json!("default");
    serde_json::from_value(pod).unwrap()
}

/// Deployment `shop` with a template.
pub(crate) fn workload(template: &Value) -> Workload {
    let template: PodTemplateSpec = serde_json::from_value(template.clone()).unwrap();
    Workload {
        kind: Kind::Deployment,
        name: "shop".to_owned(),
        namespace: "default".to_owned(),
        template: Template::from(&template),
    }
}

/// A template with labels and containers.
pub(crate) fn template(containers: Value) -> Value {
    json!({
        "metadata": {"labels": {"app": "shop"}},
        "spec": {"containers": containers},
    })
}

/// One container `shop` with port `http`/8080.
pub(crate) fn simple() -> Value {
    template(json!([{"name": "shop", "image": "shop:1", "ports": [
        {"name": "http", "containerPort": 8080},
    ]}]))
}

/// The same with annotations.
pub(crate) fn annotated(annotations: &[(&str, &str)]) -> Value {
    let mut template = simple();
    for (key, value) in annotations {
        template["metadata"]["annotations"][key] = json!(value);
    }
    template
}

/// A Service `name` of the pods, with ports.
pub(crate) fn service(name: &str, ports: Value) -> Service {
    let service: KubeService = serde_json::from_value(json!({
        "metadata": {"name": name, "uid": format!("uid-{name}")},
        "spec": {"selector": {"app": "shop"}, "ports": ports},
    }))
    .unwrap();
    Service::from(&service)
}

/// Service `shop`, port 80 to what is given.
pub(crate) fn to(target: Value) -> Service {
    service(
        "shop",
        json!([{"name": "web", "port": 80, "targetPort": target}]),
    )
}

pub(crate) fn around(services: &[Service]) -> Surroundings {
    Surroundings {
        services: services.iter().cloned().map(Arc::new).collect(),
        ..Surroundings::default()
    }
}

/// The decision about a fresh pod of the template's workload, which somebody intercepts.
pub(crate) fn decided(template: &Value, services: &[Service], settings: &Settings) -> Decision {
    decided_in(template, &around(services), settings)
}

pub(crate) fn decided_in(template: &Value, around: &Surroundings, settings: &Settings) -> Decision {
    let workload = workload(template);
    let owner = OwnerOf::Workload(&workload, &WANTED);
    decide(&pod(template), &owner, around, settings)
}

static WANTED: Wanted = Wanted::Yes {
    replaced: std::collections::BTreeSet::new(),
};

/// The pod that the decision makes of the template's; deciding again changes nothing.
pub(crate) fn patched(template: &Value, services: &[Service], settings: &Settings) -> Value {
    patched_in(template, &around(services), settings)
}

pub(crate) fn patched_in(template: &Value, around: &Surroundings, settings: &Settings) -> Value {
    let workload = workload(template);
    let owner = OwnerOf::Workload(&workload, &WANTED);
    patched_by(&pod(template), &owner, around, settings)
}

pub(crate) fn patched_by(
    pod: &Pod,
    owner: &OwnerOf<'_>,
    around: &Surroundings,
    settings: &Settings,
) -> Value {
    let decision = decide(pod, owner, around, settings);
    assert_eq!(decision.verdict, Verdict::Inject, "{:?}", decision.reasons);
    let result = apply(pod, &decision);
    let again: Pod = serde_json::from_value(result.clone()).unwrap();
    let again = decide(&again, owner, around, settings);
    assert_eq!(again.patch.0, [], "the second patch changes something");
    result
}

/// The pod as JSON with the patch applied.
pub(crate) fn apply(pod: &Pod, decision: &Decision) -> Value {
    let mut json = serde_json::to_value(pod).unwrap();
    json_patch::patch(&mut json, &decision.patch).unwrap();
    json
}

/// The container of that name, ordinary or not.
pub(crate) fn container<'a>(pod: &'a Value, name: &str) -> &'a Value {
    let lists = ["containers", "initContainers"];
    let all = lists
        .iter()
        .filter_map(|list| pod["spec"][*list].as_array());
    all.flatten()
        .find(|it| it["name"] == name)
        .unwrap_or(&Value::Null)
}

/// Names of a list's items.
pub(crate) fn names(list: &Value) -> Vec<&str> {
    let items = list.as_array().map(Vec::as_slice).unwrap_or_default();
    items.iter().filter_map(|it| it["name"].as_str()).collect()
}

/// Variables with literal values, or the field they stand for.
pub(crate) fn variables(container: &Value) -> BTreeMap<String, String> {
    let list = container["env"].as_array().cloned().unwrap_or_default();
    list.iter()
        .map(|it| {
            let value = match it["value"].as_str() {
                Some(text) => text.to_owned(),
                None => it["valueFrom"].to_string(),
            };
            (it["name"].as_str().unwrap().to_owned(), value)
        })
        .collect()
}

/// The configuration in the pod's annotation.
pub(crate) fn config(pod: &Value) -> Value {
    let text = pod["metadata"]["annotations"]["telepresence.io/agent-config"].as_str();
    serde_json::from_str(text.unwrap()).unwrap()
}

/// Each entry as `container:port>agent port`, with marks for how callers get there.
pub(crate) fn entries(decision: &Decision) -> Vec<String> {
    let Some(plan) = &decision.plan else {
        return Vec::new();
    };
    let text = |(container, entry): (&injector::config::ConfigContainer, _)| {
        let entry: &injector::config::Entry = entry;
        let numeric = if entry.target_port_numeric {
            " numeric"
        } else {
            ""
        };
        let headless = if entry.headless { " headless" } else { "" };
        let service = match entry.service_name.as_str() {
            "" => "-".to_owned(),
            name => format!("{name}:{}", entry.service_port),
        };
        format!(
            "{service} {}:{}/{}>{}{numeric}{headless}",
            container.name, entry.container_port, entry.protocol, entry.agent_port
        )
    };
    plan.config.entries().map(text).collect()
}
