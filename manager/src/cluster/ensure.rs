//! Agents on demand: a workload gets one because somebody wants to intercept it, and the caller
//! waits for it, or hears from the cluster why it does not come.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use injector::config::Config;
use injector::{Inject, InjectPolicy, Kind, Plan, annotations};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use traffic_proto::manager::{AgentInfo, InterceptSpec};

use super::Cluster;
use super::announce::Told;
use super::caches::Key;
use super::events::{self, Trouble};
use super::objects::WorkloadFacts;
use crate::error::RequestError;

mod ports;

use self::ports::choose_ports;
pub(crate) use self::ports::{Chosen, ChosenPorts};

/// Time for the other pods once the first one has its agent.
const OTHERS_TIMEOUT: Duration = Duration::from_secs(5);
/// Time a pod may wait for room in the cluster before the caller is told.
const ROOM_TIMEOUT: Duration = Duration::from_secs(2);
/// Events that are kept for a message.
const MAX_TROUBLES: usize = 20;

/// A workload with its agents.
#[derive(Debug)]
pub(crate) struct Ensured {
    pub(crate) workload: Arc<WorkloadFacts>,
    pub(crate) config: Config,
    pub(crate) agents: Vec<AgentInfo>,
}

impl Cluster {
    /// Sees to it that a workload has agents.
    pub(crate) async fn ensure(
        &self,
        name: &str,
        namespace: &str,
    ) -> Result<Ensured, RequestError> {
        let workload = self.find(name, namespace, "").await?;
        self.ensure_workload(workload, None).await
    }

    /// The same for an intercept, with the ports that it is about.
    pub(crate) async fn ensure_for(
        &self,
        id: &str,
        spec: &InterceptSpec,
    ) -> Result<(Ensured, ChosenPorts), RequestError> {
        let workload = self
            .find(&spec.agent, &spec.namespace, &spec.workload_kind)
            .await?;
        self.may_have_agent(&workload)?;
        let plan = self.plan(&workload)?;
        let chosen = choose_ports(&plan.config, spec).map_err(RequestError::Invalid)?;
        let replaced = match (&chosen.main, spec.replace) {
            (Some(chosen), true) => Some((id.to_owned(), chosen.container.clone())),
            _ => None,
        };
        let ensured = self.ensure_workload(workload, replaced).await?;
        Ok((ensured, chosen))
    }

    async fn ensure_workload(
        &self,
        workload: Arc<WorkloadFacts>,
        replaced: Option<(String, String)>,
    ) -> Result<Ensured, RequestError> {
        let key = workload.key();
        let allowed = self.may_have_agent(&workload);
        let plan = match allowed.and_then(|()| self.plan(&workload)) {
            Ok(plan) => plan,
            Err(refusal) => {
                let note = refusal.to_string();
                let announcer = &self.announcer;
                announcer
                    .tell(&self.caches, &key, Told::Refused, &note)
                    .await;
                return Err(refusal);
            }
        };
        if workload.replicas == 0 {
            return Err(RequestError::Failed(format!(
                "{key} is scaled to 0 pods; scale it up first"
            )));
        }
        let is_new = self.wishes.want(&key, SystemTime::now());
        if let Some((id, container)) = &replaced {
            self.replacing(&key, id, BTreeSet::from([container.clone()]));
        }
        self.roller.forgive(&key);
        self.roller.look(&key);
        let waited = self.wait_for_agents(&key).await;
        match waited {
            Ok(agents) => Ok(Ensured {
                config: self.plan(&workload).map_or(plan.config, |it| it.config),
                workload,
                agents,
            }),
            Err(refusal) => {
                // Only what this call asked for is taken back.
                if is_new {
                    self.wishes.release(&key);
                }
                if let Some((id, _)) = &replaced {
                    self.settle(id);
                }
                self.roller.forgive(&key);
                self.caches.touch(&key.namespace);
                Err(refusal)
            }
        }
    }

    fn plan(&self, workload: &WorkloadFacts) -> Result<Plan, RequestError> {
        self.planner
            .plan(workload)
            .map_err(|refusal| RequestError::Failed(refusal.to_string()))
    }

    /// Kind of the workload that an intercept would be about; empty for one that is not there.
    pub(crate) async fn kind_of(&self, name: &str, namespace: &str, kind: &str) -> String {
        let found = self.find(name, namespace, kind).await;
        found.map_or_else(|_| String::new(), |it| it.kind.name().to_owned())
    }

    /// The workload of that name; of several kinds the one that has agents, else the first.
    async fn find(
        &self,
        name: &str,
        namespace: &str,
        kind: &str,
    ) -> Result<Arc<WorkloadFacts>, RequestError> {
        if let Some(refusal) = self.out_of_reach(namespace) {
            return Err(refusal);
        }
        let kind: Option<Kind> = match kind {
            "" => None,
            text => Some(text.parse().map_err(|error: injector::UnsupportedKind| {
                RequestError::Invalid(error.to_string())
            })?),
        };
        let found = self.caches.named(namespace, name);
        let mut fitting = found
            .iter()
            .filter(|it| kind.is_none_or(|kind| it.kind == kind));
        let first = fitting.clone().next();
        // A Deployment and its ReplicaSet may have the same name: the one that somebody intercepts
        // already is meant.
        let wanted = fitting.find(|it| self.wishes.of(&it.key()) != injector::Wanted::No);
        wanted.or(first).cloned().ok_or_else(|| {
            let kinds: Vec<_> = match kind {
                Some(kind) => vec![kind.name()],
                None => self.caches.kinds.iter().map(|it| it.name()).collect(),
            };
            RequestError::NotFound(format!(
                "no {} {name:?} in namespace {namespace:?}; check the name and the namespace",
                kinds.join(", ")
            ))
        })
    }

    /// The reason why nothing in a namespace can be intercepted.
    fn out_of_reach(&self, namespace: &str) -> Option<RequestError> {
        const CLUSTERS_OWN: [&str; 3] = ["kube-system", "kube-public", "kube-node-lease"];
        if CLUSTERS_OWN.contains(&namespace) {
            return Some(RequestError::Failed(format!(
                "namespace {namespace} is the cluster's own; nothing in it can be intercepted"
            )));
        }
        let managed = self.settings.managed.join(", ");
        if !self.settings.manages(namespace) {
            return Some(RequestError::Failed(format!(
                "namespace {namespace:?} is not managed by this traffic-manager; it manages \
                 {managed}. Add it to the chart's namespaces, or connect to its own manager"
            )));
        }
        let selected = self.caches.namespaces.get("", namespace);
        let left_out = selected.is_some_and(|it| !it.selected);
        left_out.then(|| {
            RequestError::Failed(format!(
                "namespace {namespace:?} is not selected by the chart's namespaceSelector; label \
                 it as that asks for"
            ))
        })
    }

    /// Word of annotations and operator about agents in this workload.
    fn may_have_agent(&self, workload: &WorkloadFacts) -> Result<(), RequestError> {
        let key = workload.key();
        let own = &workload.template.annotations;
        let refuse = |text: String| Err(RequestError::Failed(text));
        let inject = match annotations::inject(own) {
            Ok(inject) => inject,
            Err(faults) => return refuse(format!("{key}: {faults}")),
        };
        if annotations::is_manual(own) {
            return match workload.template.has_agent {
                true => Ok(()),
                false => refuse(format!(
                    "{key} is annotated manually-injected, and its template has no container \
                     {:?}; add the agent or remove the annotation",
                    injector::AGENT_CONTAINER
                )),
            };
        }
        // Agents that were put in by hand serve without an injector.
        if self.settings.webhook_port == 0 {
            let has = |pod: &super::planner::Judged| pod.pod.has_agent;
            return match self.planner.judge(&key).iter().any(has) {
                true => Ok(()),
                false => refuse(format!(
                    "{key} has no agent, and the injector is off (agentInjector.enabled); add the \
                     agent by hand"
                )),
            };
        }
        match (inject, self.planner.settings.policy) {
            (Inject::Disabled, _) => refuse(format!(
                "{key} is not interceptable: its template is annotated inject-traffic-agent: \
                 disabled"
            )),
            (Inject::Unset, InjectPolicy::WhenEnabled | InjectPolicy::Never) => refuse(format!(
                "{key} is not interceptable: agentInjector.injectPolicy admits only workloads whose \
                 template is annotated telepresence.io/inject-traffic-agent: enabled"
            )),
            _ => Ok(()),
        }
    }

    /// Agents of the workload's pods, once they are what they are to be.
    async fn wait_for_agents(&self, key: &Key) -> Result<Vec<AgentInfo>, RequestError> {
        if let Some(agents) = self.all_arrived(key) {
            return Ok(agents);
        }
        // Events of an earlier attempt would end this one.
        let since = SystemTime::now();
        let (trouble_tx, mut trouble_rx) = mpsc::channel(MAX_TROUBLES);
        let follow = events::follow(&self.client, &key.namespace, &key.name, since, |trouble| {
            // Whoever waits does not need more than fit.
            let _ = trouble_tx.try_send(trouble);
            false
        });
        let mut wait = AgentWait {
            troubles: Vec::new(),
            no_room: None,
            deadline: Instant::now() + self.settings.arrival_timeout,
        };
        tokio::select! {
            () = follow => Err(wait.failed(key, "its events ended")),
            waited = self.wait(key, &mut wait, &mut trouble_rx) => waited,
        }
    }

    async fn wait(
        &self,
        key: &Key,
        wait: &mut AgentWait,
        troubles: &mut mpsc::Receiver<Trouble>,
    ) -> Result<Vec<AgentInfo>, RequestError> {
        let (mut sessions, mut caches) = (self.shared.changes(), self.caches.changes());
        let mut ends = self.roller.ends();
        let mut others_until: Option<Instant> = None;
        loop {
            // Before the look, so that no change between the look and the wait is missed.
            sessions.mark_unchanged();
            caches.mark_unchanged();
            ends.mark_unchanged();
            if let Some(agents) = self.all_arrived(key) {
                return Ok(agents);
            }
            if !self.arrived(key).is_empty() {
                // The first agent is enough to begin; the other pods get a moment, since their
                // requests go to the app until they have one.
                others_until.get_or_insert_with(|| Instant::now() + OTHERS_TIMEOUT);
            }
            if let Some(why) = self.roller.failure(key) {
                return Err(wait.failed(key, &why));
            }
            let until = wait.next_deadline(others_until);
            tokio::select! {
                _ = sessions.changed() => {}
                _ = caches.changed() => {}
                _ = ends.changed() => {}
                Some(trouble) = troubles.recv() => {
                    if let Some(refusal) = self.hear(key, wait, trouble).await {
                        return Err(refusal);
                    }
                }
                () = sleep_until(until) => {
                    let agents = self.arrived(key);
                    if !agents.is_empty() {
                        return Ok(agents);
                    }
                    let seconds = self.settings.arrival_timeout.as_secs();
                    return Err(wait.failed(key, &match wait.no_room {
                        Some(_) => "the cluster has no room for the pod; if it grows by itself, \
                                    try again in a minute".to_owned(),
                        None => format!("no agent arrived within {seconds}s"),
                    }));
                }
            }
        }
    }

    async fn hear(
        &self,
        key: &Key,
        wait: &mut AgentWait,
        trouble: Trouble,
    ) -> Option<RequestError> {
        // The scheduler says so at once, while a cluster that grows by itself needs a minute.
        if trouble.note.contains("nodes are available") && wait.no_room.is_none() {
            wait.no_room = Some(Instant::now() + ROOM_TIMEOUT);
        }
        let known = wait.troubles.iter().any(|it| {
            (&it.reason, &it.object, &it.note) == (&trouble.reason, &trouble.object, &trouble.note)
        });
        if !known && wait.troubles.len() < MAX_TROUBLES {
            wait.troubles.push(trouble.clone());
        }
        if !trouble.is_fatal {
            return None;
        }
        let mut why = format!("{}: {}", trouble.object, trouble.note);
        // The event says only that the container ends again and again; why is in its log.
        if trouble.reason == "BackOff" {
            let log =
                events::failing_log(&self.client, &key.namespace, &trouble.object, &trouble.note);
            if let Ok(Some(log)) = timeout(ROOM_TIMEOUT, log).await {
                why = format!("{why}; it said: {log}");
            }
        }
        Some(wait.failed(key, &why))
    }

    /// Agents that are there for pods that are as they are to be.
    fn arrived(&self, key: &Key) -> Vec<AgentInfo> {
        let good: BTreeSet<String> = self
            .planner
            .judge(key)
            .into_iter()
            .filter(|it| it.matches && it.pod.has_agent)
            .map(|it| it.pod.name.clone())
            .collect();
        // Nobody but its owner knows what such a pod is to be.
        let manual = |agent: &AgentInfo| {
            let pod = self.caches.pods.get(&key.namespace, &agent.pod_name);
            pod.is_some_and(|it| it.manual && it.is_live())
        };
        self.shared.read(|registry| {
            let agents = registry.agents_of(&key.name, &key.namespace).into_iter();
            agents
                .filter(|agent| good.contains(&agent.pod_name) || manual(agent))
                .cloned()
                .collect()
        })
    }

    /// The same, if no pod is left without one.
    fn all_arrived(&self, key: &Key) -> Option<Vec<AgentInfo>> {
        let agents = self.arrived(key);
        let has_agent = |pod: &str| agents.iter().any(|it| it.pod_name == pod);
        let pods = self.planner.judge(key);
        let all = pods.iter().all(|it| has_agent(&it.pod.name));
        (all && !agents.is_empty()).then_some(agents)
    }
}

/// Somebody who waits.
struct AgentWait {
    troubles: Vec<Trouble>,
    /// Deadline of a pod without room.
    no_room: Option<Instant>,
    deadline: Instant,
}

impl AgentWait {
    fn next_deadline(&self, others_until: Option<Instant>) -> Instant {
        let early = [self.no_room, others_until].into_iter().flatten().min();
        early.map_or(self.deadline, |it| it.min(self.deadline))
    }

    fn failed(&self, key: &Key, why: &str) -> RequestError {
        let mut text = format!("no agent for {key}: {why}");
        if !self.troubles.is_empty() {
            text.push('\n');
            text.push_str(&events::table(&self.troubles));
        }
        RequestError::Failed(text)
    }
}

#[cfg(test)]
mod tests;
