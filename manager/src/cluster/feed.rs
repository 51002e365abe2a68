//! Watches that keep the caches up to date.
//!
//! A watch that the manager has no right to, or whose kind the cluster does not have, says so once
//! and is tried again; everything else goes on without it.

use std::fmt::Debug;
use std::pin::pin;
use std::sync::Arc;

use futures_util::StreamExt;
use injector::Kind;
use k8s_openapi::api::core::v1::Namespace;
use kube::core::{DynamicObject, DynamicResourceScope, PartialObjectMeta};
use kube::discovery::ApiResource;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use traffic_proto::heap_trim;

use super::caches::{Caches, ForeignSidecar, NamespaceFacts};
use super::env::ClusterSettings;
use super::objects::{
    PodFacts, PodObject, ServiceObject, WorkloadFacts, WorkloadObject, pod_resource,
    service_resource, workload_resource,
};
use super::retry::WatchBackoff;
use super::selector::Selector;
use super::store::{Indexed, Store};

/// Objects asked for at once: what a list holds in memory at its peak.
const PAGE_SIZE: u32 = 100;
/// Objects whose list leaves little behind; after more, free memory is given back.
const MAX_SMALL: usize = 100;

/// Runs all watches until `stop`.
pub(crate) struct Feeds {
    pub(crate) client: Client,
    pub(crate) caches: Arc<Caches>,
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: CancellationToken,
    /// Watches that have not had their first list.
    pending: watch::Sender<usize>,
}

/// One watch.
struct Feed {
    /// The resource, for messages.
    resource: String,
    /// Namespace; none for all.
    scope: Option<String>,
}

impl Feeds {
    pub(crate) fn new(
        client: Client,
        caches: Arc<Caches>,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        Self {
            client,
            caches,
            tasks,
            stop,
            pending: watch::Sender::new(0),
        }
    }

    /// Waits until every watch has had its first list, or has been told that it cannot.
    pub(crate) async fn synced(&self) {
        let mut pending = self.pending.subscribe();
        // The sender lives as long as this.
        let _ = pending.wait_for(|count| *count == 0).await;
    }

    /// Starts the watches of all managed namespaces.
    pub(crate) fn start(&self, settings: &ClusterSettings, selector: watch::Receiver<Selector>) {
        let scopes: Vec<Option<String>> = match settings.managed.as_slice() {
            [] => vec![None],
            some => some.iter().cloned().map(Some).collect(),
        };
        if settings.managed.is_empty() {
            self.namespaces(selector);
        }
        for scope in scopes {
            for kind in &self.caches.followed {
                self.workloads(*kind, scope.clone());
            }
            self.services(scope.clone());
            self.pods(scope.clone());
            if settings.injector.mesh == injector::Mesh::Istio {
                self.sidecars(scope);
            }
        }
    }

    fn api<K>(&self, resource: &ApiResource, scope: Option<&str>) -> Api<K>
    where
        K: Resource<DynamicType = ApiResource, Scope = DynamicResourceScope>,
    {
        match scope {
            None => Api::all_with(self.client.clone(), resource),
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, resource),
        }
    }

    fn workloads(&self, kind: Kind, scope: Option<String>) {
        let resource = workload_resource(kind);
        let api: Api<WorkloadObject> = self.api(&resource, scope.as_deref());
        let caches = self.caches.clone();
        self.spawn(
            &resource.plural,
            scope,
            watcher::watcher(api, config()),
            move |caches| caches.workloads(kind),
            move |object| Some(WorkloadFacts::new(kind, object)),
            caches,
        );
    }

    fn pods(&self, scope: Option<String>) {
        let resource = pod_resource();
        let api: Api<PodObject> = self.api(&resource, scope.as_deref());
        let stream = watcher::watcher(api, config());
        let caches = self.caches.clone();
        let convert = |object: &PodObject| Some(PodFacts::from(object));
        self.spawn("pods", scope, stream, |it| &it.pods, convert, caches);
    }

    fn services(&self, scope: Option<String>) {
        let resource = service_resource();
        let api: Api<ServiceObject> = self.api(&resource, scope.as_deref());
        let stream = watcher::watcher(api, config());
        let caches = self.caches.clone();
        // One without a selector leads to no pods, unless an annotation names it.
        let convert =
            |it: &ServiceObject| Some(injector::Service::new(&it.metadata, Some(&it.spec)));
        self.spawn(
            "services",
            scope,
            stream,
            |it| &it.services,
            convert,
            caches,
        );
    }

    fn namespaces(&self, selector: watch::Receiver<Selector>) {
        let api: Api<PartialObjectMeta<Namespace>> = Api::all(self.client.clone());
        let stream = watcher::watcher(api, config());
        let caches = self.caches.clone();
        let convert = move |object: &PartialObjectMeta<Namespace>| {
            let labels = object.labels();
            Some(NamespaceFacts {
                pod_security: injector::PodSecurity::of(labels),
                selected: selector.borrow().matches(labels),
                terminating: object.meta().deletion_timestamp.is_some(),
            })
        };
        self.spawn(
            "namespaces",
            None,
            stream,
            |it| &it.namespaces,
            convert,
            caches,
        );
    }

    fn sidecars(&self, scope: Option<String>) {
        let resource = super::mesh::sidecar_resource();
        let api: Api<DynamicObject> = self.api(&resource, scope.as_deref());
        let stream = watcher::watcher(api, config());
        let caches = self.caches.clone();
        let convert = |object: &DynamicObject| {
            if super::mesh::is_ours(object) {
                return None;
            }
            let spec = &object.data["spec"];
            let selector = &spec["workloadSelector"]["labels"];
            Some(ForeignSidecar {
                name: object.name_any(),
                selector: serde_json::from_value(selector.clone()).ok(),
                egress: Some(spec["egress"].clone()).filter(|it| !it.is_null()),
            })
        };
        self.spawn(
            "sidecars",
            scope,
            stream,
            |it| &it.sidecars,
            convert,
            caches,
        );
    }

    fn spawn<K, T>(
        &self,
        resource: &str,
        scope: Option<String>,
        stream: impl futures_util::Stream<Item = watcher::Result<Event<K>>> + Send + 'static,
        store: impl Fn(&Caches) -> &Store<T> + Send + Sync + 'static,
        convert: impl Fn(&K) -> Option<T> + Send + Sync + 'static,
        caches: Arc<Caches>,
    ) where
        K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
        T: Indexed + Send + Sync + 'static,
    {
        self.pending.send_modify(|count| *count += 1);
        let feed = Feed {
            resource: resource.to_owned(),
            scope,
        };
        let (pending, stop) = (self.pending.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            let run = feed.run(stream, store, convert, &caches, &pending);
            tokio::select! {
                () = stop.cancelled() => {}
                () = run => {}
            }
        });
    }
}

impl Feed {
    async fn run<K, T>(
        &self,
        stream: impl futures_util::Stream<Item = watcher::Result<Event<K>>> + Send,
        store: impl Fn(&Caches) -> &Store<T>,
        convert: impl Fn(&K) -> Option<T>,
        caches: &Caches,
        pending: &watch::Sender<usize>,
    ) where
        K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
        T: Indexed,
    {
        let store = store(caches);
        let place = |object: &K| (object.namespace().unwrap_or_default(), object.name_any());
        let (mut waits, mut said) = (true, false);
        let mut list = Vec::new();
        let mut stream = pin!(stream.backoff(WatchBackoff::default()));
        while let Some(event) = stream.next().await {
            match event {
                // A list that broke off begins again; the store keeps the last whole one meanwhile.
                Ok(Event::Init) => list.clear(),
                Ok(Event::InitApply(object)) => {
                    let (namespace, name) = place(&object);
                    list.extend(convert(&object).map(|it| (namespace, name, it)));
                }
                Ok(Event::InitDone) => {
                    let list = std::mem::take(&mut list);
                    let has_freed_much = list.len() > MAX_SMALL;
                    for namespace in store.replace(self.scope.as_deref(), list) {
                        caches.touch(&namespace);
                    }
                    if has_freed_much {
                        heap_trim::give_back();
                    }
                    said = false;
                    first(&mut waits, pending);
                }
                Ok(Event::Apply(object)) => {
                    let (namespace, name) = place(&object);
                    // What it says no longer concerns us: the same as if it were deleted.
                    let changed = match convert(&object) {
                        Some(facts) => store.put(&namespace, &name, facts),
                        None => store.remove(&namespace, &name),
                    };
                    if changed {
                        caches.touch(place_of(&namespace, &name));
                    }
                }
                Ok(Event::Delete(object)) => {
                    let (namespace, name) = place(&object);
                    if store.remove(&namespace, &name) {
                        caches.touch(place_of(&namespace, &name));
                    }
                }
                Err(error) => {
                    if let Some(refusal) = self.refusal(&error) {
                        // The watch is tried again for ever; its refusal stays the same.
                        if !std::mem::replace(&mut said, true) {
                            tracing::error!("{refusal}");
                        }
                        first(&mut waits, pending);
                    } else {
                        tracing::warn!(resource = self.resource, "watch interrupted: {error}");
                    }
                }
            }
        }
    }

    /// Meaning of a refusal for the operator; none for an error that may pass by itself.
    fn refusal(&self, error: &watcher::Error) -> Option<String> {
        let status = match error {
            watcher::Error::InitialListFailed(kube::Error::Api(status))
            | watcher::Error::WatchStartFailed(kube::Error::Api(status))
            | watcher::Error::WatchFailed(kube::Error::Api(status)) => status,
            watcher::Error::WatchError(status) => status,
            _ => return None,
        };
        let place = match &self.scope {
            Some(namespace) => format!("in namespace {namespace}"),
            None => "in the cluster".to_owned(),
        };
        let resource = &self.resource;
        match status.code {
            403 => Some(format!(
                "no right to list and watch {resource} {place}; install with managerRbac.create: \
                 true or grant get, list and watch; everything else goes on"
            )),
            404 => Some(format!(
                "the cluster knows no {resource}; switch the kind off by its workloads.*.enabled, \
                 or install it; everything else goes on"
            )),
            _ => None,
        }
    }
}

/// The namespace that a change is about; an object of the cluster is a namespace itself.
fn place_of<'a>(namespace: &'a str, name: &'a str) -> &'a str {
    if namespace.is_empty() {
        name
    } else {
        namespace
    }
}

fn first(waits: &mut bool, pending: &watch::Sender<usize>) {
    if std::mem::take(waits) {
        pending.send_modify(|count| *count -= 1);
    }
}

fn config() -> watcher::Config {
    watcher::Config::default().page_size(PAGE_SIZE)
}
