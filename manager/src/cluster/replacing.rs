//! Single steps that replace a pod: eviction, the workload's own roll-out, and one pod more for a
//! while.

use std::time::{Duration, SystemTime};

use injector::Kind;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DynamicObject, EvictParams, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::time::{Instant, timeout};

use super::caches::Key;
use super::objects::{PodFacts, workload_resource};
use super::planner::Planner;

/// Time for a second pod to be ready.
const SURGE_TIMEOUT: Duration = Duration::from_secs(120);

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

/// Replaces the only pod of a ReplicaSet: a second one is started, and the first goes when that is
/// ready.
pub(crate) async fn surge(
    client: &Client,
    planner: &Planner,
    key: &Key,
    stale: &PodFacts,
) -> Result<(), String> {
    scale(client, key, 2).await?;
    let ready = wait_for_second(planner, key, &stale.uid).await;
    if ready {
        evict(client, stale).await?;
    }
    // Also when no second one came: the workload has the size its owner gave it.
    scale(client, key, 1).await?;
    if ready {
        return Ok(());
    }
    let seconds = SURGE_TIMEOUT.as_secs();
    Err(format!("a second pod was not ready within {seconds}s"))
}

async fn wait_for_second(planner: &Planner, key: &Key, first: &str) -> bool {
    let mut changes = planner.caches.changes();
    let end = Instant::now() + SURGE_TIMEOUT;
    loop {
        changes.mark_unchanged();
        let pods = planner.judge(key);
        if pods.iter().any(|it| it.pod.uid != first && it.pod.ready) {
            return true;
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() || !matches!(timeout(left, changes.changed()).await, Ok(Ok(()))) {
            return false;
        }
    }
}

async fn scale(client: &Client, key: &Key, replicas: i32) -> Result<(), String> {
    debug_assert_eq!(key.kind, Kind::ReplicaSet);
    let api: Api<ReplicaSet> = Api::namespaced(client.clone(), &key.namespace);
    let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
    match api
        .patch_scale(&key.name, &PatchParams::default(), &patch)
        .await
    {
        Ok(_) => Ok(()),
        Err(error) => Err(said(&error, "patch", "replicasets/scale", &key.namespace)),
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
