//! Views of the registry for each kind of watcher: pure functions from state to keyed messages.
//!
//! A view is a map in the order of its keys; snapshots list it and deltas refer to its keys.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use prost::Message as _;
use traffic_proto::manager::workload_event::Type;
use traffic_proto::manager::workload_info::{AgentState, Intercept, State};
use traffic_proto::manager::{
    AgentInfo, AgentPodInfo, InterceptDispositionType as Disposition, InterceptInfo, WorkloadEvent,
    WorkloadEventsDelta, WorkloadInfo,
};

use crate::intercepts::{is_workload, owner, spec_of};
use crate::registry::Registry;
use crate::sessions::Party;
use crate::viewed::{Viewed, Watched};

/// Returns intercepts by id: all for an empty session; for an agent those of its workload that it
/// may have to act on; for a client its own.
pub(crate) fn intercepts(
    registry: &Registry,
    session: &str,
) -> BTreeMap<String, Viewed<InterceptInfo>> {
    let party = registry.sessions.get(session).map(|session| &session.party);
    let sees = |info: &InterceptInfo| match party {
        // As stock managers do: a caller without a session is shown all intercepts.
        Err(_) => session.is_empty(),
        Ok(Party::Client(_)) => {
            // A client has removed it itself; an agent still has to end what it carries.
            owner(info) == session && info.disposition() != Disposition::Removed
        }
        Ok(Party::Agent(agent)) => {
            let disposition = info.disposition();
            is_workload(spec_of(info), agent)
                && matches!(
                    disposition,
                    Disposition::Waiting
                        | Disposition::Active
                        | Disposition::AgentError
                        | Disposition::Removed
                )
        }
    };
    let of_session = match party {
        Ok(Party::Client(_)) => registry.intercepts.shown_of(session),
        // Agents counted the requests, and need not be told.
        Ok(Party::Agent(_)) => registry.intercepts.shown_to_agents(),
        Err(_) => registry.intercepts.shown_of(""),
    };
    of_session
        .filter(|info| sees(info.value()))
        .map(|info| (info.value().id.clone(), info.clone()))
        .collect()
}

/// Returns agents by session id, of the given namespaces or else of the client's own.
pub(crate) fn agents(
    registry: &Registry,
    session: &str,
    namespaces: &[String],
) -> BTreeMap<String, Viewed<AgentInfo>> {
    let own = own_namespace(registry, session);
    let seen = |agent: &AgentInfo| match namespaces {
        // A client of all namespaces names none.
        [] => own.as_ref().is_none_or(|own| *own == agent.namespace),
        some => some.contains(&agent.namespace),
    };
    let agents = registry.sessions.agents_viewed();
    agents
        .filter(|(_, agent)| seen(agent.value()))
        .map(|(id, agent)| (id.to_owned(), agent.clone()))
        .collect()
}

/// Returns the addresses a workstation needs to reach each agent of its namespace directly, by
/// session id.
pub(crate) fn agent_pods(
    registry: &Registry,
    session: &str,
) -> BTreeMap<String, Viewed<AgentPodInfo>> {
    let pods = agents(registry, session, &[]).into_iter();
    let pods = pods.map(|(id, agent)| {
        let agent = agent.value();
        let pod = AgentPodInfo {
            intercepted: registry.intercepts_agent(session, agent),
            pod_ip: agent.pod_ip.parse().map(ip_bytes).unwrap_or_default(),
            pod_name: agent.pod_name.clone(),
            namespace: agent.namespace.clone(),
            api_port: agent.api_port,
            workload_name: agent.name.clone(),
            pod_id: agent.pod_uid.clone(),
            proof_key: agent.proof_key.clone(),
        };
        (id, Viewed::new(Arc::new(pod)))
    });
    pods.collect()
}

/// Returns the workloads of a namespace that have agents, by kind and name. Others are unknown
/// without a cluster to ask.
pub(crate) fn workloads(
    registry: &Registry,
    session: &str,
    namespace: &str,
) -> BTreeMap<String, WorkloadInfo> {
    let namespace = namespace_of(registry, session, namespace);
    let mut workloads = BTreeMap::new();
    for (_, agent) in registry
        .sessions
        .agents()
        .filter(|(_, agent)| agent.namespace == namespace)
    {
        let active = |info: &&InterceptInfo| {
            info.disposition() == Disposition::Active && is_workload(spec_of(info), agent)
        };
        let client = |info: &InterceptInfo| Intercept {
            client: spec_of(info).client.clone(),
        };
        let clients: Vec<_> = registry
            .intercepts
            .iter()
            .filter(active)
            .map(client)
            .collect();
        let state = if clients.is_empty() {
            AgentState::Installed
        } else {
            AgentState::Intercepted
        };
        let workload = WorkloadInfo {
            kind: agent.kind,
            name: agent.name.clone(),
            namespace: agent.namespace.clone(),
            agent_state: state.into(),
            intercept_clients: clients,
            state: State::Available.into(),
            // Known to the cluster alone.
            uid: String::new(),
        };
        workloads.insert(format!("{}:{}", agent.kind, agent.name), workload);
    }
    workloads
}

/// Returns the namespace that is asked for, the session's own when none is.
pub(crate) fn namespace_of(registry: &Registry, session: &str, asked: &str) -> String {
    match asked {
        "" => own_namespace(registry, session).unwrap_or_default(),
        asked => asked.to_owned(),
    }
}

fn own_namespace(registry: &Registry, session: &str) -> Option<String> {
    match &registry.sessions.get(session).ok()?.party {
        Party::Client(client) => {
            Some(client.namespace.clone()).filter(|namespace| !namespace.is_empty())
        }
        Party::Agent(agent) => Some(agent.namespace.clone()),
    }
}

// Removals name the whole workload, so it is kept.
impl Watched for WorkloadInfo {
    type Kept = Self;

    fn kept(&self) -> Self {
        self.clone()
    }

    fn size(&self) -> usize {
        self.encoded_len()
    }
}

/// Returns the changes of workloads since the state before.
pub(crate) fn workload_events(
    before: Option<BTreeMap<String, WorkloadInfo>>,
    state: &BTreeMap<String, WorkloadInfo>,
) -> WorkloadEventsDelta {
    let before = before.unwrap_or_default();
    let event = |kind: Type, workload: &WorkloadInfo| WorkloadEvent {
        r#type: kind.into(),
        workload: Some(workload.clone()),
    };
    let gone = before
        .iter()
        .filter(|(key, _)| !state.contains_key(*key))
        .map(|(_, it)| event(Type::Deleted, it));
    let here = state
        .iter()
        .filter_map(|(key, workload)| match before.get(key) {
            None => Some(event(Type::AddedUnspecified, workload)),
            Some(old) if old != workload => Some(event(Type::Modified, workload)),
            Some(_) => None,
        });
    WorkloadEventsDelta {
        since: Some(SystemTime::now().into()),
        events: gone.chain(here).collect(),
    }
}

/// Returns an address in the 4 or 16 bytes that messages carry.
pub(crate) fn ip_bytes(ip: IpAddr) -> Bytes {
    match ip {
        IpAddr::V4(ip) => Bytes::copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => Bytes::copy_from_slice(&ip.octets()),
    }
}
