//! The webhook's answer to one admission review. It never refuses a pod: whatever is wrong, the pod
//! is admitted as it is, with a warning that says why. Nothing is written from here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use injector::{Decision, OwnerOf, Verdict, Workload, decide};
use k8s_openapi::api::core::v1::Pod;
use kube::core::DynamicObject;
use kube::core::admission::{AdmissionRequest, AdmissionResponse, AdmissionReview, Operation};
use kube::{Api, Client};
use tokio::time::timeout;

use super::caches::Owners;
use super::objects::{WorkloadFacts, WorkloadObject, workload_resource};
use super::planner::Planner;

/// Namespaces whose pods are never touched.
const CLUSTERS_OWN: [&str; 3] = ["kube-public", "kube-system", "kube-node-lease"];
/// How long an owner that no watch has brought yet is asked for: the API server waits.
const OWNER_TIMEOUT: Duration = Duration::from_secs(2);
/// Warnings are cut there by clients.
const MAX_WARNING: usize = 256;

/// Answers reviews.
#[derive(Clone)]
pub(crate) struct Admission {
    pub(crate) client: Client,
    pub(crate) planner: Planner,
    pub(crate) counts: Arc<AdmissionCounts>,
}

/// What became of reviews.
#[derive(Debug, Default)]
pub(crate) struct AdmissionCounts {
    pub(crate) injected: AtomicU64,
    pub(crate) skipped: AtomicU64,
    pub(crate) refused: AtomicU64,
}

impl Admission {
    /// Answers a review; `None` when it holds no request.
    pub(crate) async fn review(
        &self,
        review: AdmissionReview<DynamicObject>,
    ) -> Option<AdmissionReview<DynamicObject>> {
        let request: AdmissionRequest<DynamicObject> = review.try_into().ok()?;
        Some(self.answer(&request).await.into_review())
    }

    async fn answer(&self, request: &AdmissionRequest<DynamicObject>) -> AdmissionResponse {
        let response = AdmissionResponse::from(request);
        let namespace = request.namespace.as_deref().unwrap_or_default();
        let resource = &request.resource;
        let is_pod = resource.group.is_empty() && resource.resource == "pods";
        if !is_pod
            || request.operation != Operation::Create
            || CLUSTERS_OWN.contains(&namespace)
            || self.planner.wishes.is_terminating()
        {
            return response;
        }
        let pod = match request.object.as_ref().map(read) {
            Some(Ok(pod)) => pod,
            Some(Err(error)) => {
                return warned(response, &format!("the pod cannot be read: {error}"));
            }
            None => return response,
        };
        let decision = self.decide(namespace, &pod).await;
        self.record(namespace, &pod, &decision, request.dry_run);
        let mut response = match decision.patch.0.is_empty() {
            true => response,
            false => match response.with_patch(decision.patch) {
                Ok(response) => response,
                // Operations of text and numbers always serialize; should they not, the pod comes
                // as it is.
                Err(_) => AdmissionResponse::from(request),
            },
        };
        let warnings: Vec<_> = decision.warnings.iter().map(|it| cut(it)).collect();
        response.warnings = Some(warnings).filter(|it| !it.is_empty());
        response
    }

    /// The decision about a pod of a namespace.
    pub(crate) async fn decide(&self, namespace: &str, pod: &Pod) -> Decision {
        let owners = self.owners(namespace, pod).await;
        let (facts, wanted): (Workload, _);
        let empty = Default::default();
        let labels = pod.metadata.labels.as_ref().unwrap_or(&empty);
        let owner = match owners {
            Owners::Nobody => OwnerOf::Nobody,
            Owners::Foreign(kind, name) => OwnerOf::Foreign { kind, name },
            Owners::Unknown(kind, name) => OwnerOf::Unknown { kind, name },
            Owners::Found(workload, template) => {
                facts = workload.as_workload(&template);
                wanted = self.planner.wishes.of(&workload.key());
                OwnerOf::Workload(&facts, &wanted)
            }
        };
        let around = self.planner.caches.around(namespace, labels);
        decide(pod, &owner, &around, &self.planner.settings)
    }

    /// The owners of a pod; one that the watches have not brought yet is asked for.
    async fn owners(&self, namespace: &str, pod: &Pod) -> Owners {
        let controller = injector::controller(&pod.metadata);
        let caches = &self.planner.caches;
        let owners = caches.owners(namespace, controller.clone());
        let Owners::Unknown(kind, name) = &owners else {
            return owners;
        };
        let Ok(kind) = kind.parse() else {
            return owners;
        };
        let resource = workload_resource(kind);
        let api: Api<WorkloadObject> =
            Api::namespaced_with(self.client.clone(), namespace, &resource);
        if let Ok(Ok(object)) = timeout(OWNER_TIMEOUT, api.get(name)).await {
            let facts = WorkloadFacts::new(kind, &object);
            caches.workloads(kind).put(namespace, name, facts);
            // Its own owner has been there for longer.
            return caches.owners(namespace, controller);
        }
        owners
    }

    fn record(&self, namespace: &str, pod: &Pod, decision: &Decision, dry_run: bool) {
        if dry_run {
            return;
        }
        let meta = &pod.metadata;
        let name = meta.name.as_ref().or(meta.generate_name.as_ref());
        let name = name.map(String::as_str).unwrap_or_default();
        let reasons = decision.reasons.join("; ");
        let counter = match &decision.verdict {
            Verdict::Inject => {
                tracing::info!(pod = name, namespace, "agent injected: {reasons}");
                &self.counts.injected
            }
            Verdict::Skip(_) => {
                tracing::debug!(pod = name, namespace, "no agent: {reasons}");
                &self.counts.skipped
            }
            Verdict::Refuse(_) => {
                tracing::warn!(pod = name, namespace, "no agent: {reasons}");
                &self.counts.refused
            }
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

fn read(object: &DynamicObject) -> Result<Pod, serde_json::Error> {
    serde_json::from_value(serde_json::to_value(object)?)
}

fn warned(mut response: AdmissionResponse, warning: &str) -> AdmissionResponse {
    response.warnings = Some(vec![cut(warning)]);
    response
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
