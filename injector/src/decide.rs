//! The decision about one pod.

use std::collections::{BTreeMap, BTreeSet};

use json_patch::Patch;
use k8s_openapi::api::core::v1::Pod;

use crate::agent::{Parts, apps};
use crate::annotations::{self, Inject};
use crate::explain::{Refusal, Skip};
use crate::facts::{Kind, Surroundings, Wanted, Workload};
use crate::patch;
use crate::plan::{Plan, plan};
use crate::settings::{InjectPolicy, Settings};

/// The owner of a pod, as far as it could be found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OwnerOf<'a> {
    /// A workload, and the desired state apart from its annotations.
    Workload(&'a Workload, &'a Wanted),
    /// The pod has no owner.
    Nobody,
    /// The owner's pods get no agent.
    Foreign {
        /// Kind of the owner.
        kind: String,
        /// Name of the owner.
        name: String,
    },
    /// The owner is not known yet.
    Unknown {
        /// Kind of the owner.
        kind: String,
        /// Name of the owner.
        name: String,
    },
}

/// Result of the decision about a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The pod gets an agent, or another one.
    Inject,
    /// The pod is left unchanged.
    Skip(Skip),
    /// The pod is left unchanged although an agent is wanted.
    Refuse(Refusal),
}

/// The decision about a pod.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// Result of the decision.
    pub verdict: Verdict,
    /// The desired agent, where there is one.
    pub plan: Option<Plan>,
    /// Operations on the pod; none: it stays as it is.
    pub patch: Patch,
    /// Reasons, one sentence each.
    pub reasons: Vec<String>,
    /// Problems that need attention.
    pub warnings: Vec<String>,
}

/// Decides about a pod as it is sent to the API server, or as it exists.
pub fn decide(
    pod: &Pod,
    owner: &OwnerOf<'_>,
    around: &Surroundings,
    settings: &Settings,
) -> Decision {
    let empty = BTreeMap::new();
    let own = pod.metadata.annotations.as_ref().unwrap_or(&empty);
    let (workload, plan) = match desired(own, owner, around, settings) {
        Ok(found) => found,
        Err(verdict) => return Decision::without_plan(verdict),
    };
    let mut decision = Decision {
        verdict: Verdict::Skip(Skip::UpToDate),
        patch: Patch::default(),
        reasons: plan.notes.iter().map(ToString::to_string).collect(),
        warnings: plan
            .notes
            .iter()
            .filter(|it| it.is_warning)
            .map(ToString::to_string)
            .collect(),
        plan: None,
    };
    if patch::is_applied(pod, &plan.digest, plan.init, plan.native) {
        decision.reasons.push(Skip::UpToDate.to_string());
    } else {
        decision.patch = make_patch(pod, workload, &plan, settings);
        decision.verdict = Verdict::Inject;
    }
    decision.plan = Some(plan);
    decision
}

/// The desired agent of pods with these annotations, a pod's own or those of its template.
///
/// # Errors
/// The reason why there is to be none.
pub fn desired<'a>(
    annotations: &BTreeMap<String, String>,
    owner: &OwnerOf<'a>,
    around: &Surroundings,
    settings: &Settings,
) -> Result<(&'a Workload, Plan), Verdict> {
    let (workload, replaced) = wants(annotations, owner, settings)?;
    match plan(workload, replaced, around, settings) {
        Ok(plan) => Ok((workload, plan)),
        Err(refusal) => Err(Verdict::Refuse(refusal)),
    }
}

/// Decides if the pod is to have an agent; returns the workload and the containers to replace.
fn wants<'a>(
    own: &BTreeMap<String, String>,
    owner: &OwnerOf<'a>,
    settings: &Settings,
) -> Result<(&'a Workload, &'a BTreeSet<String>), Verdict> {
    static NONE: BTreeSet<String> = BTreeSet::new();
    let annotated = annotations::inject(own).map_err(|faults| {
        let workload = match owner {
            OwnerOf::Workload(workload, _) => workload.to_string(),
            _ => "the pod".to_owned(),
        };
        Verdict::Refuse(Refusal::Faults { workload, faults })
    })?;
    let skip = |skip| Err(Verdict::Skip(skip));
    // The pod's annotation precedes the policy in every case.
    match (annotated, settings.policy) {
        (Inject::Disabled, _) => return skip(Skip::Disabled("disabled".to_owned())),
        (Inject::Unset, InjectPolicy::WhenEnabled) => return skip(Skip::Policy("WhenEnabled")),
        (Inject::Unset, InjectPolicy::Never) => return skip(Skip::Policy("Never")),
        (Inject::Unset, InjectPolicy::OnDemand) | (Inject::Enabled, _) => {}
    }
    if settings.image.is_empty() {
        return skip(Skip::NoImage);
    }
    let (workload, wanted) = owned(owner).map_err(Verdict::Skip)?;
    if annotations::is_manual(own) {
        return skip(Skip::Manual(workload.to_string()));
    }
    match (wanted, annotated) {
        (Wanted::Manual, _) => skip(Skip::Manual(workload.to_string())),
        (Wanted::Yes { replaced }, _) => Ok((workload, replaced)),
        // An enabled pod has its agent before the first intercept, with no container replaced.
        (Wanted::No, Inject::Enabled) => Ok((workload, &NONE)),
        (Wanted::No, _) => skip(Skip::NotWanted(workload.to_string())),
    }
}

fn owned<'a>(owner: &OwnerOf<'a>) -> Result<(&'a Workload, &'a Wanted), Skip> {
    match owner {
        OwnerOf::Workload(workload, wanted) => Ok((workload, wanted)),
        OwnerOf::Nobody => Err(Skip::NoOwner),
        OwnerOf::Foreign { kind, name } => Err(match kind.parse::<Kind>() {
            Ok(kind) => Skip::KindOff(kind),
            Err(_) => Skip::ForeignOwner {
                kind: kind.clone(),
                name: name.clone(),
            },
        }),
        OwnerOf::Unknown { kind, name } => Err(Skip::OwnerUnknown {
            kind: kind.clone(),
            name: name.clone(),
        }),
    }
}

fn make_patch(pod: &Pod, workload: &Workload, plan: &Plan, settings: &Settings) -> Patch {
    // Those of the template made the plan, so these can be read as well.
    let requests = annotations::read(&workload.template.annotations).unwrap_or_default();
    let empty = BTreeMap::new();
    let own = pod.metadata.annotations.as_ref().unwrap_or(&empty);
    let secrets = annotations::tls_secrets(own, &plan.config.agent_name);
    let parts = Parts {
        pod,
        plan,
        apps: apps(pod, plan),
        requests: &requests,
        secrets: &secrets,
        settings,
    };
    patch::patch(&parts)
}

impl Decision {
    fn without_plan(verdict: Verdict) -> Self {
        let (reason, is_warning) = match &verdict {
            // These keep what is wanted from working; the others are somebody's choice.
            Verdict::Skip(skip @ (Skip::NoImage | Skip::OwnerUnknown { .. })) => {
                (skip.to_string(), true)
            }
            Verdict::Skip(skip) => (skip.to_string(), false),
            Verdict::Refuse(refusal) => (refusal.to_string(), true),
            Verdict::Inject => (String::new(), false),
        };
        Self {
            warnings: if is_warning {
                vec![reason.clone()]
            } else {
                Vec::new()
            },
            reasons: vec![reason],
            verdict,
            plan: None,
            patch: Patch::default(),
        }
    }
}
