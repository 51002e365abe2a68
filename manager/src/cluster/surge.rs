//! The only pod of a ReplicaSet replaced without a gap: the ReplicaSet has one pod more for a
//! while.
//!
//! That is written down before, since nothing else tells the additional pod from one that somebody
//! asked for: a manager that comes after one that ended amid a surge finishes it. Who scales the
//! ReplicaSet meanwhile is right, and the surge ends with the number of pods that is then there.
//! Only one who asks for just as many as the surge does cannot be told from it.

use std::time::Duration;

use k8s_openapi::api::apps::v1::ReplicaSet;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};

use super::objects::{PodFacts, WorkloadFacts};
use super::planner::Planner;
use super::replacing::{Outcome, evict, said};
use super::saved_state::{SavedState, Surge};

/// Time for a second pod to be ready.
const READY_TIMEOUT: Duration = Duration::from_secs(120);
/// Time in which a disruption budget may let the first pod go: its controller has to see that the
/// second one is ready.
const BUDGET_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause between evictions that a budget refuses.
const BUDGET_INTERVAL: Duration = Duration::from_secs(1);
/// Time for a pod in place of the one that was evicted.
const REPLACED_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for the caches to show that the additional pod goes.
const SHRINK_TIMEOUT: Duration = Duration::from_secs(10);

/// A surge that is carried out.
pub(crate) struct Surging<'a> {
    pub(crate) client: &'a Client,
    pub(crate) planner: &'a Planner,
    pub(crate) state: &'a SavedState,
    pub(crate) surge: Surge,
}

/// The outcome of scaling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scaled {
    Done,
    /// The number was another before, or the ReplicaSet is gone.
    Differs,
}

impl Surge {
    /// The surge that replaces a pod of a ReplicaSet.
    pub(crate) fn of(workload: &WorkloadFacts, pod: &PodFacts) -> Self {
        Self {
            namespace: workload.namespace.clone(),
            name: workload.name.clone(),
            uid: workload.uid.clone(),
            replicas: workload.replicas,
            pod: pod.uid.clone(),
        }
    }

    /// Number of pods during the surge.
    fn grown(&self) -> i32 {
        self.replicas + 1
    }
}

impl Surging<'_> {
    /// Starts a second pod; the first goes when that is ready.
    pub(crate) async fn begin(&self) -> Result<(), String> {
        let surge = &self.surge;
        self.state.begin_surge(surge.clone()).await?;
        match self.scale(surge.replicas, surge.grown()).await {
            Ok(Scaled::Done) => self.finish().await,
            Ok(Scaled::Differs) => {
                self.end().await;
                Ok(())
            }
            Err(error) => {
                // Without an answer it may be done all the same, and stays written down.
                if is_refusal(&error) {
                    self.end().await;
                }
                Err(self.failed(&error))
            }
        }
    }

    /// Goes on with a surge that was begun at an earlier time.
    pub(crate) async fn resume(&self) -> Result<(), String> {
        let grown = self.surge.grown();
        tracing::info!(workload = %self.surge.key(), "taking up a replacement that was begun");
        // A look that needs no other right: it writes nothing.
        match self.scale(grown, grown).await {
            Ok(Scaled::Done) => self.finish().await,
            // It never grew, has shrunk already, or somebody has scaled it.
            Ok(Scaled::Differs) => {
                self.end().await;
                Ok(())
            }
            Err(error) => Err(self.failed(&error)),
        }
    }

    async fn finish(&self) -> Result<(), String> {
        let replaced = self.replace().await;
        // Also when no second one came: the workload has the size its owner gave it.
        let shrunk = self.scale(self.surge.grown(), self.surge.replicas).await;
        if let Err(error) = &shrunk {
            return Err(self.failed(error));
        }
        self.end().await;
        if matches!(shrunk, Ok(Scaled::Done)) {
            self.shows_shrunk().await;
        }
        replaced
    }

    async fn replace(&self) -> Result<(), String> {
        let key = self.surge.key();
        let is_first = |pod: &PodFacts| pod.uid == self.surge.pod;
        let second_is_ready = || {
            let pods = self.planner.judge(&key);
            pods.iter().any(|it| !is_first(&it.pod) && it.pod.ready)
        };
        if !self.shows(READY_TIMEOUT, second_is_ready).await {
            let seconds = READY_TIMEOUT.as_secs();
            return Err(format!("a second pod was not ready within {seconds}s"));
        }
        let pods = self.planner.judge(&key);
        // Else it is gone already.
        if let Some(first) = pods.iter().find(|it| is_first(&it.pod) && !it.matches) {
            self.evict(&first.pod).await?;
        }
        self.shows_replaced().await;
        Ok(())
    }

    /// Waits until the ReplicaSet has made a pod in place of the first one. Its controller hears of
    /// pods and of sizes in two ways: one that heard of the smaller size first would take the
    /// second pod away, and nobody would serve.
    async fn shows_replaced(&self) {
        let key = self.surge.key();
        let is_replaced = || {
            let pods = self.planner.judge(&key);
            let others = pods.iter().filter(|it| it.pod.uid != self.surge.pod);
            i32::try_from(others.count()).is_ok_and(|it| it >= self.surge.grown())
        };
        // A quota may leave no room for it; by then the controller has heard of everything.
        self.shows(REPLACED_TIMEOUT, is_replaced).await;
    }

    async fn evict(&self, first: &PodFacts) -> Result<(), String> {
        let end = Instant::now() + BUDGET_TIMEOUT;
        while evict(self.client, first).await? == Outcome::Refused {
            if Instant::now() >= end {
                return Err(format!(
                    "a PodDisruptionBudget keeps pod {}, although another one is ready: give the \
                     budget minAvailable: 1 in place of maxUnavailable: 0, or delete the pod",
                    first.name
                ));
            }
            sleep(BUDGET_INTERVAL).await;
        }
        Ok(())
    }

    /// Waits until the caches show what is left: one who looks at them before may take the pod that
    /// goes for the one that stays.
    async fn shows_shrunk(&self) {
        let key = self.surge.key();
        let is_shrunk = || {
            let workload = self.planner.caches.workload(&key);
            let is_grown = workload.is_some_and(|it| it.replicas == self.surge.grown());
            let wanted = usize::try_from(self.surge.replicas).unwrap_or(0);
            !is_grown && self.planner.judge(&key).len() <= wanted
        };
        self.shows(SHRINK_TIMEOUT, is_shrunk).await;
    }

    /// Waits until the caches show something; false when the time is over.
    async fn shows(&self, longest: Duration, check: impl Fn() -> bool) -> bool {
        let mut changes = self.planner.caches.changes();
        let end = Instant::now() + longest;
        loop {
            changes.mark_unchanged();
            if check() {
                return true;
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || !matches!(timeout(left, changes.changed()).await, Ok(Ok(()))) {
                return false;
            }
        }
    }

    async fn end(&self) {
        self.state.end_surge(&self.surge.key()).await;
    }

    /// Scales the ReplicaSet if it has that number of pods now, which the API server compares.
    async fn scale(&self, from: i32, to: i32) -> kube::Result<Scaled> {
        let Surge {
            namespace,
            name,
            uid,
            ..
        } = &self.surge;
        let api: Api<ReplicaSet> = Api::namespaced(self.client.clone(), namespace);
        let operations = json!([
            {"op": "test", "path": "/metadata/uid", "value": uid},
            {"op": "test", "path": "/spec/replicas", "value": from},
            {"op": "replace", "path": "/spec/replicas", "value": to},
        ]);
        let patch = serde_json::from_value(operations).map_err(kube::Error::SerdeError)?;
        let patch = Patch::Json::<()>(patch);
        match api.patch_scale(name, &PatchParams::default(), &patch).await {
            Ok(_) => Ok(Scaled::Done),
            // 422 is a test that failed.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 422) => {
                Ok(Scaled::Differs)
            }
            Err(error) => Err(error),
        }
    }

    fn failed(&self, error: &kube::Error) -> String {
        said(error, "patch", "replicasets/scale", &self.surge.namespace)
    }
}

/// The API server has answered that it did nothing.
fn is_refusal(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code < 500)
}

#[cfg(test)]
mod tests;
