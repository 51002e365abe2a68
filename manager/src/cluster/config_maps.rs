//! ConfigMaps of the manager's namespace: client configuration, variables that are kept back,
//! namespaces to manage, and the state that outlives a manager.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Patch, PatchParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::watch_object;
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::sleep;

use super::replacing::said;
use super::selector::Selector;
use super::wishes::{Saved, Wishes};
use crate::excluded::ExcludedEnv;

/// Client configuration, selector and state.
const OWN: &str = "traffic-manager";
/// Variables that are kept back.
const ENVIRONMENT: &str = "telepresence-intercept-env";
const CLIENT: &str = "client.yaml";
const SELECTOR: &str = "namespace-selector.yaml";
const STATE: &str = "agent-state.yaml";
/// Interval between writes of changed state.
const SAVE_INTERVAL: Duration = Duration::from_secs(2);

/// Contents of the ConfigMaps.
#[derive(Debug)]
pub(crate) struct ConfigMaps {
    pub(crate) client_config: watch::Sender<Bytes>,
    pub(crate) selector: watch::Sender<Selector>,
    pub(crate) excluded: Arc<ExcludedEnv>,
}

impl ConfigMaps {
    pub(crate) fn new(excluded: Arc<ExcludedEnv>) -> Self {
        Self {
            client_config: watch::Sender::new(Bytes::new()),
            selector: watch::Sender::new(Selector::default()),
            excluded,
        }
    }

    /// Reads all of it once; state of an earlier manager goes to the wishes.
    pub(crate) async fn load(&self, client: &Client, namespace: &str, wishes: Option<&Wishes>) {
        let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
        match api.get_opt(OWN).await {
            Ok(map) => {
                let state = map.as_ref().and_then(|it| text(it, STATE));
                self.take_own(map.as_ref());
                if let (Some(state), Some(wishes)) = (state, wishes) {
                    match serde_saphyr::from_str::<Vec<Saved>>(&state) {
                        Ok(saved) => wishes.load(&saved),
                        Err(error) => tracing::error!("ConfigMap {OWN}, {STATE}: {error}"),
                    }
                }
            }
            Err(error) => tracing::error!("{}", said(&error, "get", "configmaps", namespace)),
        }
        match api.get_opt(ENVIRONMENT).await {
            Ok(map) => self.take_environment(map.as_ref()),
            Err(error) => tracing::error!("{}", said(&error, "get", "configmaps", namespace)),
        }
    }

    /// Follows changes until it is dropped.
    pub(crate) async fn follow(&self, client: &Client, namespace: &str) {
        let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
        let own = watch_object(api.clone(), OWN).default_backoff();
        let environment = watch_object(api, ENVIRONMENT).default_backoff();
        let (mut own, mut environment) = (Box::pin(own), Box::pin(environment));
        loop {
            tokio::select! {
                Some(map) = own.next() => match map {
                    Ok(map) => self.take_own(map.as_ref()),
                    Err(error) => tracing::debug!("ConfigMap {OWN}: {error}"),
                },
                Some(map) = environment.next() => match map {
                    Ok(map) => self.take_environment(map.as_ref()),
                    Err(error) => tracing::debug!("ConfigMap {ENVIRONMENT}: {error}"),
                },
                else => return,
            }
        }
    }

    fn take_own(&self, map: Option<&ConfigMap>) {
        let client = map.and_then(|it| text(it, CLIENT)).unwrap_or_default();
        self.client_config.send_if_modified(|current| {
            let differs = *current != client.as_bytes();
            *current = Bytes::from(client);
            differs
        });
        let selector = match map.and_then(|it| text(it, SELECTOR)) {
            None => Selector::default(),
            Some(yaml) => match serde_saphyr::from_str(&yaml) {
                Ok(selector) => selector,
                Err(error) => {
                    tracing::error!("ConfigMap {OWN}, {SELECTOR}: {error}; the last one counts");
                    return;
                }
            },
        };
        self.selector.send_if_modified(|current| {
            let differs = *current != selector;
            *current = selector;
            differs
        });
    }

    fn take_environment(&self, map: Option<&ConfigMap>) {
        let listed = map.and_then(|it| text(it, "excluded")).unwrap_or_default();
        let names = listed.lines().map(str::trim).filter(|it| !it.is_empty());
        self.excluded.set(names.map(str::to_owned).collect());
    }
}

/// Writes wishes down as they change, until it is dropped.
pub(crate) async fn save(client: &Client, namespace: &str, wishes: &Wishes) {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    loop {
        sleep(SAVE_INTERVAL).await;
        let Some(saved) = wishes.take_unsaved() else {
            continue;
        };
        // JSON is YAML.
        let state = serde_json::to_string(&saved).unwrap_or_default();
        let patch = Patch::Merge(json!({"data": {STATE: state}}));
        if let Err(error) = api.patch(OWN, &PatchParams::default(), &patch).await {
            tracing::warn!("{}", said(&error, "patch", "configmaps", namespace));
            wishes.still_unsaved();
        }
    }
}

fn text(map: &ConfigMap, key: &str) -> Option<String> {
    map.data.as_ref()?.get(key).cloned()
}
