//! Objects of the API server, reduced to what is read here. What is not decoded costs no memory.

use std::net::IpAddr;
use std::sync::Arc;

use injector::{Kind, OwnerRef, Service, Template, annotations, controller};
use k8s_openapi::api::core::v1::{self as core, PodTemplateSpec};
use kube::discovery::ApiResource;
use kube::{Resource, ResourceExt};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::lean::Lean;

/// A workload.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct WorkloadFacts {
    pub(crate) kind: Kind,
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) uid: String,
    pub(crate) controller: Option<OwnerRef>,
    /// Empty for a ReplicaSet without pods that belongs to something: there are many of them.
    pub(crate) template: Arc<Template>,
    pub(crate) replicas: i32,
    pub(crate) ready: i32,
    pub(crate) state: WorkloadState,
    pub(crate) own_rollout: OwnRollout,
    /// Its own roll-out replaces pods when the template changes.
    pub(crate) can_restart: bool,
    pub(crate) terminating: bool,
}

/// The state of a workload as clients see it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum WorkloadState {
    #[default]
    Unknown,
    Available,
    Progressing,
    Failure,
}

/// The progress of the workload's own roll-out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum OwnRollout {
    /// All pods are of the newest template.
    #[default]
    Over,
    /// The workload's controller has not seen the newest template yet.
    Asked,
    /// There are pods of an older template, or too few of the newest.
    UnderWay,
}

/// A pod.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PodFacts {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) uid: String,
    pub(crate) controller: Option<OwnerRef>,
    /// The digest of the plan that its agent was made from.
    pub(crate) digest: Option<String>,
    pub(crate) has_agent: bool,
    /// Its agent is maintained by hand.
    pub(crate) manual: bool,
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) ready: bool,
    /// Ended, well or not.
    pub(crate) finished: bool,
    pub(crate) terminating: bool,
}

/// A Service of a namespace.
pub(crate) type ServiceFacts = Service;

/// Workload kinds as the API server sends them.
pub(crate) type WorkloadObject = Lean<WorkloadSpec, WorkloadStatus>;
/// Pods likewise.
pub(crate) type PodObject = Lean<PodSpec, PodStatus>;
/// Services likewise.
pub(crate) type ServiceObject = Lean<core::ServiceSpec, IgnoredAny>;

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct WorkloadSpec {
    replicas: Option<i32>,
    template: Option<PodTemplateSpec>,
    update_strategy: Option<Strategy>,
    #[serde(default)]
    paused: bool,
}

impl WorkloadSpec {
    /// Template that pods are made from.
    pub(crate) fn template(&self) -> Option<Template> {
        self.template.as_ref().map(Template::from)
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Strategy {
    #[serde(rename = "type", default)]
    kind: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct WorkloadStatus {
    observed_generation: Option<serde_json::Value>,
    replicas: Option<i32>,
    updated_replicas: Option<i32>,
    ready_replicas: Option<i32>,
    available_replicas: Option<i32>,
    conditions: Option<Vec<Condition>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Condition {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    status: String,
    #[serde(default)]
    reason: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct PodSpec {
    containers: Vec<ContainerName>,
    init_containers: Option<Vec<ContainerName>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ContainerName {
    name: String,
    restart_policy: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct PodStatus {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<PodIp>>,
    conditions: Option<Vec<Condition>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct PodIp {
    ip: Option<String>,
}

/// The API of a workload kind.
pub(crate) fn workload_resource(kind: Kind) -> ApiResource {
    use k8s_openapi::api::apps::v1;
    match kind {
        Kind::Deployment => ApiResource::erase::<v1::Deployment>(&()),
        Kind::ReplicaSet => ApiResource::erase::<v1::ReplicaSet>(&()),
        Kind::StatefulSet => ApiResource::erase::<v1::StatefulSet>(&()),
        Kind::Rollout => ApiResource {
            group: "argoproj.io".to_owned(),
            version: "v1alpha1".to_owned(),
            api_version: "argoproj.io/v1alpha1".to_owned(),
            kind: "Rollout".to_owned(),
            plural: "rollouts".to_owned(),
        },
    }
}

/// The API of pods.
pub(crate) fn pod_resource() -> ApiResource {
    ApiResource::erase::<core::Pod>(&())
}

/// The API of Services.
pub(crate) fn service_resource() -> ApiResource {
    ApiResource::erase::<core::Service>(&())
}

impl WorkloadFacts {
    pub(crate) fn new(kind: Kind, object: &WorkloadObject) -> Self {
        let controller = controller(object.meta());
        let replicas = object.spec.replicas.unwrap_or(1);
        // A Deployment keeps its older ReplicaSets, and their templates are most of what would be
        // kept in memory.
        let is_idle = kind == Kind::ReplicaSet && controller.is_some() && replicas == 0;
        let template = object.spec.template.as_ref().filter(|_| !is_idle);
        let status = object.status.clone().unwrap_or_default();
        Self {
            kind,
            name: object.name_any(),
            namespace: object.namespace().unwrap_or_default(),
            uid: object.uid().unwrap_or_default(),
            controller,
            template: Arc::new(template.map(Template::from).unwrap_or_default()),
            replicas,
            ready: status.ready_replicas.unwrap_or(0),
            state: state(kind, object, &status),
            own_rollout: own_rollout(kind, object, &status),
            can_restart: can_restart(kind, &object.spec),
            terminating: object.meta().deletion_timestamp.is_some(),
        }
    }

    /// The workload with the template of a pod's nearest owner.
    pub(crate) fn as_workload(&self, template: &Template) -> injector::Workload {
        injector::Workload {
            kind: self.kind,
            name: self.name.clone(),
            namespace: self.namespace.clone(),
            template: template.clone(),
        }
    }
}

fn can_restart(kind: Kind, spec: &WorkloadSpec) -> bool {
    let on_delete = spec
        .update_strategy
        .as_ref()
        .is_some_and(|it| it.kind == "OnDelete");
    match kind {
        // It never replaces pods that run.
        Kind::ReplicaSet => false,
        _ => !spec.paused && !on_delete,
    }
}

/// Judges by replica counts, since a finished roll-out has conditions of every kind.
fn state(kind: Kind, object: &WorkloadObject, status: &WorkloadStatus) -> WorkloadState {
    let failed = |condition: &Condition| {
        let replica_failure = condition.kind == "ReplicaFailure" && condition.status == "True";
        // Set by the Deployment's own deadline, long after pods stopped coming.
        let stuck = condition.reason.as_deref() == Some("ProgressDeadlineExceeded");
        replica_failure || stuck
    };
    if status.conditions.iter().flatten().any(failed) {
        return WorkloadState::Failure;
    }
    let wanted = object.spec.replicas.unwrap_or(1);
    let count = |number: Option<i32>| number.unwrap_or(0);
    let seen = observed(object, status);
    let updated = match kind {
        // It has one template, so all of its pods are of the newest.
        Kind::ReplicaSet => count(status.replicas),
        _ => count(status.updated_replicas),
    };
    let available = match kind {
        // Older API servers do not count available pods of these.
        Kind::StatefulSet | Kind::ReplicaSet => count(status.ready_replicas),
        Kind::Deployment | Kind::Rollout => count(status.available_replicas),
    };
    match seen && updated >= wanted && available >= wanted && count(status.replicas) <= wanted {
        true => WorkloadState::Available,
        false => WorkloadState::Progressing,
    }
}

fn own_rollout(kind: Kind, object: &WorkloadObject, status: &WorkloadStatus) -> OwnRollout {
    let wanted = object.spec.replicas.unwrap_or(1);
    let count = |number: Option<i32>| number.unwrap_or(0);
    if kind == Kind::ReplicaSet {
        // It has none.
        OwnRollout::Over
    } else if !observed(object, status) {
        OwnRollout::Asked
    } else if count(status.updated_replicas) < wanted || count(status.replicas) > wanted {
        OwnRollout::UnderWay
    } else {
        OwnRollout::Over
    }
}

/// Argo writes the generation it has seen as text.
fn observed(object: &WorkloadObject, status: &WorkloadStatus) -> bool {
    let seen = match &status.observed_generation {
        Some(serde_json::Value::Number(number)) => number.as_i64(),
        Some(serde_json::Value::String(text)) => text.parse().ok(),
        _ => None,
    };
    match (object.meta().generation, seen) {
        // A controller that writes no generation is believed.
        (Some(generation), Some(seen)) => seen >= generation,
        _ => true,
    }
}

impl From<&PodObject> for PodFacts {
    fn from(object: &PodObject) -> Self {
        let own = object.annotations();
        let status = object.status.clone().unwrap_or_default();
        let ready = |condition: &Condition| condition.kind == "Ready" && condition.status == "True";
        let phase = status.phase.as_deref().unwrap_or_default();
        Self {
            name: object.name_any(),
            namespace: object.namespace().unwrap_or_default(),
            uid: object.uid().unwrap_or_default(),
            controller: controller(object.meta()),
            digest: own.get(annotations::DIGEST).cloned(),
            has_agent: has_agent(&object.spec),
            manual: annotations::is_manual(own),
            ips: ips(&status),
            ready: status.conditions.iter().flatten().any(ready),
            finished: matches!(phase, "Succeeded" | "Failed"),
            terminating: object.meta().deletion_timestamp.is_some(),
        }
    }
}

fn has_agent(spec: &PodSpec) -> bool {
    let ordinary = spec
        .containers
        .iter()
        .any(|it| it.name == injector::AGENT_CONTAINER);
    let native = spec.init_containers.iter().flatten().any(|it| {
        // An init container that ends is no sidecar.
        it.name == injector::AGENT_CONTAINER && it.restart_policy.as_deref() == Some("Always")
    });
    ordinary || native
}

fn ips(status: &PodStatus) -> Vec<IpAddr> {
    let listed = status.pod_ips.iter().flatten();
    let mut ips: Vec<&String> = listed.filter_map(|it| it.ip.as_ref()).collect();
    // API servers of one family only may leave the list out.
    if ips.is_empty() {
        ips.extend(&status.pod_ip);
    }
    ips.iter().filter_map(|it| it.parse().ok()).collect()
}

impl PodFacts {
    /// Serving, or about to.
    pub(crate) fn is_live(&self) -> bool {
        !self.terminating && !self.finished
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn workload(kind: Kind, value: serde_json::Value) -> WorkloadFacts {
        WorkloadFacts::new(kind, &serde_json::from_value(value).unwrap())
    }

    #[test]
    fn a_state_is_told_by_counts_and_generation() {
        use WorkloadState::{Available, Failure, Progressing};
        let conditions = json!([
            {"type": "Progressing", "status": "True"}, {"type": "Available", "status": "True"},
        ]);
        let done = json!({"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2,
            "readyReplicas": 2, "availableReplicas": 2, "conditions": conditions});
        let changed = |key: &str, value: serde_json::Value| {
            let mut status = done.clone();
            status[key] = value;
            status
        };
        for (status, expected) in [
            (done.clone(), Available),
            (changed("observedGeneration", json!(1)), Progressing),
            (changed("observedGeneration", json!("2")), Available),
            (changed("updatedReplicas", json!(1)), Progressing),
            (changed("availableReplicas", json!(1)), Progressing),
            (changed("replicas", json!(3)), Progressing),
            (
                changed(
                    "conditions",
                    json!([{"type": "ReplicaFailure", "status": "True"}]),
                ),
                Failure,
            ),
            (
                changed(
                    "conditions",
                    json!([{"type": "Progressing", "status": "False",
                        "reason": "ProgressDeadlineExceeded"}]),
                ),
                Failure,
            ),
        ] {
            let object = json!({"metadata": {"name": "w", "generation": 2},
                "spec": {"replicas": 2, "template": {}}, "status": status});
            assert_eq!(
                workload(Kind::Deployment, object).state,
                expected,
                "{status}"
            );
        }
    }

    #[test]
    fn a_roll_out_is_over_when_every_pod_is_of_the_newest_template() {
        use OwnRollout::{Asked, Over, UnderWay};
        let facts = |kind, status: serde_json::Value| {
            let object = json!({"metadata": {"name": "w", "generation": 2},
                "spec": {"replicas": 2, "template": {}}, "status": status});
            workload(kind, object).own_rollout
        };
        for (seen, replicas, updated, expected) in [
            (2, 2, 2, Over),
            (1, 2, 2, Asked),
            (2, 2, 1, UnderWay),
            (2, 3, 2, UnderWay),
        ] {
            let status = json!({"observedGeneration": seen, "replicas": replicas,
                "updatedReplicas": updated});
            for kind in [Kind::Deployment, Kind::StatefulSet, Kind::Rollout] {
                assert_eq!(facts(kind, status.clone()), expected, "{status}");
            }
            assert_eq!(facts(Kind::ReplicaSet, status), Over);
        }
    }

    #[test]
    fn old_replica_sets_of_a_deployment_keep_no_template() {
        let object = |replicas: i32| {
            json!({"metadata": {"name": "w", "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d", "uid": "u",
                 "controller": true}]},
                "spec": {"replicas": replicas, "template": {"spec": {"containers": [
                    {"name": "app"}]}}}})
        };
        assert_eq!(
            workload(Kind::ReplicaSet, object(0))
                .template
                .containers
                .len(),
            0
        );
        assert_eq!(
            workload(Kind::ReplicaSet, object(1))
                .template
                .containers
                .len(),
            1
        );
    }

    #[test]
    fn a_pod_tells_whether_it_has_an_agent_that_runs() {
        let pod = |spec: serde_json::Value| {
            let object = json!({"metadata": {"name": "p"}, "spec": spec,
                "status": {"phase": "Running", "podIP": "10.0.0.1",
                    "conditions": [{"type": "Ready", "status": "True"}]}});
            PodFacts::from(&serde_json::from_value::<PodObject>(object).unwrap())
        };
        let app = json!([{"name": "app"}]);
        let agent = |policy: &str| json!([{"name": "traffic-agent", "restartPolicy": policy}]);
        assert!(!pod(json!({"containers": app})).has_agent);
        assert!(pod(json!({"containers": [{"name": "traffic-agent"}]})).has_agent);
        assert!(pod(json!({"containers": app, "initContainers": agent("Always")})).has_agent);
        assert!(!pod(json!({"containers": app, "initContainers": agent("")})).has_agent);
        let facts = pod(json!({"containers": app}));
        assert_eq!(facts.ips, [IpAddr::from([10, 0, 0, 1])]);
        assert!(facts.ready && facts.is_live());
    }
}
