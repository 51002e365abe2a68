//! State that outlives a manager: who is to have an agent, and surges that are under way. It is kept
//! in the manager's ConfigMap.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use injector::Kind;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::time::sleep;

use super::caches::Key;
use super::config_maps;
use super::replacing::said;
use super::wishes::Wishes;
use traffic_proto::sync::lock;

/// Who is to have an agent.
const WISHES: &str = "agent-state.yaml";
/// Surges that are under way; absent where there is none.
pub(super) const SURGES: &str = "surges.yaml";
/// Interval between writes of changed state.
const SAVE_INTERVAL: Duration = Duration::from_secs(2);

/// The state, and the ConfigMap it is kept in.
pub(crate) struct SavedState {
    api: Api<ConfigMap>,
    namespace: String,
    wishes: Arc<Wishes>,
    surges: Mutex<BTreeMap<Key, Surge>>,
    /// Surges as they are written down; none: not known. Whoever writes holds it, so that an older
    /// state never comes after a newer one.
    written: tokio::sync::Mutex<Option<Vec<Surge>>>,
}

/// One pod more than the owner of a ReplicaSet asks for, while its only one is replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Surge {
    /// Namespace of the ReplicaSet.
    pub(crate) namespace: String,
    /// Its name.
    pub(crate) name: String,
    /// Its uid: a later one of that name is another.
    pub(crate) uid: String,
    /// Number of pods before the surge.
    pub(crate) replicas: i32,
    /// Uid of the pod that is replaced.
    pub(crate) pod: String,
}

impl Surge {
    pub(crate) fn key(&self) -> Key {
        Key {
            namespace: self.namespace.clone(),
            kind: Kind::ReplicaSet,
            name: self.name.clone(),
        }
    }
}

impl SavedState {
    pub(crate) fn new(client: Client, namespace: &str, wishes: Arc<Wishes>) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            namespace: namespace.to_owned(),
            wishes,
            surges: Mutex::default(),
            written: tokio::sync::Mutex::new(Some(Vec::new())),
        }
    }

    /// Takes over what an earlier manager wrote down.
    pub(crate) async fn load(&self, map: &ConfigMap) {
        if let Some(wishes) = list(map, WISHES) {
            self.wishes.load(&wishes);
        }
        let surges: Vec<Surge> = list(map, SURGES).unwrap_or_default();
        let by_key = surges.iter().map(|surge| (surge.key(), surge.clone()));
        lock(&self.surges).extend(by_key);
        *self.written.lock().await = Some(surges);
    }

    /// Writes changes down until it is dropped.
    pub(crate) async fn save_changes(&self) {
        loop {
            sleep(SAVE_INTERVAL).await;
            self.save().await;
        }
    }

    /// Writes a surge down, which may begin then; with it what else is not written yet, such as the
    /// wish that it is for.
    pub(crate) async fn begin_surge(&self, surge: Surge) -> Result<(), String> {
        let key = surge.key();
        lock(&self.surges).insert(key.clone(), surge);
        let written = self.write().await;
        if written.is_err() {
            lock(&self.surges).remove(&key);
        }
        written
    }

    /// The surge is over.
    pub(crate) async fn end_surge(&self, key: &Key) {
        lock(&self.surges).remove(key);
        self.save().await;
    }

    /// The surge of a workload that is under way.
    pub(crate) fn surge(&self, key: &Key) -> Option<Surge> {
        lock(&self.surges).get(key).cloned()
    }

    /// Workloads with a surge under way.
    pub(crate) fn surging(&self) -> Vec<Key> {
        lock(&self.surges).keys().cloned().collect()
    }

    /// Writes changes down; what fails is tried again later.
    async fn save(&self) {
        if let Err(why) = self.write().await {
            tracing::warn!("{why}");
        }
    }

    async fn write(&self) -> Result<(), String> {
        let mut written = self.written.lock().await;
        let surges: Vec<Surge> = lock(&self.surges).values().cloned().collect();
        let wishes = self.wishes.take_unsaved();
        let mut data = Map::new();
        // JSON is YAML.
        if let Some(wishes) = &wishes {
            data.insert(WISHES.to_owned(), text(wishes));
        }
        if written.as_ref() != Some(&surges) {
            let value = match surges.is_empty() {
                true => Value::Null,
                false => text(&surges),
            };
            data.insert(SURGES.to_owned(), value);
        }
        if data.is_empty() {
            return Ok(());
        }
        // Known again once it is answered.
        *written = None;
        let patch = Patch::Merge(json!({"data": data}));
        let parameters = PatchParams::default();
        let patched = self.api.patch(config_maps::OWN, &parameters, &patch).await;
        if let Err(error) = patched {
            if wishes.is_some() {
                self.wishes.still_unsaved();
            }
            return Err(said(&error, "patch", "configmaps", &self.namespace));
        }
        *written = Some(surges);
        Ok(())
    }
}

fn text(list: &impl Serialize) -> Value {
    Value::String(serde_json::to_string(list).unwrap_or_default())
}

/// A list in the ConfigMap, if it is there and can be read.
fn list<T: DeserializeOwned>(map: &ConfigMap, key: &str) -> Option<Vec<T>> {
    let text = map.data.as_ref()?.get(key)?;
    match serde_saphyr::from_str(text) {
        Ok(list) => Some(list),
        Err(error) => {
            tracing::error!("ConfigMap {}, {key}: {error}", config_maps::OWN);
            None
        }
    }
}
