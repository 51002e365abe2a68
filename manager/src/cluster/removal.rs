//! Agents taken out of pods: those of some workloads because somebody asks for it, or all of them
//! before the manager goes.

use std::collections::BTreeSet;
use std::time::Duration;

use injector::{Inject, annotations};
use tokio::time::timeout;

use super::Cluster;
use super::caches::Key;
use crate::error::RequestError;
use crate::intercepts::{owner, spec_of};

/// How long removing agents may take.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(120);

impl Cluster {
    /// Removes every agent, and waits until their pods are replaced.
    pub(crate) async fn uninstall(&self) {
        tracing::info!("removing all agents");
        self.wishes.terminate();
        let mut namespaces = BTreeSet::new();
        self.caches.pods.each(|pod| {
            if pod.digest.is_some() {
                namespaces.insert(pod.namespace.clone());
            }
        });
        let keys = || namespaces.iter().flat_map(|it| self.planner.relevant(it));
        for key in keys() {
            self.roller.forgive(&key);
        }
        for namespace in &namespaces {
            self.caches.touch(namespace);
        }
        let (mut changes, mut ends) = (self.caches.changes(), self.roller.ends());
        let gone = async {
            loop {
                changes.mark_unchanged();
                ends.mark_unchanged();
                // No manager comes after this one that could finish a surge.
                let is_over = self.state.surging().is_empty();
                if is_over && keys().all(|key| self.roller.is_settled(&key)) {
                    return;
                }
                tokio::select! {
                    _ = changes.changed() => {}
                    _ = ends.changed() => {}
                }
            }
        };
        if timeout(REMOVAL_TIMEOUT, gone).await.is_err() {
            tracing::warn!("not all agents are gone yet");
        }
    }

    /// Removes the agents of some workloads of a namespace, or of all, together with their
    /// intercepts, and waits until their pods are replaced.
    pub(crate) async fn remove_agents(
        &self,
        namespace: &str,
        names: &[String],
    ) -> Result<(), RequestError> {
        let keys = self.removable(namespace, names)?;
        for key in &keys {
            tracing::info!(workload = %key, "removing the agent");
            self.wishes.release(key);
            self.roller.forgive(key);
        }
        self.end_intercepts(&keys);
        self.caches.touch(namespace);
        let (mut changes, mut ends) = (self.caches.changes(), self.roller.ends());
        let gone = async {
            loop {
                changes.mark_unchanged();
                ends.mark_unchanged();
                if let Some(why) = keys.iter().find_map(|key| self.roller.failure(key)) {
                    return Err(RequestError::Failed(why));
                }
                if keys.iter().all(|key| self.roller.is_settled(key)) {
                    return Ok(());
                }
                tokio::select! {
                    _ = changes.changed() => {}
                    _ = ends.changed() => {}
                }
            }
        };
        timeout(REMOVAL_TIMEOUT, gone).await.unwrap_or_else(|_| {
            Err(RequestError::Failed(format!(
                "not all pods are replaced after {}s; see kubectl -n {namespace} get events",
                REMOVAL_TIMEOUT.as_secs()
            )))
        })
    }

    /// The workloads whose agents can be removed.
    fn removable(&self, namespace: &str, names: &[String]) -> Result<Vec<Key>, RequestError> {
        let mut keys = self.planner.relevant(namespace);
        if names.is_empty() {
            keys.retain(|key| !self.is_enabled(key));
            return Ok(keys);
        }
        for name in names {
            if self.caches.named(namespace, name).is_empty() {
                return Err(RequestError::NotFound(format!(
                    "no workload {name:?} in namespace {namespace:?}; check the name and the \
                     namespace"
                )));
            }
        }
        keys.retain(|key| names.contains(&key.name));
        match keys.iter().find(|key| self.is_enabled(key)) {
            Some(key) => Err(RequestError::Failed(format!(
                "the template of {key} is annotated inject-traffic-agent: enabled, which would \
                 bring the agent back; remove the annotation instead"
            ))),
            None => Ok(keys),
        }
    }

    fn is_enabled(&self, key: &Key) -> bool {
        let workload = self.caches.workload(key);
        let inject = workload.map(|it| annotations::inject(&it.template.annotations));
        matches!(inject, Some(Ok(Inject::Enabled)))
    }

    fn end_intercepts(&self, keys: &[Key]) {
        let is_of = |namespace: &str, name: &str| {
            keys.iter()
                .any(|key| key.namespace == namespace && key.name == name)
        };
        self.shared.change(|registry| {
            let intercepts = registry.intercepts.iter();
            let ended: Vec<_> = intercepts
                .filter(|it| is_of(&spec_of(it).namespace, &spec_of(it).agent))
                .map(|it| (owner(it).to_owned(), spec_of(it).name.clone()))
                .collect();
            for (session, name) in ended {
                tracing::info!(session, name, "intercept ended: its agent is removed");
                registry.intercepts.remove(&session, &name);
            }
        });
    }
}
