//! The webhook's answer to one admission review. It never refuses a pod: whatever is wrong, the pod
//! is admitted as it is, with a warning that says why. Nothing is written from here.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use injector::{Decision, Kind, OwnerOf, Verdict, Workload, decide};
use k8s_openapi::api::core::v1::Pod;
use kube::core::DynamicObject;
use kube::core::admission::{AdmissionRequest, AdmissionReview, Operation};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use traffic_proto::sync::lock;

use super::answer::ReviewAnswer;
use super::caches::Owners;
use super::objects::{WorkloadFacts, WorkloadObject, workload_resource};
use super::planner::Planner;

/// Namespaces whose pods are never touched.
const CLUSTERS_OWN: [&str; 3] = ["kube-public", "kube-system", "kube-node-lease"];
/// Time for an owner that no watch has brought yet: the API server waits.
const OWNER_TIMEOUT: Duration = Duration::from_secs(2);
/// Reviews that are kept to be shown, of each kind.
const MAX_REVIEWS: usize = 50;
/// Verdict on a pod that nobody wants an agent for.
const SKIPPED: &str = "skipped";
/// Warnings are cut there by clients.
const MAX_WARNING: usize = 256;

/// Answers reviews.
#[derive(Clone)]
pub(crate) struct Admission {
    pub(crate) client: Client,
    pub(crate) planner: Planner,
    pub(crate) counts: Arc<AdmissionCounts>,
}

/// Reviews by outcome, and the last of them.
#[derive(Debug, Default)]
pub(crate) struct AdmissionCounts {
    pub(crate) injected: AtomicU64,
    pub(crate) skipped: AtomicU64,
    pub(crate) refused: AtomicU64,
    /// Pods that got no agent because nothing wanted one are apart: they are many, and of little
    /// interest.
    last: Mutex<[VecDeque<Review>; 2]>,
}

/// A review, for people.
#[derive(Clone, Debug)]
pub(crate) struct Review {
    pub(crate) at: SystemTime,
    pub(crate) namespace: String,
    /// Name, or what it begins with.
    pub(crate) pod: String,
    pub(crate) verdict: &'static str,
    pub(crate) reasons: String,
}

impl AdmissionCounts {
    /// Keeps a review; the oldest gives way.
    fn keep(&self, review: Review) {
        let mut last = lock(&self.last);
        let kept = &mut last[usize::from(review.verdict == SKIPPED)];
        if kept.len() >= MAX_REVIEWS {
            kept.pop_back();
        }
        kept.push_front(review);
    }

    /// The last reviews, newest first.
    pub(crate) fn last(&self) -> Vec<Review> {
        let mut all: Vec<_> = lock(&self.last).iter().flatten().cloned().collect();
        all.sort_by_key(|review| std::cmp::Reverse(review.at));
        all
    }
}

impl Admission {
    /// Answers a review.
    ///
    /// # Errors
    /// It is none.
    pub(crate) async fn review(&self, body: &[u8]) -> Result<ReviewAnswer, String> {
        // Straight to the pod, since it is nearly all of the body.
        match request_of::<Pod>(body) {
            Ok(request) => Ok(self.answer(&request).await),
            Err(error) => match request_of(body) {
                Ok(request) => Ok(self.unreadable(&request, &error)),
                Err(error) => Err(format!("no admission review: {error}")),
            },
        }
    }

    /// Pods that may get an agent are asked about.
    fn concerns<K: Resource>(&self, request: &AdmissionRequest<K>) -> bool {
        let namespace = request.namespace.as_deref().unwrap_or_default();
        let resource = &request.resource;
        let is_pod = resource.group.is_empty() && resource.resource == "pods";
        is_pod
            && request.operation == Operation::Create
            && !CLUSTERS_OWN.contains(&namespace)
            && !self.planner.wishes.is_terminating()
    }

    fn unreadable(&self, request: &AdmissionRequest<DynamicObject>, error: &str) -> ReviewAnswer {
        let answer = ReviewAnswer::to(request);
        if !self.concerns(request) {
            return answer;
        }
        let reasons = format!("the pod cannot be read: {error}");
        let answer = answer.with_warnings(vec![cut(&reasons)]);
        self.counts.keep(Review {
            at: SystemTime::now(),
            namespace: request.namespace.clone().unwrap_or_default(),
            pod: request.name.clone(),
            verdict: "refused",
            reasons,
        });
        answer
    }

    async fn answer(&self, request: &AdmissionRequest<Pod>) -> ReviewAnswer {
        let answer = ReviewAnswer::to(request);
        let pod = match &request.object {
            Some(pod) if self.concerns(request) => pod,
            _ => return answer,
        };
        let namespace = request.namespace.as_deref().unwrap_or_default();
        let decision = self.decide(namespace, pod).await;
        self.record(namespace, pod, &decision, request.dry_run);
        let warnings = decision.warnings.iter().map(|it| cut(it)).collect();
        answer.with_patch(&decision.patch).with_warnings(warnings)
    }

    /// The decision about a pod of a namespace.
    pub(crate) async fn decide(&self, namespace: &str, pod: &Pod) -> Decision {
        let owners = self.owners(namespace, pod).await;
        let (facts, wanted): (Workload, _);
        let mut made_from = Arc::default();
        let empty = Default::default();
        let labels = pod.metadata.labels.as_ref().unwrap_or(&empty);
        let owner = match owners {
            Owners::Nobody => OwnerOf::Nobody,
            Owners::Foreign(kind, name) => OwnerOf::Foreign { kind, name },
            Owners::Unknown(kind, name) => OwnerOf::Unknown { kind, name },
            Owners::Found(workload, template) => {
                facts = workload.as_workload(&template);
                wanted = self.planner.wishes.of(&workload.key());
                made_from = template;
                OwnerOf::Workload(&facts, &wanted)
            }
        };
        let around = self.planner.caches.around(namespace, labels, &made_from);
        decide(pod, &owner, &around, &self.planner.settings)
    }

    /// The owners of a pod; one that the watches have not brought yet is asked for.
    async fn owners(&self, namespace: &str, pod: &Pod) -> Owners {
        let controller = injector::controller(&pod.metadata);
        let caches = &self.planner.caches;
        match caches.owners(namespace, controller.clone()) {
            Owners::Unknown(kind, name) => {
                let Some((kind, object)) = self.ask(namespace, &kind, &name).await else {
                    return Owners::Unknown(kind, name);
                };
                let facts = WorkloadFacts::new(kind, &object);
                caches.workloads(kind).put(namespace, &name, facts);
                // Its own owner has been there for longer.
                caches.owners(namespace, controller)
            }
            // A ReplicaSet without pods is kept without its template, and this may be the first pod
            // of one that was scaled up just now.
            Owners::Found(workload, template) if template.containers.is_empty() => {
                let template = match controller {
                    Some(near) => {
                        let asked = self.ask(namespace, &near.kind, &near.name).await;
                        asked.and_then(|(_, object)| object.spec.template())
                    }
                    None => None,
                };
                Owners::Found(workload, Arc::new(template.unwrap_or_default()))
            }
            owners => owners,
        }
    }

    async fn ask(&self, namespace: &str, kind: &str, name: &str) -> Option<(Kind, WorkloadObject)> {
        let kind: Kind = kind.parse().ok()?;
        let resource = workload_resource(kind);
        let api: Api<WorkloadObject> =
            Api::namespaced_with(self.client.clone(), namespace, &resource);
        let object = timeout(OWNER_TIMEOUT, api.get(name)).await.ok()?.ok()?;
        Some((kind, object))
    }

    fn record(&self, namespace: &str, pod: &Pod, decision: &Decision, dry_run: bool) {
        if dry_run {
            return;
        }
        let meta = &pod.metadata;
        let name = meta.name.as_ref().or(meta.generate_name.as_ref());
        let name = name.map(String::as_str).unwrap_or_default();
        let reasons = decision.reasons.join("; ");
        let (counter, verdict) = match &decision.verdict {
            Verdict::Inject => {
                tracing::info!(pod = name, namespace, "agent injected: {reasons}");
                (&self.counts.injected, "injected")
            }
            Verdict::Skip(_) => {
                tracing::debug!(pod = name, namespace, "no agent: {reasons}");
                (&self.counts.skipped, SKIPPED)
            }
            Verdict::Refuse(_) => {
                tracing::warn!(pod = name, namespace, "no agent: {reasons}");
                (&self.counts.refused, "refused")
            }
        };
        self.counts.keep(Review {
            at: SystemTime::now(),
            namespace: namespace.to_owned(),
            pod: name.to_owned(),
            verdict,
            reasons,
        });
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// The request of a review whose object is of a known type.
fn request_of<K: Resource + DeserializeOwned>(body: &[u8]) -> Result<AdmissionRequest<K>, String> {
    // As text, which is what everything else is decoded from: for bytes the program would have
    // half a megabyte of the same code again.
    let body = std::str::from_utf8(body).map_err(|error| error.to_string())?;
    let review: AdmissionReview<K> =
        serde_json::from_str(body).map_err(|error| error.to_string())?;
    let request = review.try_into();
    request.map_err(|_| "it holds no request".to_owned())
}

/// A warning as the API server passes it on: one line, not too long.
fn cut(warning: &str) -> String {
    let text = format!("traffic-agent: {warning}");
    let clean = text
        .chars()
        .map(|it| if it.is_control() { ' ' } else { it });
    let mut cut: String = clean.take(MAX_WARNING).collect();
    if cut.chars().count() == MAX_WARNING {
        cut.pop();
        cut.push('…');
    }
    cut
}
