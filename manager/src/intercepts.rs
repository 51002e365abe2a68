//! Intercepts and the rules of their dispositions.
//!
//! An intercept waits until an agent of its workload has reviewed it. Its agents decide if it can
//! wait at all: without agents, with differing replicas, or without its mechanism it is put aside,
//! and waits again as soon as that is fixed.

mod entry;
mod verdict;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use prost::Message as _;
use tokio::time::Instant;
use traffic_proto::manager::{
    AgentInfo, InterceptDispositionType as Disposition, InterceptInfo, InterceptSpec,
    ReviewInterceptRequest, SessionInfo,
};

use self::entry::Intercept;
pub(crate) use self::entry::Report;
use self::verdict::{modified, set, settle, verdict};
use crate::error::RequestError;
use crate::limits::{
    LimitCounters, MAX_INTERCEPT_BYTES, MAX_INTERCEPTS, MAX_INTERCEPTS_OF_CLIENT,
    MAX_INTERCEPTS_OF_PORT, MAX_INTERCEPTS_OF_WORKLOAD, MAX_SPEC_BYTES, ManagerLimit,
};
use crate::viewed::Viewed;

/// Most characters of a failure that an agent reports.
const MAX_FAILURE: usize = 200;
/// Most agents whose reports are kept for one intercept.
const MAX_REPORTS: usize = 1000;

/// All intercepts by id, `<client session>:<name>`.
#[derive(Debug, Default)]
pub(crate) struct Intercepts {
    by_id: BTreeMap<String, Intercept>,
    limits: Arc<LimitCounters>,
}

impl Intercepts {
    pub(crate) fn new(limits: Arc<LimitCounters>) -> Self {
        Self {
            limits,
            ..Self::default()
        }
    }

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
        self.check_number(&session.session_id, &spec)?;
        let mut info = InterceptInfo {
            id: id.clone(),
            client_session: Some(session.clone()),
            spec: Some(spec),
            created_at: Some(SystemTime::now().into()),
            ..InterceptInfo::default()
        };
        let verdict = verdict(agents, spec_of(&info));
        settle(&mut info, verdict);
        self.by_id.insert(id, Intercept::new(info.clone(), None));
        Ok(info)
    }

    /// Checks if client, workload and port may have one more, of this size.
    fn check_number(&self, session: &str, spec: &InterceptSpec) -> Result<(), RequestError> {
        let size = spec.encoded_len();
        let own = self.of(session).count();
        let (mut of_workload, mut of_port, mut bytes) = (0, 0, size);
        for intercept in self.by_id.values() {
            let other = spec_of(&intercept.info);
            let same = other.agent == spec.agent && other.namespace == spec.namespace;
            of_workload += usize::from(same);
            of_port += usize::from(same && is_same_port(other, spec));
            bytes += intercept.shown().size();
        }
        let bounds = [
            (size, MAX_SPEC_BYTES + 1, ManagerLimit::SpecBytes),
            (
                own,
                MAX_INTERCEPTS_OF_CLIENT,
                ManagerLimit::ClientIntercepts,
            ),
            (
                of_port,
                MAX_INTERCEPTS_OF_PORT,
                ManagerLimit::PortIntercepts,
            ),
            (
                of_workload,
                MAX_INTERCEPTS_OF_WORKLOAD,
                ManagerLimit::WorkloadIntercepts,
            ),
            (self.by_id.len(), MAX_INTERCEPTS, ManagerLimit::Intercepts),
            (bytes, MAX_INTERCEPT_BYTES, ManagerLimit::InterceptBytes),
        ];
        match bounds.into_iter().find(|(number, most, _)| number >= most) {
            Some((_, most, limit)) => Err(self.limits.refuse(limit, &spec.client, most)),
            None => Ok(()),
        }
    }

    /// Iterates over a client's intercepts.
    fn of(&self, session: &str) -> impl Iterator<Item = &Intercept> {
        // Ids begin with the session; another one may begin with the same text.
        let first = id(session, "");
        self.by_id
            .range(first.clone()..)
            .take_while(move |(id, _)| id.starts_with(&first))
            .map(|(_, intercept)| intercept)
            .filter(move |intercept| owner(&intercept.info) == session)
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
        for mut info in infos.into_iter().take(MAX_INTERCEPTS_OF_CLIENT) {
            let Some(spec) = &info.spec else { continue };
            // Restored state comes from the client and is validated like new input.
            if check_spec(spec).is_err() || info.disposition() == Disposition::Removed {
                continue;
            }
            let is_known = self
                .by_id
                .contains_key(&id(&session.session_id, &spec.name));
            if !is_known && self.check_number(&session.session_id, spec).is_err() {
                return;
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
                intercept.changed();
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
                intercept.changed();
                any |= intercept.suspended.take().is_some();
                if std::mem::take(&mut intercept.is_contested)
                    && intercept.info.disposition() == Disposition::Active
                {
                    // Agents tell its owner if another one has its place.
                    set(intercept.edit(), Disposition::Waiting, String::new());
                }
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
            let info = &intercept.info;
            !(is_earlier_run(info, session, spec) && is_absent(owner(info)))
        });
    }

    /// Returns the sessions of earlier runs of the same user that the new intercept takes the place
    /// of.
    pub(crate) fn earlier_runs<'r>(
        &'r self,
        session: &'r str,
        spec: &'r InterceptSpec,
    ) -> impl Iterator<Item = &'r str> {
        let all = self.by_id.values().map(|intercept| &intercept.info);
        all.filter(move |info| is_earlier_run(info, session, spec))
            .map(|info| owner(info))
    }

    /// Keeps what an agent reports of an intercept; true if there is a failure now, or was one before.
    pub(crate) fn reported(&mut self, id: &str, agent: &str, mut report: Report) -> bool {
        let Some(intercept) = self.by_id.get_mut(id) else {
            return false;
        };
        report.failure = report.failure.chars().take(MAX_FAILURE).collect();
        let is_failing = !report.failure.is_empty();
        if intercept.reports.len() >= MAX_REPORTS && !intercept.reports.contains_key(agent) {
            return false;
        }
        intercept.changed();
        let before = intercept.reports.insert(agent.to_owned(), report);
        is_failing || before.is_some_and(|it| !it.failure.is_empty())
    }

    /// Forgets the failures of an agent that is gone; what it counted stays.
    fn reporter_left(&mut self, agent: &str) {
        for intercept in self.by_id.values_mut() {
            if let Some(report) = intercept.reports.get_mut(agent) {
                report.failure.clear();
                intercept.changed();
            }
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
        mut review: ReviewInterceptRequest,
    ) -> Result<(), RequestError> {
        let taken: usize = self.by_id.values().map(|it| it.shown().size()).sum();
        let intercept = self
            .by_id
            .get_mut(&review.id)
            .ok_or_else(|| RequestError::no_intercept(&review.id))?;
        let info = &intercept.info;
        // Late reviews are no error: several replicas review the same intercept.
        if !is_workload(spec_of(info), agent) {
            return Ok(());
        }
        if review.ends && info.disposition() == Disposition::Active {
            return Self::end(intercept, review);
        }
        if info.disposition() != Disposition::Waiting {
            return Ok(());
        }
        if taken + review.encoded_len() > MAX_INTERCEPT_BYTES {
            self.limits
                .reached(ManagerLimit::InterceptBytes, &agent.pod_name);
            review.environment.clear();
            review.message = format!(
                "{}; the environment is left out",
                ManagerLimit::InterceptBytes.message()
            );
        }
        let info = intercept.edit();
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
        if info.disposition() == Disposition::Active {
            self.contest(agent);
        }
        Ok(())
    }

    /// Ends an intercept that an agent serves no longer; none is begun in this way.
    fn end(intercept: &mut Intercept, review: ReviewInterceptRequest) -> Result<(), RequestError> {
        if matches!(
            review.disposition(),
            Disposition::AgentError | Disposition::BadArgs
        ) {
            set(intercept.edit(), review.disposition(), review.message);
        }
        Ok(())
    }

    /// Marks suspended intercepts of a workload one of whose agents has accepted another one.
    fn contest(&mut self, agent: &AgentInfo) {
        for intercept in self.by_id.values_mut() {
            let is_suspended = intercept.suspended.is_some();
            if is_suspended && is_workload(spec_of(&intercept.info), agent) {
                intercept.is_contested = true;
            }
        }
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
                    let mut info = InterceptInfo::clone(&intercept.info);
                    settle(&mut info, verdict);
                    if info != *intercept.info {
                        *intercept.edit() = info;
                    }
                }
            }
        }
    }

    /// Handles the loss of the agent that reviewed an active intercept: another one reviews, if
    /// there is one.
    pub(crate) fn agent_left(&mut self, session: &str, gone: &AgentInfo) {
        self.reporter_left(session);
        for intercept in self.by_id.values_mut() {
            let info = &intercept.info;
            let reviewed_by =
                info.disposition() == Disposition::Active && info.pod_ip == gone.pod_ip;
            // Waiting again, so that another replica reviews it.
            if reviewed_by && info.pod_name == gone.pod_name && is_workload(spec_of(info), gone) {
                set(intercept.edit(), Disposition::Waiting, String::new());
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
            .map(|intercept| intercept.shown().value().clone())
            .ok_or_else(|| RequestError::no_intercept(name))
    }

    /// Returns the states of all intercepts as watchers see them.
    pub(crate) fn states(&self) -> impl Iterator<Item = Disposition> {
        self.by_id.values().map(|it| match it.suspended {
            Some(_) if it.info.disposition() == Disposition::Active => Disposition::Waiting,
            _ => it.info.disposition(),
        })
    }

    /// Returns intercepts as watchers see them, in order of their ids: a client's, or all if none is
    /// named.
    pub(crate) fn shown_of(
        &self,
        session: &str,
    ) -> Box<dyn Iterator<Item = &Viewed<InterceptInfo>> + '_> {
        match session {
            "" => Box::new(self.by_id.values().map(Intercept::shown)),
            session => {
                let own: Vec<_> = self.of(session).map(Intercept::shown).collect();
                Box::new(own.into_iter())
            }
        }
    }

    /// Returns all of them as agents see them, without the counts of requests.
    pub(crate) fn shown_to_agents(&self) -> Box<dyn Iterator<Item = &Viewed<InterceptInfo>> + '_> {
        Box::new(self.by_id.values().map(Intercept::uncounted))
    }

    /// Iterates over all intercepts in order of their ids.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &InterceptInfo> {
        self.by_id.values().map(|intercept| &*intercept.info)
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

fn is_same_port(one: &InterceptSpec, other: &InterceptSpec) -> bool {
    one.port_identifier == other.port_identifier && one.container_port == other.container_port
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
/// Returns true for the same user's intercept of the same name and workload in another session.
fn is_earlier_run(info: &InterceptInfo, session: &str, spec: &InterceptSpec) -> bool {
    let old = spec_of(info);
    owner(info) != session
        && old.client == spec.client
        && old.name == spec.name
        && old.agent == spec.agent
        && old.namespace == spec.namespace
}
