//! Single steps that replace a pod: eviction, and the workload's own roll-out.

use std::time::SystemTime;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DynamicObject, EvictParams, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;

use super::caches::Key;
use super::objects::{PodFacts, workload_resource};

/// Outcome of an eviction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The pod goes, or is gone.
    Done,
    /// A disruption budget keeps it.
    Refused,
}

/// Evicts a pod, if its disruption budgets allow.
pub(crate) async fn evict(client: &Client, pod: &PodFacts) -> Result<Outcome, String> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace);
    match pods.evict(&pod.name, &EvictParams::default()).await {
        Ok(_) => {
            tracing::info!(pod = pod.name, namespace = pod.namespace, "pod evicted");
            Ok(Outcome::Done)
        }
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Outcome::Done),
        Err(kube::Error::Api(status)) if status.code == 429 => Ok(Outcome::Refused),
        Err(error) => Err(said(&error, "create", "pods/eviction", &pod.namespace)),
    }
}

/// Starts the workload's own roll-out by an annotation of its template.
pub(crate) async fn restart(client: &Client, key: &Key, older: bool) -> Result<(), String> {
    let domain = if older {
        injector::annotations::OLDER_DOMAIN
    } else {
        injector::annotations::DOMAIN
    };
    let annotation = format!("{domain}{}", injector::annotations::RESTARTED_AT);
    let patch = json!({"spec": {"template": {"metadata": {"annotations": {annotation: now()}}}}});
    let resource = workload_resource(key.kind);
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &key.namespace, &resource);
    let parameters = PatchParams::default();
    match api
        .patch(&key.name, &parameters, &Patch::Merge(patch))
        .await
    {
        Ok(_) => {
            tracing::info!(workload = %key, "roll-out started");
            Ok(())
        }
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(said(&error, "patch", &resource.plural, &key.namespace)),
    }
}

fn now() -> String {
    // The clock of this machine is after 1970 and before 10000.
    Timestamp::try_from(SystemTime::now()).map_or_else(|_| String::new(), |it| it.to_string())
}

/// An error, and the right that is missing where that is the reason.
pub(crate) fn said(error: &kube::Error, verb: &str, resource: &str, namespace: &str) -> String {
    match error {
        kube::Error::Api(status) if status.code == 403 => format!(
            "no right to {verb} {resource} in namespace {namespace}; install with \
             managerRbac.create: true or grant it ({})",
            status.message
        ),
        kube::Error::Api(status) => format!("cannot {verb} {resource}: {}", status.message),
        other => format!("cannot {verb} {resource}: {other}"),
    }
}
