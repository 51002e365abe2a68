//! A look at every pod of a namespace while a test goes on: one that was ready stays so until it is
//! told to end, and no container starts twice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use futures_util::{StreamExt, pin_mut};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::runtime::watcher::{self, watcher};
use tokio::task::JoinHandle;

use crate::namespace::{Namespace, is_ready};

/// The look at a namespace's pods.
#[derive(Debug)]
pub struct Readiness {
    task: JoinHandle<()>,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Debug, Default)]
struct Seen {
    /// Pods that were ready, by uid.
    ready: BTreeSet<String>,
    /// Faults by pod.
    faults: BTreeMap<String, String>,
}

impl Namespace<'_> {
    /// Begins to look at the probes of every pod.
    pub fn readiness(&self) -> Readiness {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (pods, into) = (self.api::<Pod>(), seen.clone());
        let task = self.cluster().spawn(async move {
            let events = watcher(pods, watcher::Config::default());
            pin_mut!(events);
            while let Some(event) = events.next().await {
                if let Ok(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod)) = event {
                    into.lock().unwrap().look(&pod);
                }
            }
        });
        Readiness { task, seen }
    }
}

impl Readiness {
    /// Ends the look; panics when some probe failed.
    pub fn was_kept(self) {
        let seen = self.seen.lock().unwrap();
        assert!(!seen.ready.is_empty(), "no pod was ever ready");
        assert!(seen.faults.is_empty(), "probes failed: {:#?}", seen.faults);
    }
}

impl Drop for Readiness {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Seen {
    fn look(&mut self, pod: &Pod) {
        let Some(uid) = pod.uid() else { return };
        let spec = pod.spec.clone().unwrap_or_default();
        // A load's pod ends when it is told to, without being deleted.
        let ends = spec.restart_policy.as_deref() == Some("Never");
        if ends || pod.metadata.deletion_timestamp.is_some() {
            return;
        }
        let status = pod.status.clone().unwrap_or_default();
        let containers = status.container_statuses.into_iter().flatten();
        let inits = status.init_container_statuses.into_iter().flatten();
        let all: Vec<_> = containers.chain(inits).collect();
        if let Some(again) = all.iter().find(|it| it.restart_count > 0) {
            let fault = format!("{} started again: {:?}", again.name, again.last_state);
            self.faults.insert(pod.name_any(), fault);
        }
        if is_ready(pod) {
            self.ready.insert(uid);
        } else if self.ready.contains(&uid) && status.phase.as_deref() == Some("Running") {
            let failing = all.iter().filter(|it| !it.ready).map(|it| &it.name);
            let fault = format!("not ready any more: {:?}", failing.collect::<Vec<_>>());
            self.faults.insert(pod.name_any(), fault);
        }
    }
}
