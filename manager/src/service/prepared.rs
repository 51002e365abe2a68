//! The answer to `PrepareIntercept` without a cluster, from what an agent has told.

use traffic_proto::manager as pb;
use traffic_proto::port_identifier::{NameOrNumber, PortIdentifier};

use crate::datagrams;

/// Resolves a spec. The agent knows its ports, the manager does not: a numeric identifier is taken
/// for the container port, all else is left for the agent to match.
pub(super) fn prepare(
    spec: &pb::InterceptSpec,
    agent: Option<&pb::AgentInfo>,
    agent_image: &str,
) -> pb::PreparedIntercept {
    let Some(agent) = agent else {
        return refused(no_agent(&spec.agent, &spec.namespace));
    };
    if !agent
        .mechanisms
        .iter()
        .any(|mechanism| mechanism.name == spec.mechanism)
    {
        return refused(format!(
            "the agent of workload {:?} has no mechanism {:?}",
            spec.agent, spec.mechanism
        ));
    }
    let mut prepared = pb::PreparedIntercept {
        namespace: spec.namespace.clone(),
        workload_kind: kind_name(agent.kind()).into(),
        agent_image: agent_image.into(),
        protocol: spec.protocol.clone(),
        container_name: spec.container_name.clone(),
        container_port: spec.container_port,
        pod_ports: spec.pod_ports.clone(),
        ..Default::default()
    };
    if let Some(refusal) = datagrams::refusal_of_named(spec) {
        return refused(refusal);
    }
    if !spec.port_identifier.is_empty() {
        match spec.port_identifier.parse::<PortIdentifier>() {
            Err(error) => return refused(error.to_string()),
            Ok(identifier) => {
                // One that is not written depends on what the agent's port has.
                let written = identifier.transport;
                prepared.protocol = written.map_or_else(String::new, |it| it.to_string());
                if let NameOrNumber::Number(number) = identifier.port {
                    prepared.container_port = number.into();
                }
            }
        }
    }
    prepared
}

/// Reports a user's mistake.
pub(super) fn refused(error: String) -> pb::PreparedIntercept {
    /// Error category of a user's mistake, as results number them.
    const USER_ERROR: i32 = 1;
    pb::PreparedIntercept {
        error,
        error_category: USER_ERROR,
        ..Default::default()
    }
}

pub(super) fn kind_name(kind: pb::workload_info::Kind) -> &'static str {
    use pb::workload_info::Kind;
    match kind {
        Kind::Replicaset => "ReplicaSet",
        Kind::Statefulset => "StatefulSet",
        Kind::Rollout => "Rollout",
        Kind::Deployment | Kind::Unspecified => "Deployment",
    }
}

pub(super) fn no_agent(workload: &str, namespace: &str) -> String {
    format!(
        "no agent of workload {workload:?} in namespace {namespace:?} is connected; start one or \
        check both names"
    )
}
