//! Workloads as clients list them.

use std::collections::BTreeMap;

use injector::Kind;
use traffic_proto::manager::workload_info::{AgentState, Intercept, Kind as PbKind, State};
use traffic_proto::manager::{InterceptDispositionType, WorkloadInfo};

use super::Cluster;
use super::objects::{WorkloadFacts, WorkloadState};
use crate::registry::Registry;

impl Cluster {
    /// Kinds that clients may ask for.
    pub(crate) fn workload_kinds(&self) -> Vec<PbKind> {
        self.caches.kinds.iter().map(|it| kind(*it)).collect()
    }

    /// Workloads of a namespace, by kind and name.
    pub(crate) fn workload_infos(
        &self,
        registry: &Registry,
        namespace: &str,
    ) -> BTreeMap<String, WorkloadInfo> {
        let roots = self.caches.roots(namespace);
        roots
            .iter()
            .map(|workload| {
                let info = info(registry, workload);
                (format!("{}:{}", info.kind, info.name), info)
            })
            .collect()
    }
}

fn info(registry: &Registry, workload: &WorkloadFacts) -> WorkloadInfo {
    let (name, namespace) = (&workload.name, &workload.namespace);
    let clients: Vec<_> = registry
        .intercepts
        .iter()
        .filter(|info| info.disposition() == InterceptDispositionType::Active)
        .filter_map(|info| info.spec.as_ref())
        .filter(|spec| spec.agent == *name && spec.namespace == *namespace)
        .map(|spec| Intercept {
            client: spec.client.clone(),
        })
        .collect();
    let has_agent = !registry.agents_of(name, namespace).is_empty();
    let agent_state = match (clients.is_empty(), has_agent) {
        (false, _) => AgentState::Intercepted,
        (true, true) => AgentState::Installed,
        (true, false) => AgentState::NoAgentUnspecified,
    };
    let state = match workload.state {
        WorkloadState::Unknown => State::UnknownUnspecified,
        WorkloadState::Available => State::Available,
        WorkloadState::Progressing => State::Progressing,
        WorkloadState::Failure => State::Failure,
    };
    WorkloadInfo {
        kind: kind(workload.kind).into(),
        name: name.clone(),
        namespace: namespace.clone(),
        agent_state: agent_state.into(),
        intercept_clients: clients,
        state: state.into(),
        uid: workload.uid.clone(),
    }
}

/// A kind as the wire has it.
fn kind(kind: Kind) -> PbKind {
    match kind {
        Kind::Deployment => PbKind::Deployment,
        Kind::ReplicaSet => PbKind::Replicaset,
        Kind::StatefulSet => PbKind::Statefulset,
        Kind::Rollout => PbKind::Rollout,
    }
}
