//! The ConfigMap `telepresence-agents` of each namespace, for agents and clients up to 2.21. Agents
//! read their configuration from it, and clients see in it which workloads have an agent; adding an
//! entry asks for an agent, and removing one takes it out.
//!
//! What is to be is decided elsewhere, as ever: this only shows it, and hears what others change.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use futures_util::stream::{SelectAll, StreamExt};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use tokio::task::yield_now;
use tokio::time::sleep;

use super::planner::{Desired, Planner};
use super::replacing::said;
use super::retry::WatchBackoff;

const NAME: &str = "telepresence-agents";
/// Changes that come together are written together.
const DEBOUNCE_DELAY: Duration = Duration::from_millis(20);
/// Pause after a map that could not be written.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Entries of one map, by workload.
type Entries = BTreeMap<String, String>;

/// Keeper of the maps.
pub(crate) struct AgentsMap {
    client: Client,
    planner: Planner,
    /// Managed namespaces; empty for all.
    scopes: Vec<String>,
    /// Entries as they were when last looked at, by namespace.
    seen: BTreeMap<String, Entries>,
}

impl AgentsMap {
    pub(crate) fn new(client: Client, planner: Planner, scopes: Vec<String>) -> Self {
        Self {
            client,
            planner,
            scopes,
            seen: BTreeMap::new(),
        }
    }

    /// Keeps the maps as they are to be, until it is dropped.
    pub(crate) async fn run(mut self) {
        let mut changes = self.planner.caches.changes();
        let mut maps = self.watch();
        let mut namespaces = self.namespaces();
        loop {
            for namespace in &namespaces {
                if let Err(error) = self.look_at(namespace).await {
                    tracing::warn!("ConfigMap {NAME}: {error}");
                    sleep(RETRY_DELAY).await;
                }
            }
            tokio::select! {
                Some(map) = maps.next() => match map {
                    Ok(map) => namespaces = map.namespace().into_iter().collect(),
                    Err(error) => {
                        tracing::debug!("ConfigMap {NAME}: {error}");
                        namespaces.clear();
                    }
                },
                _ = changes.changed() => {
                    sleep(DEBOUNCE_DELAY).await;
                    changes.mark_unchanged();
                    namespaces = self.outdated().await;
                }
            }
        }
    }

    /// Maps that were changed or deleted.
    fn watch(
        &self,
    ) -> SelectAll<futures_util::stream::BoxStream<'static, watcher::Result<ConfigMap>>> {
        let apis: Vec<Api<ConfigMap>> = match self.scopes.as_slice() {
            [] => vec![Api::all(self.client.clone())],
            some => some
                .iter()
                .map(|scope| Api::namespaced(self.client.clone(), scope))
                .collect(),
        };
        let config = watcher::Config::default().fields(&format!("metadata.name={NAME}"));
        let streams = apis.into_iter().map(|api| {
            let stream = watcher(api, config.clone()).backoff(WatchBackoff::default());
            stream.touched_objects().boxed()
        });
        streams.collect()
    }

    /// Namespaces with something to show.
    fn namespaces(&self) -> BTreeSet<String> {
        let mut namespaces: BTreeSet<String> = self.seen.keys().cloned().collect();
        for key in self.planner.wishes.all() {
            namespaces.insert(key.namespace);
        }
        for kind in injector::Kind::ALL {
            let workloads = self.planner.caches.workloads(kind);
            workloads.each(|it| {
                namespaces.insert(it.namespace.clone());
            });
        }
        namespaces
    }

    /// Namespaces whose map does not show what is to be.
    async fn outdated(&self) -> BTreeSet<String> {
        let none = Entries::new();
        let mut outdated = BTreeSet::new();
        for namespace in self.namespaces() {
            let seen = self.seen.get(&namespace).unwrap_or(&none);
            if !update(seen, &self.desired(&namespace)).is_empty() {
                outdated.insert(namespace);
            }
            // Admissions must not wait until all namespaces have been looked at.
            yield_now().await;
        }
        outdated
    }

    /// What is to be in the map of a namespace; none for what is left as it is.
    fn desired(&self, namespace: &str) -> BTreeMap<String, Option<String>> {
        let planner = &self.planner;
        let keys = planner.relevant(namespace).into_iter();
        let workloads = keys.filter_map(|key| planner.caches.workload(&key));
        let entries = workloads.filter_map(|workload| {
            let entry = match planner.desired(&workload, &workload.template) {
                Desired::Agent(plan) => Some(plan.config.to_json()),
                Desired::AsItIs => None,
                Desired::Nothing => return None,
            };
            Some((workload.name.clone(), entry))
        });
        entries.collect()
    }

    /// Hears what others changed in the map of a namespace, and writes what is to be.
    async fn look_at(&mut self, namespace: &str) -> Result<(), String> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let failed = |error, verb| said(&error, verb, "configmaps", namespace);
        let map = api.get_opt(NAME).await.map_err(|it| failed(it, "get"))?;
        let exists = map.is_some();
        let mut entries: Entries = map.and_then(|it| it.data).unwrap_or_default();
        self.hear(namespace, &entries);
        let changes = update(&entries, &self.desired(namespace));
        if !changes.is_empty() {
            if exists {
                let patch = Patch::Merge(json!({"data": changes}));
                let patched = api.patch(NAME, &PatchParams::default(), &patch).await;
                patched.map_err(|it| failed(it, "patch"))?;
            } else {
                let map = serde_json::from_value(json!({
                    "metadata": {"name": NAME, "namespace": namespace},
                    "data": changes,
                }));
                // An object with a name and texts is a ConfigMap.
                let map: ConfigMap = map.unwrap_or_default();
                let created = api.create(&PostParams::default(), &map).await;
                created.map_err(|it| failed(it, "create"))?;
            }
            for (name, entry) in changes {
                match entry {
                    Some(entry) => entries.insert(name, entry),
                    None => entries.remove(&name),
                };
            }
        }
        if entries.is_empty() && !exists {
            self.seen.remove(namespace);
        } else {
            self.seen.insert(namespace.to_owned(), entries);
        }
        Ok(())
    }

    /// Takes entries that appeared for a wish, and those that went for the end of one.
    fn hear(&self, namespace: &str, entries: &Entries) {
        let planner = &self.planner;
        if planner.wishes.is_terminating() {
            return;
        }
        let none = Entries::new();
        let seen = self.seen.get(namespace).unwrap_or(&none);
        let workloads = |name: &str| planner.caches.named(namespace, name).into_iter();
        let mut heard = false;
        for name in seen.keys().filter(|it| !entries.contains_key(*it)) {
            for key in workloads(name).map(|it| it.key()) {
                tracing::info!(workload = %key, "its entry of {NAME} was removed, removing the agent");
                heard |= planner.wishes.release(&key);
            }
        }
        for (name, entry) in entries.iter().filter(|it| !seen.contains_key(it.0)) {
            if is_manual(entry) {
                continue;
            }
            if let Some(workload) = workloads(name).next() {
                heard |= planner.wishes.want(&workload.key(), SystemTime::now());
            }
        }
        if heard {
            planner.caches.touch(namespace);
        }
    }
}

/// What has to be written and, without a text, removed.
fn update(
    entries: &Entries,
    desired: &BTreeMap<String, Option<String>>,
) -> BTreeMap<String, Option<String>> {
    let added = desired.iter().filter(|(name, entry)| {
        let there = entries.get(*name);
        entry.is_some() && there != entry.as_ref() && !there.is_some_and(|it| is_manual(it))
    });
    let removed = entries
        .iter()
        .filter(|(name, entry)| !desired.contains_key(*name) && !is_manual(entry))
        .map(|(name, _)| (name.clone(), None));
    added
        .map(|(name, entry)| (name.clone(), entry.clone()))
        .chain(removed)
        .collect()
}

/// A user keeps the entry, for an agent that the user has put into the workload.
fn is_manual(entry: &str) -> bool {
    let entry: Result<Value, _> = serde_saphyr::from_str(entry);
    entry.is_ok_and(|it| it["manual"] == true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(all: &[(&str, &str)]) -> Entries {
        all.iter()
            .map(|(name, entry)| ((*name).to_owned(), (*entry).to_owned()))
            .collect()
    }

    #[test]
    fn entries_follow_what_is_to_be_and_manual_ones_stay() {
        let there = entries(&[
            ("same", "a"),
            ("older", "b"),
            ("gone", "c"),
            ("left-alone", "d"),
            ("by-hand", "manual: true\nagentName: by-hand\n"),
            ("by-hand-too", "{manual: true}"),
        ]);
        let desired = BTreeMap::from(
            [
                ("same", Some("a")),
                ("older", Some("b2")),
                ("new", Some("e")),
                ("left-alone", None),
                ("by-hand-too", Some("f")),
            ]
            .map(|(name, entry)| (name.to_owned(), entry.map(str::to_owned))),
        );
        let changes = update(&there, &desired);
        let changes: Vec<_> = changes
            .iter()
            .map(|(name, entry)| (name.as_str(), entry.as_deref()))
            .collect();
        assert_eq!(
            changes,
            [("gone", None), ("new", Some("e")), ("older", Some("b2"))]
        );
    }
}
