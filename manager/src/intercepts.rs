//! Intercepts and the rules of their dispositions.
//!
//! An intercept waits until an agent of its workload has reviewed it. Its agents decide if it can
//! wait at all: without agents, with differing replicas, or without its mechanism it is put aside,
//! and waits again as soon as that is fixed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use traffic_proto::manager::{
    AgentInfo, InterceptDispositionType as Disposition, InterceptInfo, InterceptSpec,
    ReviewInterceptRequest, SessionInfo,
};

use crate::error::RequestError;

/// All intercepts by id, `<client session>:<name>`.
#[derive(Debug, Default)]
pub(crate) struct Intercepts {
    by_id: BTreeMap<String, Intercept>,
}

#[derive(Debug)]
struct Intercept {
    info: InterceptInfo,
    /// Taken over from an earlier manager: until then its agents may still be reconnecting.
    trusted_until: Option<Instant>,
    /// Time since which its client is away; it is shown as waiting meanwhile.
    suspended: Option<SystemTime>,
    /// Requests that went to the app so far because the workstation is not reached, and why.
    failure: Option<(u64, String)>,
}

impl Intercept {
    fn new(info: InterceptInfo, trusted_until: Option<Instant>) -> Self {
        Self {
            info,
            trusted_until,
            suspended: None,
            failure: None,
        }
    }

    /// The intercept as others see it.
    fn shown(&self) -> InterceptInfo {
        let mut info = self.info.clone();
        if info.disposition() != Disposition::Active {
            return info;
        }
        if let Some(since) = self.suspended {
            info.set_disposition(Disposition::Waiting);
            info.message = format!(
                "suspended: {} has been away since {}; it is resumed when the client is back",
                spec_of(&info).client,
                prost_types::Timestamp {
                    nanos: 0,
                    ..since.into()
                }
            );
        } else if let Some((requests, failure)) = &self.failure {
            let requests = match requests {
                1 => "1 request".to_owned(),
                n => format!("{n} requests"),
            };
            info.message = format!("{failure}; {requests} went to the app");
        }
        info
    }
}

impl Intercepts {
    /// Adds a client's intercept. `agents` are those of its workload.
    pub(crate) fn create(
        &mut self,
        session: &SessionInfo,
        spec: InterceptSpec,
        agents: &[&AgentInfo],
    ) -> Result<InterceptInfo, RequestError> {
        check_spec(&spec)?;
        let id = id(&session.session_id, &spec.name);
        if self.by_id.contains_key(&id) {
            return Err(RequestError::Exists(format!(
                "intercept {:?} exists already; leave it first",
                spec.name
            )));
        }
        let mut info = InterceptInfo {
            id: id.clone(),
            client_session: Some(session.clone()),
            spec: Some(spec),
            ..InterceptInfo::default()
        };
        let verdict = verdict(agents, spec_of(&info));
        settle(&mut info, verdict);
        self.by_id.insert(id, Intercept::new(info.clone(), None));
        Ok(info)
    }

    /// Takes intercepts back that an earlier manager held for this client. Those known already stay
    /// as they are.
    pub(crate) fn restore(
        &mut self,
        session: &SessionInfo,
        infos: Vec<InterceptInfo>,
        now: Instant,
        trust_period: Duration,
    ) {
        for mut info in infos {
            let Some(spec) = &info.spec else { continue };
            // Restored state comes from the client and is validated like new input.
            if check_spec(spec).is_err() || info.disposition() == Disposition::Removed {
                continue;
            }
            info.id = id(&session.session_id, &spec.name);
            info.client_session = Some(session.clone());
            if matches!(
                info.disposition(),
                Disposition::Active | Disposition::Waiting
            ) {
                // It may tell of a time when the client was away, or of failures that are over.
                info.message.clear();
            }
            self.by_id
                .entry(info.id.clone())
                // An intercept already known keeps the state this manager has given it.
                .or_insert_with(|| Intercept::new(info, Some(now + trust_period)));
        }
    }

    /// Removes an intercept; false if there is none.
    pub(crate) fn remove(&mut self, session: &str, name: &str) -> bool {
        self.by_id.remove(&id(session, name)).is_some()
    }

    /// Suspends all intercepts of a client that is away; true if there are any.
    pub(crate) fn suspend_all_of(&mut self, session: &str, since: SystemTime) -> bool {
        let mut any = false;
        for intercept in self.by_id.values_mut() {
            if owner(&intercept.info) == session {
                intercept.suspended = Some(since);
                any = true;
            }
        }
        any
    }

    /// Resumes all intercepts of a client that is back; true if any was suspended.
    pub(crate) fn resume_all_of(&mut self, session: &str) -> bool {
        let mut any = false;
        for intercept in self.by_id.values_mut() {
            if owner(&intercept.info) == session {
                any |= intercept.suspended.take().is_some();
            }
        }
        any
    }

    /// Removes the intercept of an earlier, absent session of the same user that the new one takes
    /// the place of.
    pub(crate) fn take_over(
        &mut self,
        session: &str,
        spec: &InterceptSpec,
        is_absent: impl Fn(&str) -> bool,
    ) {
        self.by_id.retain(|_, intercept| {
            let (old, owner) = (spec_of(&intercept.info), owner(&intercept.info));
            let same = old.client == spec.client
                && old.name == spec.name
                && old.agent == spec.agent
                && old.namespace == spec.namespace;
            !(same && owner != session && is_absent(owner))
        });
    }

    /// Keeps a failure to reach the workstation of an intercept; an empty one ends it.
    pub(crate) fn failed(&mut self, id: &str, requests: u64, failure: &str) {
        if let Some(intercept) = self.by_id.get_mut(id) {
            intercept.failure =
                (!failure.is_empty()).then(|| (requests, failure.chars().take(200).collect()));
        }
    }

    /// Removes all intercepts of a client that is gone.
    pub(crate) fn remove_all_of(&mut self, session: &str) {
        self.by_id
            .retain(|_, intercept| owner(&intercept.info) != session);
    }

    /// Stores an agent's review. Only the first review of a waiting intercept counts.
    pub(crate) fn review(
        &mut self,
        agent: &AgentInfo,
        review: ReviewInterceptRequest,
    ) -> Result<(), RequestError> {
        let intercept = self
            .by_id
            .get_mut(&review.id)
            .ok_or_else(|| RequestError::no_intercept(&review.id))?;
        let info = &mut intercept.info;
        // Late reviews are no error: several replicas review the same intercept.
        if info.disposition() != Disposition::Waiting || !is_workload(spec_of(info), agent) {
            return Ok(());
        }
        info.disposition = review.disposition;
        info.message = review.message;
        info.pod_ip = review.pod_ip;
        info.ftp_port = review.ftp_port;
        info.sftp_port = review.sftp_port;
        info.mount_point = review.mount_point;
        info.mounts = review.mounts;
        info.mechanism_args_desc = review.mechanism_args_desc;
        info.headers = review.headers;
        info.metadata = review.metadata;
        info.environment = review.environment;
        info.pod_name = agent.pod_name.clone();
        modified(info);
        Ok(())
    }

    /// Updates all intercepts of a workload after one of its agents came or left.
    pub(crate) fn reconcile(&mut self, name: &str, namespace: &str, agents: &[&AgentInfo]) {
        for intercept in self.by_id.values_mut() {
            let spec = spec_of(&intercept.info);
            if spec.agent == name && spec.namespace == namespace {
                // An agent is back, so the intercept no longer depends on trust.
                intercept.trusted_until = intercept.trusted_until.filter(|_| agents.is_empty());
                if intercept.trusted_until.is_none() {
                    let verdict = verdict(agents, spec);
                    settle(&mut intercept.info, verdict);
                }
            }
        }
    }

    /// Handles the loss of the agent that reviewed an active intercept: another one reviews, if
    /// there is one.
    pub(crate) fn agent_left(&mut self, gone: &AgentInfo) {
        for Intercept { info, .. } in self.by_id.values_mut() {
            let reviewed_by =
                info.disposition() == Disposition::Active && info.pod_ip == gone.pod_ip;
            // Waiting again, so that another replica reviews it.
            if reviewed_by && info.pod_name == gone.pod_name && is_workload(spec_of(info), gone) {
                set(info, Disposition::Waiting, String::new());
            }
        }
    }

    /// Returns the workloads whose restored intercepts are still without agents after the deadline.
    pub(crate) fn trusted_too_long(&mut self, now: Instant) -> BTreeSet<(String, String)> {
        let mut workloads = BTreeSet::new();
        for intercept in self.by_id.values_mut() {
            if intercept.trusted_until.is_some_and(|until| until <= now) {
                intercept.trusted_until = None;
                let spec = spec_of(&intercept.info);
                workloads.insert((spec.agent.clone(), spec.namespace.clone()));
            }
        }
        workloads
    }

    pub(crate) fn get(&self, session: &str, name: &str) -> Result<InterceptInfo, RequestError> {
        let found = self
            .by_id
            .get(&id(session, name))
            // Clients may pass the short name or the whole id.
            .or_else(|| self.by_id.get(name));
        found
            .map(Intercept::shown)
            .ok_or_else(|| RequestError::no_intercept(name))
    }

    /// Returns all intercepts as watchers see them, in order of their ids.
    pub(crate) fn shown(&self) -> impl Iterator<Item = InterceptInfo> {
        self.by_id.values().map(Intercept::shown)
    }

    /// Iterates over all intercepts in order of their ids.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &InterceptInfo> {
        self.by_id.values().map(|intercept| &intercept.info)
    }
}

/// Returns the session an intercept belongs to.
pub(crate) fn owner(info: &InterceptInfo) -> &str {
    info.client_session
        .as_ref()
        .map_or("", |session| &session.session_id)
}

/// Returns true if the agent belongs to the workload.
pub(crate) fn is_workload(spec: &InterceptSpec, agent: &AgentInfo) -> bool {
    spec.agent == agent.name && spec.namespace == agent.namespace
}

/// Returns the spec of a stored intercept; `check_spec` has verified it.
pub(crate) fn spec_of(info: &InterceptInfo) -> &InterceptSpec {
    static NONE: std::sync::LazyLock<InterceptSpec> =
        std::sync::LazyLock::new(InterceptSpec::default);
    info.spec.as_ref().unwrap_or(&NONE)
}

/// Id of a client's intercept.
pub(crate) fn id(session: &str, name: &str) -> String {
    format!("{session}:{name}")
}

fn check_spec(spec: &InterceptSpec) -> Result<(), RequestError> {
    let fields = [
        ("name", &spec.name),
        ("agent", &spec.agent),
        ("namespace", &spec.namespace),
        ("mechanism", &spec.mechanism),
        ("target_host", &spec.target_host),
    ];
    for (field, value) in fields {
        if value.is_empty() {
            return Err(RequestError::Invalid(format!(
                "intercept {field} must not be empty"
            )));
        }
    }
    if !(1..=65535).contains(&spec.target_port) {
        return Err(RequestError::Invalid(format!(
            "intercept target_port {} is not a port number; use 1 to 65535",
            spec.target_port
        )));
    }
    Ok(())
}

/// Checks if the workload's agents can serve the intercept; the error is the disposition with its
/// reason.
fn verdict(agents: &[&AgentInfo], spec: &InterceptSpec) -> Result<(), (Disposition, String)> {
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

fn settle(info: &mut InterceptInfo, verdict: Result<(), (Disposition, String)>) {
    match (verdict, info.disposition()) {
        (Err((disposition, message)), _) => set(info, disposition, message),
        (Ok(()), Disposition::Unspecified | Disposition::NoAgent | Disposition::NoMechanism) => {
            set(info, Disposition::Waiting, String::new());
        }
        (Ok(()), _) => {}
    }
}

fn set(info: &mut InterceptInfo, disposition: Disposition, message: String) {
    // Unchanged intercepts keep their time, so that watchers see no difference.
    if info.disposition() != disposition || info.message != message {
        info.set_disposition(disposition);
        info.message = message;
        modified(info);
    }
}

fn modified(info: &mut InterceptInfo) {
    info.modified_at = Some(SystemTime::now().into());
}
