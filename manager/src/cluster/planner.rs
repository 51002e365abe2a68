//! The desired agent of pods, from caches and wishes: what webhook, roll-outs and intercepts ask.

use std::sync::Arc;

use injector::{Inject, OwnerOf, Plan, Refusal, Settings, Skip, Template, Verdict, annotations};

use super::caches::{Caches, Key};
use super::objects::{PodFacts, WorkloadFacts};
use super::wishes::Wishes;

/// Makes plans.
#[derive(Clone, Debug)]
pub(crate) struct Planner {
    pub(crate) caches: Arc<Caches>,
    pub(crate) wishes: Arc<Wishes>,
    pub(crate) settings: Arc<Settings>,
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
    /// The desired state of pods that were made from a template.
    pub(crate) fn desired(&self, workload: &WorkloadFacts, template: &Template) -> Desired {
        if self.wishes.is_terminating() {
            return Desired::Nothing;
        }
        let wanted = self.wishes.of(&workload.key());
        let facts = workload.as_workload(template);
        let around = self.caches.around(&workload.namespace, &template.labels);
        let owner = OwnerOf::Workload(&facts, &wanted);
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
        let around = self.caches.around(&workload.namespace, &template.labels);
        let facts = workload.as_workload(template);
        injector::plan(&facts, replaced, &around, &self.settings)
    }

    /// All pods of a workload that serve, or are about to.
    pub(crate) fn judge(&self, key: &Key) -> Vec<Judged> {
        let Some(workload) = self.caches.workload(key) else {
            return Vec::new();
        };
        let mut plans: Vec<(Arc<Template>, Desired)> = Vec::new();
        let pods = self.caches.pods_of(key).into_iter();
        pods.filter(|(pod, _)| pod.is_live() && !pod.manual)
            .map(|(pod, template)| {
                let known = plans.iter().find(|(other, _)| *other == template);
                let desired = match known {
                    Some((_, desired)) => desired.clone(),
                    None => {
                        let desired = self.desired(&workload, &template);
                        plans.push((template, desired.clone()));
                        desired
                    }
                };
                judge(pod, &desired)
            })
            .collect()
    }

    /// Tells whether a workload concerns us at all: somebody wants an agent, or a pod has one.
    pub(crate) fn relevant(&self, namespace: &str) -> Vec<Key> {
        let mut keys = self.wishes.in_namespace(namespace);
        let enabled = |it: &WorkloadFacts| {
            matches!(
                annotations::inject(&it.template.annotations),
                Ok(Inject::Enabled)
            )
        };
        let roots = self.caches.roots(namespace);
        keys.extend(roots.iter().filter(|it| enabled(it)).map(|it| it.key()));
        for pod in self.caches.pods.of(namespace) {
            if pod.digest.is_some()
                && pod.is_live()
                && let super::caches::Owners::Found(workload, _) =
                    self.caches.owners(namespace, pod.controller.clone())
            {
                keys.push(workload.key());
            }
        }
        keys.sort();
        keys.dedup();
        keys
    }
}

fn judge(pod: Arc<PodFacts>, desired: &Desired) -> Judged {
    let (matches, lacks_agent) = match desired {
        Desired::AsItIs => (true, false),
        Desired::Nothing => (!pod.has_agent || pod.digest.is_none(), false),
        Desired::Agent(plan) => {
            let same = pod.digest.as_ref() == Some(&plan.digest);
            (pod.has_agent && same, !pod.has_agent)
        }
    };
    Judged {
        pod,
        matches,
        lacks_agent,
    }
}
