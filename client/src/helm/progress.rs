//! Progress of the manager's pods while Helm waits for them, and the reason when they do not get
//! ready.

use std::collections::HashMap;
use std::convert::Infallible;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ContainerStatus, Event, Pod};
use kube::api::ListParams;
use kube::{Api, Client};
use tokio::time::sleep;

use crate::cluster::{is_ready, manager_pods};
use crate::flags::cluster::ClusterFlags;
use crate::report::line;

/// Interval between looks at the pods.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Observer of the manager's pods.
pub(crate) struct Watch {
    /// Client of the API server; none if it cannot be reached, which Helm then reports.
    client: Option<Client>,
    namespace: String,
}

impl Watch {
    pub(crate) async fn of_manager(flags: &ClusterFlags, namespace: &str) -> Self {
        let config = flags.choose().await.ok().map(|chosen| chosen.config);
        Self {
            client: config.and_then(|config| Client::try_from(config).ok()),
            namespace: namespace.to_owned(),
        }
    }

    /// Prints each change, for ever.
    pub(crate) async fn tell(&self) -> Infallible {
        // One line per change of a pod's state, not one per look.
        let mut told: HashMap<String, String> = HashMap::new();
        loop {
            sleep(LOOK_INTERVAL).await;
            for pod in self.pods().await {
                let name = pod.metadata.name.clone().unwrap_or_default();
                let now = described(&pod);
                if told.get(&name) != Some(&now) {
                    line(format_args!("{name}: {now}"));
                    told.insert(name, now);
                }
            }
        }
    }

    /// Reason why the pods are not ready, if the cluster knows.
    pub(crate) async fn reason(&self) -> Option<String> {
        let pods = self.pods().await;
        let mut reasons: Vec<String> = pods
            .iter()
            .filter(|pod| !is_ready(pod))
            .map(|pod| {
                let name = pod.metadata.name.as_deref().unwrap_or_default();
                format!("{name}: {}", described(pod))
            })
            .collect();
        reasons.extend(self.warnings().await);
        reasons.dedup();
        (!reasons.is_empty()).then(|| reasons.join("\n"))
    }

    async fn pods(&self) -> Vec<Pod> {
        let Some(client) = &self.client else {
            return Vec::new();
        };
        manager_pods(client, &self.namespace)
            .await
            .unwrap_or_default()
    }

    async fn warnings(&self) -> Vec<String> {
        let Some(client) = &self.client else {
            return Vec::new();
        };
        let events: Api<Event> = Api::namespaced(client.clone(), &self.namespace);
        let warnings = ListParams::default().fields("type=Warning");
        let Ok(events) = events.list(&warnings).await else {
            return Vec::new();
        };
        let ours = events.items.into_iter().filter(|event| {
            let name = event.involved_object.name.as_deref().unwrap_or_default();
            name.starts_with("traffic-manager")
        });
        ours.map(|event| {
            format!(
                "{}: {}",
                event.reason.unwrap_or_default(),
                event.message.unwrap_or_default().trim()
            )
        })
        .collect()
    }
}

/// A pod's state in a few words.
fn described(pod: &Pod) -> String {
    if is_ready(pod) {
        return "ready".into();
    }
    // A deleted pod keeps its conditions until its containers have ended.
    if pod.metadata.deletion_timestamp.is_some() {
        return "ending".into();
    }
    let status = pod.status.clone().unwrap_or_default();
    let containers = status.container_statuses.unwrap_or_default();
    if let Some(reason) = containers.iter().find_map(container) {
        return reason;
    }
    let unscheduled = status
        .conditions
        .unwrap_or_default()
        .into_iter()
        .find(|it| it.type_ == "PodScheduled" && it.status == "False");
    match unscheduled {
        Some(condition) => format!(
            "{}: {}",
            condition.reason.unwrap_or_default(),
            condition.message.unwrap_or_default()
        ),
        None => "starting".into(),
    }
}

/// Reason why a container waits or has ended.
fn container(status: &ContainerStatus) -> Option<String> {
    let state = status.state.as_ref()?;
    if let Some(waiting) = &state.waiting {
        let reason = waiting.reason.as_deref().unwrap_or("waiting");
        return Some(match waiting.message.as_deref() {
            Some(message) => format!("{reason}: {message}"),
            None => reason.to_owned(),
        });
    }
    let ended = state.terminated.as_ref()?;
    Some(format!(
        "ended with {}: {}",
        ended.exit_code,
        ended
            .message
            .as_deref()
            .or(ended.reason.as_deref())
            .unwrap_or("see its log")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(status: serde_json::Value) -> Pod {
        let pod = serde_json::json!({"metadata": {"name": "p"}, "status": status});
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn a_pod_is_described_by_what_holds_it_back() {
        for (status, words) in [
            (serde_json::json!({}), "starting"),
            (
                serde_json::json!({"conditions": [{"type": "Ready", "status": "True"}]}),
                "ready",
            ),
            (
                serde_json::json!({"conditions": [{"type": "PodScheduled", "status": "False",
                    "reason": "Unschedulable", "message": "0/1 nodes are available"}]}),
                "Unschedulable: 0/1 nodes are available",
            ),
            (
                serde_json::json!({"containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": false,
                    "restartCount": 0, "state": {"waiting": {"reason": "ErrImagePull", "message": "no \
                        such host"}}}]}),
                "ErrImagePull: no such host",
            ),
            (
                serde_json::json!({"containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": false,
                    "restartCount": 0, "state": {"terminated": {"exitCode": 64, "message": "LOG_LEVEL: \
                        unknown"}}}]}),
                "ended with 64: LOG_LEVEL: unknown",
            ),
        ] {
            assert_eq!(described(&pod(status)), words);
        }
    }
}
