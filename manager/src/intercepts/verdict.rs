//! The disposition that a workload's agents allow an intercept.

use std::collections::BTreeSet;
use std::time::SystemTime;

use traffic_proto::manager::{
    AgentInfo, InterceptDispositionType as Disposition, InterceptInfo, InterceptSpec,
};

/// Checks if the workload's agents can serve the intercept; the error is the disposition with its
/// reason.
pub(super) fn verdict(
    agents: &[&AgentInfo],
    spec: &InterceptSpec,
) -> Result<(), (Disposition, String)> {
    let Some(first) = agents.first() else {
        let message = format!(
            "no agent of workload {:?} in namespace {:?} is connected",
            spec.agent, spec.namespace
        );
        return Err((Disposition::NoAgent, message));
    };
    if let Some(other) = agents.iter().find(|agent| !consistent(first, agent)) {
        let message = format!(
            "agents of workload {:?} are not consistent: pods {:?} and {:?} differ in product, \
            version or mechanisms; roll the workload out again",
            spec.agent, first.pod_name, other.pod_name
        );
        return Err((Disposition::NoAgent, message));
    }
    if !mechanisms(first).contains(spec.mechanism.as_str()) {
        let known: Vec<_> = mechanisms(first).into_iter().collect();
        let message = format!(
            "mechanism {:?} is not one of the agent's: {}",
            spec.mechanism,
            known.join(", ")
        );
        return Err((Disposition::NoMechanism, message));
    }
    Ok(())
}

fn consistent(one: &AgentInfo, other: &AgentInfo) -> bool {
    let set = |agent: &AgentInfo| -> BTreeSet<(String, String, String)> {
        agent
            .mechanisms
            .iter()
            .map(|it| (it.name.clone(), it.product.clone(), it.version.clone()))
            .collect()
    };
    one.product == other.product
        && one.version == other.version
        && set(one) == set(other)
        && [one, other]
            .iter()
            .all(|agent| mechanisms(agent).len() == agent.mechanisms.len())
}

fn mechanisms(agent: &AgentInfo) -> BTreeSet<&str> {
    agent
        .mechanisms
        .iter()
        .map(|mechanism| mechanism.name.as_str())
        .collect()
}

pub(super) fn settle(info: &mut InterceptInfo, verdict: Result<(), (Disposition, String)>) {
    match (verdict, info.disposition()) {
        (Err((disposition, message)), _) => set(info, disposition, message),
        (Ok(()), Disposition::Unspecified | Disposition::NoAgent | Disposition::NoMechanism) => {
            set(info, Disposition::Waiting, String::new());
        }
        (Ok(()), _) => {}
    }
}

pub(super) fn set(info: &mut InterceptInfo, disposition: Disposition, message: String) {
    // Unchanged intercepts keep their time, so that watchers see no difference.
    if info.disposition() != disposition || info.message != message {
        info.set_disposition(disposition);
        info.message = message;
        modified(info);
    }
}

pub(super) fn modified(info: &mut InterceptInfo) {
    info.modified_at = Some(SystemTime::now().into());
}
