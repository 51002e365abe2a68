//! ConfigMaps of the manager's namespace: client configuration, variables that are kept back and
//! namespaces to manage.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::watch_object;
use kube::{Api, Client};
use tokio::sync::watch;

use super::replacing::said;
use super::retry::WatchBackoff;
use super::selector::Selector;
use crate::excluded::ExcludedEnv;

/// Client configuration, selector, and the state that outlives a manager.
pub(crate) const OWN: &str = "traffic-manager";
/// Variables that are kept back.
const ENVIRONMENT: &str = "telepresence-intercept-env";
const CLIENT: &str = "client.yaml";
const SELECTOR: &str = "namespace-selector.yaml";

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

    /// Reads all of it once; returns the manager's own, which has state of an earlier one as well.
    pub(crate) async fn load(&self, client: &Client, namespace: &str) -> Option<ConfigMap> {
        let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
        match api.get_opt(ENVIRONMENT).await {
            Ok(map) => self.take_environment(map.as_ref()),
            Err(error) => tracing::error!("{}", said(&error, "get", "configmaps", namespace)),
        }
        match api.get_opt(OWN).await {
            Ok(map) => {
                self.take_own(map.as_ref());
                map
            }
            Err(error) => {
                tracing::error!("{}", said(&error, "get", "configmaps", namespace));
                None
            }
        }
    }

    /// Follows changes until it is dropped.
    pub(crate) async fn follow(&self, client: &Client, namespace: &str) {
        let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
        let own = watch_object(api.clone(), OWN).backoff(WatchBackoff::default());
        let environment = watch_object(api, ENVIRONMENT).backoff(WatchBackoff::default());
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

fn text(map: &ConfigMap, key: &str) -> Option<String> {
    map.data.as_ref()?.get(key).cloned()
}
