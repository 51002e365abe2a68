//! Desired states of workloads' pods, kept as long as what they were made from stays: plans are made of
//! all Services of a namespace, and every change of a pod has somebody look at its workload.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use injector::{Template, Wanted};
use traffic_proto::sync::lock;

use super::caches::Key;

/// Workloads whose goals are kept before those that are gone are looked for.
const MIN_KEPT: usize = 64;

/// The desired state of a pod, reduced to what a pod is compared with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Goal {
    /// An agent made from the plan of this digest.
    Agent(String),
    /// No agent.
    Nothing,
    /// Left as it is.
    AsItIs,
}

/// Everything beside its template that the desired state of a workload depends on. A version is read
/// before what it stands for: then a goal is at worst newer than its grounds, and made once more.
#[derive(Debug, PartialEq)]
pub(crate) struct Grounds {
    pub(crate) wanted: Wanted,
    pub(crate) is_terminating: bool,
    /// Version of the namespaces.
    pub(crate) namespaces: u64,
    /// Version of the namespace's Services.
    pub(crate) services: u64,
    /// Version of the namespace's Istio `Sidecar` objects.
    pub(crate) sidecars: u64,
}

/// Goals by workload.
#[derive(Debug, Default)]
pub(crate) struct Goals {
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    by_workload: BTreeMap<Key, GoalsOf>,
    /// Number of workloads at which those that are gone are looked for.
    full: usize,
}

/// Goals of one workload's pods.
#[derive(Debug)]
pub(crate) struct GoalsOf {
    grounds: Grounds,
    by_template: Vec<KnownGoal>,
}

#[derive(Debug)]
struct KnownGoal {
    template: Arc<Template>,
    goal: Goal,
    /// A pod of the template was asked about since the goals were taken.
    used: bool,
}

impl Goals {
    /// Hands out the goals of a workload that still hold.
    pub(crate) fn take(&self, key: &Key, grounds: Grounds) -> GoalsOf {
        let kept = lock(&self.kept).by_workload.remove(key);
        let kept = kept.filter(|it| it.grounds == grounds);
        let mut goals = kept.unwrap_or(GoalsOf {
            grounds,
            by_template: Vec::new(),
        });
        for made in &mut goals.by_template {
            made.used = false;
        }
        goals
    }

    /// Keeps those that were asked for until they are taken again.
    pub(crate) fn keep(&self, key: &Key, mut goals: GoalsOf, is_there: impl Fn(&Key) -> bool) {
        goals.by_template.retain(|it| it.used);
        if goals.by_template.is_empty() {
            return;
        }
        let kept = &mut *lock(&self.kept);
        kept.by_workload.insert(key.clone(), goals);
        if kept.by_workload.len() > kept.full.max(MIN_KEPT) {
            kept.by_workload.retain(|key, _| is_there(key));
            // So that it is done for one in so many.
            kept.full = kept.by_workload.len() * 2;
        }
    }
}

impl GoalsOf {
    /// The goal of a template's pods; `make` is called unless it is known.
    pub(crate) fn of(
        &mut self,
        template: Arc<Template>,
        make: impl FnOnce(&Template) -> Goal,
    ) -> &Goal {
        let mut known = self.by_template.iter();
        let known = known.position(|it| it.template == template);
        let at = known.unwrap_or_else(|| {
            self.by_template.push(KnownGoal {
                goal: make(&template),
                template: template.clone(),
                used: true,
            });
            self.by_template.len() - 1
        });
        let made = &mut self.by_template[at];
        made.used = true;
        // The cache's own, of which there may be a newer one that says the same.
        made.template = template;
        &made.goal
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use injector::Kind;

    fn key(name: &str) -> Key {
        Key {
            namespace: "n".to_owned(),
            kind: Kind::Deployment,
            name: name.to_owned(),
        }
    }

    fn grounds() -> Grounds {
        Grounds {
            wanted: Wanted::agent(),
            is_terminating: false,
            namespaces: 1,
            services: 1,
            sidecars: 0,
        }
    }

    fn template(has_agent: bool) -> Arc<Template> {
        Arc::new(Template {
            has_agent,
            ..Template::default()
        })
    }

    /// Asks for a goal, and tells whether it was made anew.
    fn is_made(goals: &Goals, grounds: Grounds, template: &Arc<Template>) -> bool {
        let mut is_made = false;
        let mut of = goals.take(&key("a"), grounds);
        of.of(template.clone(), |_| {
            is_made = true;
            Goal::Nothing
        });
        goals.keep(&key("a"), of, |_| true);
        is_made
    }

    #[test]
    fn a_goal_is_made_once_for_the_same_grounds() {
        let goals = Goals::default();
        assert!(is_made(&goals, grounds(), &template(false)));
        assert!(!is_made(&goals, grounds(), &template(false)));
        let others = [
            Grounds {
                wanted: Wanted::No,
                ..grounds()
            },
            Grounds {
                is_terminating: true,
                ..grounds()
            },
            Grounds {
                namespaces: 2,
                ..grounds()
            },
            Grounds {
                services: 2,
                ..grounds()
            },
            Grounds {
                sidecars: 1,
                ..grounds()
            },
        ];
        for other in others {
            assert!(is_made(&goals, other, &template(false)));
            assert!(is_made(&goals, grounds(), &template(false)));
        }
        assert!(is_made(&goals, grounds(), &template(true)));
    }

    #[test]
    fn what_is_gone_is_forgotten() {
        let goals = Goals::default();
        for n in 0..=MIN_KEPT {
            let key = key(&n.to_string());
            let mut of = goals.take(&key, grounds());
            of.of(template(false), |_| Goal::Nothing);
            goals.keep(&key, of, |key| key.name.len() == 1);
        }
        assert_eq!(lock(&goals.kept).by_workload.len(), 10);
    }
}
