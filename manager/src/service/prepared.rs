//! The answer to `PrepareIntercept` without a cluster, from what its agents have told.

use std::collections::BTreeSet;

use traffic_proto::manager as pb;
use traffic_proto::port_identifier::{FurtherPort, NameOrNumber, PortIdentifier};

use crate::datagrams;

/// Resolves a spec. A numeric identifier is taken for the container port, all else is left for the
/// agent to match; it refuses an unknown port but passes over a further one, which is refused here.
pub(super) fn prepare(
    spec: &pb::InterceptSpec,
    agents: &[pb::AgentInfo],
    agent_image: &str,
) -> pb::PreparedIntercept {
    let Some(agent) = agents.first() else {
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
    if let Some(refusal) = datagrams::refusal_of_named(spec).or_else(|| unknown(spec, agents)) {
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

/// Returns why a further port of a spec cannot be had, with those that can; none if all are known,
/// or if an agent does not tell its ports, as those of others do not.
fn unknown(spec: &pb::InterceptSpec, agents: &[pb::AgentInfo]) -> Option<String> {
    if agents.iter().any(|agent| agent.ports.is_empty()) {
        return None;
    }
    let known = || agents.iter().flat_map(|agent| &agent.ports);
    let has = |wanted: &PortIdentifier| {
        known().any(|port| {
            let transport = port.protocol.parse();
            transport.is_ok_and(|transport| {
                wanted.names(&port.name, u16::try_from(port.number).ok(), transport)
            })
        })
    };
    let named = spec
        .pod_ports
        .iter()
        .map(|text| text.parse::<FurtherPort>());
    for named in named {
        match named {
            Err(error) => return Some(error.to_string()),
            Ok(named) if !has(&named.identifier) => {
                let known: BTreeSet<_> = known().map(described).collect();
                let known = Vec::from_iter(known).join(", ");
                return Some(format!(
                    "no port {} in the agents of workload {:?}; they have {known}: name one of \
                    these with --port LOCAL:PORT",
                    named.identifier, spec.agent
                ));
            }
            Ok(_) => {}
        }
    }
    None
}

fn described(port: &pb::agent_info::Port) -> String {
    let text = format!("{}/{}", port.number, port.protocol);
    match port.name.as_str() {
        "" => text,
        name => format!("{text} ({name})"),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(ports: &[(&str, i32, &str)]) -> pb::AgentInfo {
        let port = |(name, number, protocol): &(&str, i32, &str)| pb::agent_info::Port {
            name: (*name).to_owned(),
            number: *number,
            protocol: (*protocol).to_owned(),
        };
        pb::AgentInfo {
            mechanisms: vec![pb::agent_info::Mechanism {
                name: "tcp".to_owned(),
                ..Default::default()
            }],
            ports: ports.iter().map(port).collect(),
            ..Default::default()
        }
    }

    fn error(further: &[&str], agents: &[pb::AgentInfo]) -> String {
        let spec = pb::InterceptSpec {
            agent: "web".to_owned(),
            mechanism: "tcp".to_owned(),
            port_identifier: "http".to_owned(),
            pod_ports: further.iter().map(|it| (*it).to_owned()).collect(),
            ..Default::default()
        };
        prepare(&spec, agents, "").error
    }

    #[test]
    fn further_ports_that_no_agent_has_are_refused_with_those_that_there_are() {
        let one = agent(&[("http", 8080, "TCP"), ("dns", 53, "UDP"), ("", 9000, "TCP")]);
        let agents = [one];
        for known in ["http:1", "8080", "dns:5353/udp", "53", "9000:1/TCP"] {
            assert_eq!(error(&[known], &agents), "", "{known}");
        }
        for (unknown, named) in [
            ("adm:1", "adm"),
            ("9001:9000", "9001"),
            ("dns:1/TCP", "dns/TCP"),
            ("9000/UDP", "9000/UDP"),
        ] {
            let expected = format!(
                "no port {named} in the agents of workload \"web\"; they have 53/UDP (dns), \
                 8080/TCP (http), 9000/TCP: name one of these with --port LOCAL:PORT"
            );
            assert_eq!(error(&["http:1", unknown], &agents), expected);
        }
        assert!(error(&["0:1"], &agents).contains("write 1 to 65535"));
    }

    #[test]
    fn one_agent_s_port_is_enough_and_agents_that_do_not_tell_may_have_any() {
        let [old, new] = [&[("http", 8080, "TCP")][..], &[("admin", 9000, "TCP")]].map(agent);
        assert_eq!(error(&["admin:1"], &[old.clone(), new]), "");
        assert_eq!(error(&["admin:1"], &[old.clone(), agent(&[])]), "");
        assert!(error(&["admin:1"], &[old]).contains("no port admin"));
        assert!(error(&["admin:1"], &[]).contains("no agent of workload"));
    }
}
