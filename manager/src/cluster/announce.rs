//! Events on workloads, so that `kubectl describe` tells what was done to their pods, and why not.

use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};

use super::caches::{Caches, Key};
use super::objects::workload_resource;

/// The longest note that the API server takes.
const MAX_NOTE: usize = 1000;

/// Writes events.
#[derive(Clone)]
pub(crate) struct Announcer {
    recorder: Recorder,
}

/// Facts that are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// Pods are being replaced.
    Rolling,
    /// Pods are as they are to be.
    Rolled,
    /// Pods could not be replaced.
    RollFailed,
    /// No agent can be had.
    Refused,
    /// An agent that nobody uses is removed.
    Idle,
}

impl Told {
    const fn reason(self) -> &'static str {
        match self {
            Self::Rolling => "AgentRollout",
            Self::Rolled => "AgentRolledOut",
            Self::RollFailed => "AgentRolloutFailed",
            Self::Refused => "AgentRefused",
            Self::Idle => "AgentIdle",
        }
    }

    const fn kind(self) -> EventType {
        match self {
            Self::Rolling | Self::Rolled | Self::Idle => EventType::Normal,
            Self::RollFailed | Self::Refused => EventType::Warning,
        }
    }
}

impl Announcer {
    pub(crate) fn new(client: Client, pod: &str) -> Self {
        let reporter = Reporter {
            controller: "traffic-manager".to_owned(),
            instance: Some(pod.to_owned()).filter(|it| !it.is_empty()),
        };
        Self {
            recorder: Recorder::new(client, reporter),
        }
    }

    /// Writes an event on a workload that is there.
    pub(crate) async fn tell(&self, caches: &Caches, key: &Key, told: Told, note: &str) {
        let Some(workload) = caches.workload(key) else {
            return;
        };
        let resource = workload_resource(key.kind);
        let reference = k8s_openapi::api::core::v1::ObjectReference {
            api_version: Some(resource.api_version),
            kind: Some(resource.kind),
            name: Some(key.name.clone()),
            namespace: Some(key.namespace.clone()),
            uid: Some(workload.uid.clone()),
            ..Default::default()
        };
        let event = Event {
            type_: told.kind(),
            reason: told.reason().to_owned(),
            note: Some(note.chars().take(MAX_NOTE).collect()),
            action: "Injection".to_owned(),
            secondary: None,
        };
        if let Err(error) = self.recorder.publish(&event, &reference).await {
            tracing::debug!(workload = %key, "no event written: {error}");
        }
    }
}
