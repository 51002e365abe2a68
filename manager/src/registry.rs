//! All state of the manager under one lock: sessions and intercepts, and the effects of one on the
//! other.
//!
//! Every change is announced to the watches, which check if it concerns them.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use traffic_proto::manager::{
    AgentInfo, ClientInfo, InterceptInfo, InterceptSpec, ReconnectAgentRequest,
    ReconnectClientRequest, ReviewInterceptRequest, SessionInfo,
};

use crate::error::RequestError;
use crate::excluded::ExcludedEnv;
use crate::intercepts::{self, Intercepts, Report};
use crate::limits::LimitCounters;
use crate::open_watches::OpenWatches;
use crate::pending::PendingMessages;
use crate::sessions::{Party, Sessions};
use crate::settings::Settings;
use traffic_proto::session_key::{Peer, Proofs};
use traffic_proto::sync::lock;

/// The registry as shared by the services.
#[derive(Debug)]
pub(crate) struct Shared {
    registry: Mutex<Registry>,
    changes: watch::Sender<u64>,
    excluded: Arc<ExcludedEnv>,
    pub(crate) watches: OpenWatches,
    /// Proofs of clients that they have the keys of their sessions.
    pub(crate) proofs: Proofs,
    pub(crate) pending: Arc<PendingMessages>,
    pub(crate) limits: Arc<LimitCounters>,
    /// Cancelled when the manager stops.
    pub(crate) stop: CancellationToken,
}

impl Shared {
    pub(crate) fn new(settings: &Settings, stop: CancellationToken) -> Arc<Self> {
        let excluded = Arc::new(ExcludedEnv::new(settings.excluded_env.clone()));
        let limits = Arc::<LimitCounters>::default();
        let (agent_ttl, client_ttl, all) =
            (settings.agent_ttl, settings.client_ttl, stop.child_token());
        let registry = Registry {
            id: uuid::Uuid::new_v4().to_string(),
            excluded: excluded.clone(),
            sessions: Sessions::new(agent_ttl, client_ttl, all, limits.clone()),
            intercepts: Intercepts::new(limits.clone()),
            settings: settings.clone(),
        };
        Arc::new(Self {
            registry: Mutex::new(registry),
            changes: watch::Sender::new(0),
            excluded,
            watches: OpenWatches::new(limits.clone()),
            proofs: Proofs::new(Peer::manager()),
            pending: PendingMessages::new(limits.clone()),
            limits,
            stop,
        })
    }

    /// Variables that no workstation gets.
    pub(crate) fn excluded_env(&self) -> Arc<ExcludedEnv> {
        self.excluded.clone()
    }

    /// Reads state.
    pub(crate) fn read<R>(&self, look: impl FnOnce(&Registry) -> R) -> R {
        look(&self.lock())
    }

    /// Changes state and notifies the watches.
    pub(crate) fn change<R>(&self, change: impl FnOnce(&mut Registry) -> R) -> R {
        let result = change(&mut self.lock());
        // After the lock is released: watchers read the registry as soon as they wake.
        self.changes.send_modify(|count| *count += 1);
        result
    }

    /// Changes state that no watch shows.
    pub(crate) fn change_unseen<R>(&self, change: impl FnOnce(&mut Registry) -> R) -> R {
        change(&mut self.lock())
    }

    /// Notifies the watches of what has changed unseen.
    pub(crate) fn announce(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// Subscribes to changes; several in a row may be reported as one.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Waits until `look` returns a value.
    pub(crate) async fn until<R>(&self, mut look: impl FnMut(&Registry) -> Option<R>) -> Option<R> {
        // Subscribed before the first look, so that no change is missed in between.
        let mut changes = self.changes();
        loop {
            if let Some(found) = self.read(&mut look) {
                return Some(found);
            }
            changes.changed().await.ok()?;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Registry> {
        lock(&self.registry)
    }
}

/// Whether a client that attached has intercepts that were suspended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Resumed(pub(crate) bool);

/// Sessions and intercepts.
#[derive(Debug)]
pub(crate) struct Registry {
    /// Identity of this manager, sent with every session.
    id: String,
    pub(crate) sessions: Sessions,
    pub(crate) intercepts: Intercepts,
    excluded: Arc<ExcludedEnv>,
    settings: Settings,
}

impl Registry {
    /// Gives the manager the identity of its cluster.
    pub(crate) fn identify(&mut self, id: String) {
        self.id = id;
    }

    /// Begins a client's session; `keyed` is its id where it has a key.
    pub(crate) fn arrive_as_client(
        &mut self,
        client: ClientInfo,
        keyed: Option<String>,
        now: Instant,
    ) -> Result<SessionInfo, RequestError> {
        let install_id = Some(client.install_id.clone()).filter(|id| !id.is_empty());
        if let Some(away) = self.sessions.client_to_give_way() {
            self.depart(&away);
        }
        let session_id = self.sessions.add_client(client, keyed, now)?;
        Ok(SessionInfo {
            session_id,
            cluster_id: self.id.clone(),
            install_id,
        })
    }

    pub(crate) fn arrive_as_agent(
        &mut self,
        mut agent: AgentInfo,
        now: Instant,
    ) -> Result<SessionInfo, RequestError> {
        self.exclude_env(&mut agent);
        let (name, namespace) = (agent.name.clone(), agent.namespace.clone());
        let session_id = self.sessions.add_agent(agent, now)?;
        self.reconcile(&name, &namespace);
        Ok(SessionInfo {
            session_id,
            cluster_id: self.id.clone(),
            install_id: None,
        })
    }

    pub(crate) fn reconnect_agent(
        &mut self,
        request: ReconnectAgentRequest,
        now: Instant,
    ) -> Result<(), RequestError> {
        let (session, mut agent) = (
            request.session.unwrap_or_default(),
            request.agent.unwrap_or_default(),
        );
        self.exclude_env(&mut agent);
        let (name, namespace) = (agent.name.clone(), agent.namespace.clone());
        self.sessions
            .restore(&session.session_id, Party::Agent(agent), now)?;
        self.reconcile(&name, &namespace);
        Ok(())
    }

    /// Restores a client and its intercepts. Their agents get one agent TTL to come back as well.
    pub(crate) fn reconnect_client(
        &mut self,
        request: ReconnectClientRequest,
        now: Instant,
    ) -> Result<(), RequestError> {
        let session = request.session.unwrap_or_default();
        let client = request.client.unwrap_or_default();
        self.sessions
            .restore(&session.session_id, Party::Client(client), now)?;
        self.intercepts
            .restore(&session, request.intercepts, now, self.settings.agent_ttl);
        let here: Vec<_> = self
            .sessions
            .agents()
            .map(|(_, it)| (it.name.clone(), it.namespace.clone()))
            .collect();
        // Restored intercepts may refer to any connected workload.
        for (name, namespace) in here {
            self.reconcile(&name, &namespace);
        }
        Ok(())
    }

    /// Counts a client's watch, which resumes its intercepts; none for other sessions.
    pub(crate) fn attach(&mut self, session: &str) -> Option<Resumed> {
        let attached = self.sessions.attach(session);
        attached.then(|| Resumed(self.intercepts.resume_all_of(session)))
    }

    /// Counts the end of a client's watch; true if it was the last one.
    pub(crate) fn detach(&mut self, session: &str, now: Instant) -> bool {
        self.sessions.detach(session, now)
    }

    /// Suspends the intercepts of a client that is absent since `left`; true if there are any.
    pub(crate) fn suspend_absent(&mut self, session: &str, left: Instant) -> bool {
        let away = left.elapsed();
        self.sessions.is_absent_since(session, left)
            && self
                .intercepts
                .suspend_all_of(session, SystemTime::now() - away)
    }

    /// Ends the session of a client that is absent since `left` and would have come back.
    pub(crate) fn end_absent(&mut self, session: &str, left: Instant) -> bool {
        let keeps_watches = self
            .sessions
            .client(session)
            .is_ok_and(|client| client.keeps_watches);
        keeps_watches
            && self.sessions.is_absent_since(session, left)
            && self.depart(session).is_some()
    }

    /// Keeps what an agent reports of an intercept's requests; true if watches are to show it.
    pub(crate) fn reported(&mut self, id: &str, agent: &str, report: Report) -> bool {
        self.intercepts.reported(id, agent, report)
    }

    /// Ends a session with its consequences; does nothing for an unknown one.
    pub(crate) fn depart(&mut self, id: &str) -> Option<Party> {
        let party = self.sessions.end(id)?;
        match &party {
            // An intercept lives only as long as its client's session.
            Party::Client(_) => self.intercepts.remove_all_of(id),
            Party::Agent(agent) => {
                self.intercepts.agent_left(id, agent);
                self.reconcile(&agent.name, &agent.namespace);
            }
        }
        Some(party)
    }

    /// Ends sessions without contact for too long.
    pub(crate) fn expire(&mut self, now: Instant) -> Vec<(String, Party)> {
        // Before sessions expire, because both may concern the same workload.
        for (name, namespace) in self.intercepts.trusted_too_long(now) {
            self.reconcile(&name, &namespace);
        }
        let over = self.sessions.expired(now);
        over.into_iter()
            .filter_map(|id| self.depart(&id).map(|party| (id, party)))
            .collect()
    }

    pub(crate) fn create(
        &mut self,
        session: &SessionInfo,
        mut spec: InterceptSpec,
    ) -> Result<InterceptInfo, RequestError> {
        let client = self.sessions.client(&session.session_id)?;
        // Reviews name the owner, so an empty field is filled from the session.
        if spec.client.is_empty() {
            spec.client = client.name.clone();
        }
        // A run that was killed, or whose laptop sleeps, gives way to its user's next one.
        let sessions = &self.sessions;
        self.intercepts
            .take_over(&session.session_id, &spec, |owner| {
                sessions.is_absent(owner)
            });
        let agents = agents_of(&self.sessions, &spec.agent, &spec.namespace);
        self.intercepts.create(session, spec, &agents)
    }

    /// Returns the session of an earlier run of the same user that seems to be there, with its last
    /// contact. Whether it is alive shows within [`crate::presence::VANISH_TIMEOUT`].
    pub(crate) fn earlier_run(
        &self,
        session: &SessionInfo,
        spec: &InterceptSpec,
    ) -> Option<(String, Instant)> {
        let mut spec = spec.clone();
        if spec.client.is_empty() {
            let client = self.sessions.client(&session.session_id).ok()?;
            spec.client = client.name.clone();
        }
        let runs = self.intercepts.earlier_runs(&session.session_id, &spec);
        let mut present = runs.filter(|run| !self.sessions.is_absent(run));
        let run = present.next()?;
        Some((run.to_owned(), self.sessions.get(run).ok()?.seen))
    }

    /// Stores an agent's review; ignores one of a session that is gone.
    pub(crate) fn review(
        &mut self,
        mut review: ReviewInterceptRequest,
    ) -> Result<(), RequestError> {
        let session = review.session.take().unwrap_or_default();
        let Ok(agent) = self.sessions.agent(&session.session_id) else {
            return Ok(());
        };
        self.excluded.remove_from(&mut review.environment);
        self.intercepts.review(agent, review)
    }

    /// Returns the agents of a workload, in order of their sessions.
    pub(crate) fn agents_of(&self, name: &str, namespace: &str) -> Vec<&AgentInfo> {
        agents_of(&self.sessions, name, namespace)
    }

    /// Returns true if this client has an intercept, in any state, of this agent's workload.
    pub(crate) fn intercepts_agent(&self, client: &str, agent: &AgentInfo) -> bool {
        let mut own = self
            .intercepts
            .iter()
            .filter(|info| intercepts::owner(info) == client);
        own.any(|info| intercepts::is_workload(intercepts::spec_of(info), agent))
    }

    /// Returns session ids of the agents that may act for a client, best first: those it
    /// intercepts, else any of its namespace, but none for a client that is connected to the
    /// manager's own namespace.
    pub(crate) fn helpers(&self, client: &str) -> Vec<String> {
        let Ok(info) = self.sessions.client(client) else {
            return Vec::new();
        };
        // The manager itself sees what such a client wants to reach.
        if info.namespace == self.settings.namespace {
            return Vec::new();
        }
        let id = |(id, _): (&str, &AgentInfo)| id.to_owned();
        let intercepted: Vec<_> = self
            .sessions
            .agents()
            .filter(|(_, agent)| self.intercepts_agent(client, agent))
            .map(id)
            .collect();
        // Intercepted pods come first: their view of the cluster is the one the client asked for.
        if !intercepted.is_empty() {
            return intercepted;
        }
        self.sessions
            .agents()
            .filter(|(_, agent)| agent.namespace == info.namespace)
            .map(id)
            .collect()
    }

    /// Returns the session id of the agent that is to dial `destination` for a client; `None` means
    /// the manager itself. A loopback is that of the pod whose environment and volumes the client
    /// has.
    pub(crate) fn dialler(&self, client: &str, destination: IpAddr) -> Option<String> {
        let in_pod = |agent: &AgentInfo| {
            agent
                .pod_ip
                .parse::<IpAddr>()
                // Connection ids hold IPv4 addresses unmapped.
                .is_ok_and(|ip| ip.to_canonical() == destination)
        };
        let found = self.sessions.agents().find(|(_, agent)| in_pod(agent));
        let serving = || {
            let mut agents = self.sessions.agents();
            agents.find(|(_, agent)| destination.is_loopback() && self.serves(client, agent))
        };
        let found = found.or_else(serving).map(|(id, _)| id.to_owned());
        found.or_else(|| self.helpers(client).into_iter().next())
    }

    /// Returns true if an agent has accepted an intercept of the client.
    fn serves(&self, client: &str, agent: &AgentInfo) -> bool {
        let own = self.intercepts.iter();
        let mut own = own.filter(|info| intercepts::owner(info) == client);
        own.any(|info| info.pod_name == agent.pod_name && info.pod_ip == agent.pod_ip)
    }

    fn reconcile(&mut self, name: &str, namespace: &str) {
        let agents = agents_of(&self.sessions, name, namespace);
        self.intercepts.reconcile(name, namespace, &agents);
    }

    fn exclude_env(&self, agent: &mut AgentInfo) {
        self.excluded.remove_from(&mut agent.environment);
        for container in agent.containers.values_mut() {
            self.excluded.remove_from(&mut container.environment);
        }
    }
}

fn agents_of<'a>(sessions: &'a Sessions, name: &str, namespace: &str) -> Vec<&'a AgentInfo> {
    let of_workload = |agent: &&AgentInfo| agent.name == name && agent.namespace == namespace;
    sessions
        .agents()
        .map(|(_, agent)| agent)
        .filter(of_workload)
        .collect()
}
