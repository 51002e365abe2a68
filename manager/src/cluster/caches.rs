//! Caches of everything that is watched, and the questions that are answered from it without asking
//! the API server.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use injector::{
    Inject, Kind, Link, OwnerRef, PodSecurity, Surroundings, Template, Walk, annotations, walk,
};
use tokio::sync::{Notify, watch};

use super::objects::{PodFacts, ServiceFacts, WorkloadFacts};
use super::store::{Indexed, Store};
use traffic_proto::sync::lock;

/// Names a workload.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    pub(crate) namespace: String,
    pub(crate) kind: Kind,
    pub(crate) name: String,
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}.{}", self.kind, self.name, self.namespace)
    }
}

/// Facts of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NamespaceFacts {
    pub(crate) pod_security: PodSecurity,
    /// The operator's selector takes it.
    pub(crate) selected: bool,
    /// Deletion has begun.
    pub(crate) terminating: bool,
}

/// All watched objects.
#[derive(Debug)]
pub(crate) struct Caches {
    /// Kinds that can be intercepted.
    pub(crate) kinds: Vec<Kind>,
    /// Kinds on the way from a pod to one of those: without its ReplicaSets no Deployment has pods.
    pub(crate) followed: Vec<Kind>,
    pub(crate) deployments: Store<WorkloadFacts>,
    pub(crate) replica_sets: Store<WorkloadFacts>,
    pub(crate) stateful_sets: Store<WorkloadFacts>,
    pub(crate) rollouts: Store<WorkloadFacts>,
    pub(crate) services: Store<ServiceFacts>,
    pub(crate) pods: Store<PodFacts>,
    pub(crate) namespaces: Store<NamespaceFacts>,
    /// Istio `Sidecar` objects that are not ours.
    pub(crate) sidecars: Store<ForeignSidecar>,
    /// Counts changes of anything.
    changes: watch::Sender<u64>,
    dirty: Mutex<BTreeSet<String>>,
    pub(crate) dirtied: Notify,
}

/// An Istio `Sidecar` of somebody else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ForeignSidecar {
    pub(crate) name: String,
    /// Labels; none select every pod, which a more special one may override.
    pub(crate) selector: Option<BTreeMap<String, String>>,
    /// Reach of the pods.
    pub(crate) egress: Option<serde_json::Value>,
}

/// A pod's owners.
#[derive(Clone, Debug)]
pub(crate) enum Owners {
    /// The workload, and the template of the nearest owner.
    Found(Arc<WorkloadFacts>, Arc<Template>),
    /// No pod.
    Nobody,
    /// Kind and name of something whose pods get no agent.
    Foreign(String, String),
    /// Kind and name of something that is not known.
    Unknown(String, String),
}

impl Caches {
    pub(crate) fn new(kinds: &[Kind]) -> Arc<Self> {
        Arc::new(Self {
            kinds: kinds.to_vec(),
            followed: followed(kinds),
            deployments: Store::default(),
            replica_sets: Store::default(),
            stateful_sets: Store::default(),
            rollouts: Store::default(),
            services: Store::default(),
            pods: Store::default(),
            namespaces: Store::default(),
            sidecars: Store::default(),
            changes: watch::Sender::new(0),
            dirty: Mutex::default(),
            dirtied: Notify::new(),
        })
    }

    /// The store of a workload kind.
    pub(crate) fn workloads(&self, kind: Kind) -> &Store<WorkloadFacts> {
        match kind {
            Kind::Deployment => &self.deployments,
            Kind::ReplicaSet => &self.replica_sets,
            Kind::StatefulSet => &self.stateful_sets,
            Kind::Rollout => &self.rollouts,
        }
    }

    /// Something in a namespace is different.
    pub(crate) fn touch(&self, namespace: &str) {
        let mut dirty = lock(&self.dirty);
        dirty.insert(namespace.to_owned());
        drop(dirty);
        self.dirtied.notify_one();
        self.changes.send_modify(|count| *count += 1);
    }

    /// Namespaces that were touched since the last call.
    pub(crate) fn take_dirty(&self) -> BTreeSet<String> {
        std::mem::take(&mut *lock(&self.dirty))
    }

    /// Hears of every change from here on.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    pub(crate) fn workload(&self, key: &Key) -> Option<Arc<WorkloadFacts>> {
        self.workloads(key.kind).get(&key.namespace, &key.name)
    }

    /// Workloads of a name, in the order in which kinds are looked up. A ReplicaSet that belongs to
    /// something is none.
    pub(crate) fn named(&self, namespace: &str, name: &str) -> Vec<Arc<WorkloadFacts>> {
        let kinds = Kind::ALL.iter().filter(|kind| self.kinds.contains(kind));
        kinds
            .filter_map(|kind| self.workloads(*kind).get(namespace, name))
            .filter(|it| self.is_root(it))
            .collect()
    }

    /// All workloads of a namespace that belong to nothing that is a workload itself.
    pub(crate) fn roots(&self, namespace: &str) -> Vec<Arc<WorkloadFacts>> {
        let kinds = Kind::ALL.iter().filter(|kind| self.kinds.contains(kind));
        kinds
            .flat_map(|kind| self.workloads(*kind).of(namespace))
            .filter(|it| self.is_root(it))
            .collect()
    }

    fn is_root(&self, workload: &WorkloadFacts) -> bool {
        let owner = workload.controller.as_ref();
        let kind = owner.and_then(|it| it.kind.parse::<Kind>().ok());
        kind.is_none_or(|kind| !self.kinds.contains(&kind))
    }

    /// The owners of something with this controller.
    pub(crate) fn owners(&self, namespace: &str, controller: Option<OwnerRef>) -> Owners {
        let found = walk(controller, &self.followed, |kind, name| {
            let workload = self.workloads(kind).get(namespace, name)?;
            Some(Link {
                controller: workload.controller.clone(),
            })
        });
        match found {
            Walk::NoOwner => Owners::Nobody,
            Walk::Foreign(owner) => Owners::Foreign(owner.kind, owner.name),
            Walk::Unknown(owner) => Owners::Unknown(owner.kind, owner.name),
            Walk::Found { workload, .. } if !self.kinds.contains(&workload.0) => {
                Owners::Foreign(workload.0.name().to_owned(), workload.1)
            }
            Walk::Found { nearest, workload } => {
                let get =
                    |(kind, name): &(Kind, String)| self.workloads(*kind).get(namespace, name);
                match (get(&nearest), get(&workload)) {
                    (Some(near), Some(far)) => Owners::Found(far, near.template.clone()),
                    // Gone between two looks.
                    _ => Owners::Unknown(workload.0.name().to_owned(), workload.1),
                }
            }
        }
    }

    /// Pods of a workload with the template each was made from, and those only, by name.
    pub(crate) fn pods_of(&self, key: &Key) -> Vec<(Arc<PodFacts>, Arc<Template>)> {
        let mut found = Vec::new();
        for near in self.objects_below(key) {
            let pods = self.pods.owned_by(&key.namespace, &near);
            if pods.is_empty() {
                continue;
            }
            match self.owners(&key.namespace, Some(near)) {
                Owners::Found(workload, template)
                    if workload.kind == key.kind && workload.name == key.name =>
                {
                    found.extend(pods.into_iter().map(|pod| (pod, template.clone())));
                }
                _ => {}
            }
        }
        found.sort_by(|(one, _), (other, _)| one.name.cmp(&other.name));
        found
    }

    /// A workload and everything that it owns, directly or not, that may own pods.
    fn objects_below(&self, key: &Key) -> BTreeSet<OwnerRef> {
        let mut found = BTreeSet::new();
        let mut next = vec![owner_ref(key.kind, &key.name)];
        while let Some(owner) = next.pop() {
            // Owners may go round in a circle.
            if !found.insert(owner.clone()) {
                continue;
            }
            for kind in &self.followed {
                let owned = self.workloads(*kind).owned_by(&key.namespace, &owner);
                next.extend(owned.iter().map(|it| owner_ref(it.kind, &it.name)));
            }
        }
        found
    }

    /// Workloads of a namespace whose template is annotated to have an agent.
    pub(crate) fn enabled(&self, namespace: &str) -> Vec<Key> {
        let all = self.kinds.iter().flat_map(|kind| {
            let store = self.workloads(*kind);
            let names = store.marks(namespace).into_iter();
            names.filter_map(|name| store.get(namespace, &name))
        });
        all.filter(|it| self.is_root(it))
            .map(|it| it.key())
            .collect()
    }

    /// Workloads of a namespace with live pods that we gave an agent.
    pub(crate) fn with_agents(&self, namespace: &str) -> Vec<Key> {
        let owners = self.pods.marks(namespace).into_iter();
        let found = owners.filter_map(|owner| match self.owners(namespace, Some(owner)) {
            Owners::Found(workload, _) => Some(workload.key()),
            _ => None,
        });
        found.collect()
    }

    /// The surroundings of a namespace's pods that were made from a template; `labels` are those of the
    /// pods in question.
    pub(crate) fn around(
        &self,
        namespace: &str,
        labels: &BTreeMap<String, String>,
        template: &Template,
    ) -> Surroundings {
        let selects = |it: &ForeignSidecar| {
            it.selector.as_ref().is_some_and(|selector| {
                selector
                    .iter()
                    .all(|(key, value)| labels.get(key) == Some(value))
            })
        };
        let foreign = self
            .sidecars
            .of(namespace)
            .into_iter()
            .find(|it| selects(it));
        Surroundings {
            services: self.services_for(namespace, template),
            pod_security: self
                .namespaces
                .get("", namespace)
                .map(|it| it.pod_security)
                .unwrap_or_default(),
            foreign_sidecar: foreign.map(|it| it.name.clone()),
        }
    }

    /// Services that select the pods of a template, or that its annotations name: all that a plan looks at.
    fn services_for(&self, namespace: &str, template: &Template) -> Vec<Arc<ServiceFacts>> {
        if let Some(name) = annotations::service_name(&template.annotations) {
            return self.services.get(namespace, &name).into_iter().collect();
        }
        let labels = template.labels.iter();
        let marks = labels.map(|(key, value)| (key.clone(), value.clone()));
        let likely = marks.flat_map(|mark| self.services.marked(namespace, &mark));
        likely.filter(|it| it.selects(&template.labels)).collect()
    }
}

fn owner_ref(kind: Kind, name: &str) -> OwnerRef {
    OwnerRef {
        kind: kind.name().to_owned(),
        name: name.to_owned(),
    }
}

fn followed(kinds: &[Kind]) -> Vec<Kind> {
    let mut followed = kinds.to_vec();
    let has_sets = [Kind::Deployment, Kind::Rollout];
    if has_sets.iter().any(|it| kinds.contains(it)) && !kinds.contains(&Kind::ReplicaSet) {
        followed.push(Kind::ReplicaSet);
    }
    followed
}

impl Caches {
    /// Reach of pods by the namespace's own `Sidecar`; a more special one would hide it.
    pub(crate) fn mesh_egress(&self, namespace: &str) -> Option<serde_json::Value> {
        let sidecars = self.sidecars.of(namespace);
        let default = sidecars.iter().find(|it| it.selector.is_none())?;
        default.egress.clone()
    }
}

impl Indexed for PodFacts {
    /// Controller of a live pod that we gave an agent.
    type Mark = OwnerRef;

    fn owner(&self) -> Option<&OwnerRef> {
        self.controller.as_ref()
    }

    fn mark(&self) -> Option<OwnerRef> {
        let is_ours = self.digest.is_some() && self.is_live();
        self.controller.clone().filter(|_| is_ours)
    }
}

impl Indexed for WorkloadFacts {
    /// Name of one whose template is annotated to have an agent.
    type Mark = String;

    fn owner(&self) -> Option<&OwnerRef> {
        self.controller.as_ref()
    }

    fn mark(&self) -> Option<String> {
        let inject = annotations::inject(&self.template.annotations);
        let is_enabled = matches!(inject, Ok(Inject::Enabled));
        is_enabled.then(|| self.name.clone())
    }
}

impl Indexed for ServiceFacts {
    /// First label of the pods behind it.
    type Mark = (String, String);

    fn mark(&self) -> Option<Self::Mark> {
        let (key, value) = self.selector.first_key_value()?;
        Some((key.clone(), value.clone()))
    }
}

impl Indexed for NamespaceFacts {
    type Mark = ();
}

impl Indexed for ForeignSidecar {
    type Mark = ();
}

impl WorkloadFacts {
    pub(crate) fn key(&self) -> Key {
        Key {
            namespace: self.namespace.clone(),
            kind: self.kind,
            name: self.name.clone(),
        }
    }
}

#[cfg(test)]
mod tests;
