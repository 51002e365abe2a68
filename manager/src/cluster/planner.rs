//! The desired agent of pods, from caches and wishes: what webhook, roll-outs and intercepts ask.

use std::sync::Arc;

use injector::{OwnerOf, Plan, Refusal, Settings, Skip, Template, Verdict, Wanted};

use super::caches::{Caches, Key};
use super::goals::{Goal, Goals, Grounds};
use super::objects::{PodFacts, WorkloadFacts};
use super::wishes::Wishes;

/// Makes plans.
#[derive(Clone, Debug)]
pub(crate) struct Planner {
    pub(crate) caches: Arc<Caches>,
    pub(crate) wishes: Arc<Wishes>,
    pub(crate) settings: Arc<Settings>,
    goals: Arc<Goals>,
}

/// The desired state of a pod.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Desired {
    /// An agent made from this plan.
    Agent(Box<Plan>),
    /// No agent.
    Nothing,
    /// Left as it is.
    AsItIs,
}

impl From<Desired> for Goal {
    fn from(desired: Desired) -> Self {
        match desired {
            Desired::Agent(plan) => Self::Agent(plan.digest),
            Desired::Nothing => Self::Nothing,
            Desired::AsItIs => Self::AsItIs,
        }
    }
}

/// A pod beside what it is to be.
#[derive(Clone, Debug)]
pub(crate) struct Judged {
    pub(crate) pod: Arc<PodFacts>,
    /// Done: as it is to be, or left alone.
    pub(crate) matches: bool,
    /// An agent is wanted, and there is none.
    pub(crate) lacks_agent: bool,
}

impl Planner {
    pub(crate) fn new(caches: Arc<Caches>, wishes: Arc<Wishes>, settings: Settings) -> Self {
        Self {
            caches,
            wishes,
            settings: Arc::new(settings),
            goals: Arc::default(),
        }
    }

    /// The desired state of pods that were made from a template.
    pub(crate) fn desired(&self, workload: &WorkloadFacts, template: &Template) -> Desired {
        let wanted = self.wishes.of(&workload.key());
        self.desired_by(workload, template, &wanted)
    }

    fn desired_by(
        &self,
        workload: &WorkloadFacts,
        template: &Template,
        wanted: &Wanted,
    ) -> Desired {
        if self.wishes.is_terminating() {
            return Desired::Nothing;
        }
        let facts = workload.as_workload(template);
        let caches = &self.caches;
        let around = caches.around(&workload.namespace, &template.labels, template);
        let owner = OwnerOf::Workload(&facts, wanted);
        match injector::desired(&template.annotations, &owner, &around, &self.settings) {
            Ok((_, plan)) => Desired::Agent(Box::new(plan)),
            Err(Verdict::Skip(Skip::Manual(_) | Skip::NoImage) | Verdict::Refuse(_)) => {
                Desired::AsItIs
            }
            Err(_) => Desired::Nothing,
        }
    }

    /// An agent is wanted for the pods of the workload's template.
    pub(crate) fn wants(&self, key: &Key) -> bool {
        let workload = self.caches.workload(key);
        workload.is_some_and(|it| matches!(self.desired(&it, &it.template), Desired::Agent(_)))
    }

    /// The plan for a workload if an agent were wanted.
    pub(crate) fn plan(&self, workload: &WorkloadFacts) -> Result<Plan, Refusal> {
        let replaced = match self.wishes.of(&workload.key()) {
            injector::Wanted::Yes { replaced } => replaced,
            _ => Default::default(),
        };
        self.plan_with(workload, &replaced)
    }

    pub(crate) fn plan_with(
        &self,
        workload: &WorkloadFacts,
        replaced: &std::collections::BTreeSet<String>,
    ) -> Result<Plan, Refusal> {
        let template = &workload.template;
        let caches = &self.caches;
        let around = caches.around(&workload.namespace, &template.labels, template);
        let facts = workload.as_workload(template);
        injector::plan(&facts, replaced, &around, &self.settings)
    }

    /// All pods of a workload that serve, or are about to.
    pub(crate) fn judge(&self, key: &Key) -> Vec<Judged> {
        let Some(workload) = self.caches.workload(key) else {
            return Vec::new();
        };
        let grounds = self.grounds(key);
        let wanted = grounds.wanted.clone();
        let mut goals = self.goals.take(key, grounds);
        let pods = self.caches.pods_of(key);
        let judged = pods
            .into_iter()
            .filter(|(pod, _)| pod.is_live() && !pod.manual)
            .map(|(pod, template)| {
                let goal = goals.of(template, |template| {
                    Goal::from(self.desired_by(&workload, template, &wanted))
                });
                judge(pod, goal)
            })
            .collect();
        let is_there = |key: &Key| self.caches.workload(key).is_some();
        self.goals.keep(key, goals, is_there);
        judged
    }

    /// Everything beside its template that the desired state of a workload depends on.
    fn grounds(&self, key: &Key) -> Grounds {
        let namespace = &key.namespace;
        Grounds {
            wanted: self.wishes.of(key),
            is_terminating: self.wishes.is_terminating(),
            namespaces: self.caches.namespaces.version(""),
            services: self.caches.services.version(namespace),
            sidecars: self.caches.sidecars.version(namespace),
        }
    }

    /// Tells whether a workload concerns us at all: somebody wants an agent, or a pod has one.
    pub(crate) fn relevant(&self, namespace: &str) -> Vec<Key> {
        let mut keys = self.wishes.in_namespace(namespace);
        keys.extend(self.caches.enabled(namespace));
        keys.extend(self.caches.with_agents(namespace));
        keys.sort();
        keys.dedup();
        keys
    }
}

fn judge(pod: Arc<PodFacts>, goal: &Goal) -> Judged {
    let (matches, lacks_agent) = match goal {
        Goal::AsItIs => (true, false),
        Goal::Nothing => (!pod.has_agent || pod.digest.is_none(), false),
        Goal::Agent(digest) => {
            let same = pod.digest.as_ref() == Some(digest);
            (pod.has_agent && same, !pod.has_agent)
        }
    };
    Judged {
        pod,
        matches,
        lacks_agent,
    }
}

#[cfg(test)]
mod load;
#[cfg(test)]
mod tests;
