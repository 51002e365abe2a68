//! Words of the cluster about a workload while somebody waits for its agent.

use std::pin::pin;
use std::time::SystemTime;

use futures_util::StreamExt;
use injector::{AGENT_CONTAINER, INIT_CONTAINER};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::events::v1::Event;
use kube::api::LogParams;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client};

use super::retry::WatchBackoff;

/// Notes of the scheduler and the kubelet that time may cure.
const MAY_PASS: [&str; 4] = [
    "waiting for ephemeral volume controller",
    "unbound immediate PersistentVolumeClaims",
    "skip schedule deleting pod",
    "nodes are available",
];
/// Lines of a failing container's log that are worth showing.
const LOG_LINES: i64 = 20;

/// Something that went wrong in the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trouble {
    pub(crate) when: String,
    pub(crate) kind: String,
    pub(crate) reason: String,
    pub(crate) object: String,
    pub(crate) note: String,
    /// Waiting longer makes no sense.
    pub(crate) is_fatal: bool,
}

/// Follows the events about objects of a workload that come after `since`, and tells `hear` of
/// each; ends when `hear` says so.
pub(crate) async fn follow(
    client: &Client,
    namespace: &str,
    workload: &str,
    since: SystemTime,
    mut hear: impl FnMut(Trouble) -> bool,
) {
    let api: Api<Event> = Api::namespaced(client.clone(), namespace);
    let config = watcher::Config::default().fields("type!=Normal");
    let mut events = pin!(watcher(api, config).backoff(WatchBackoff::default()));
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Apply(event) | watcher::Event::InitApply(event)) => {
                let heard = trouble(&event, workload, since).is_some_and(&mut hear);
                if heard {
                    return;
                }
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(namespace, "events cannot be watched: {error}"),
        }
    }
}

fn trouble(event: &Event, workload: &str, since: SystemTime) -> Option<Trouble> {
    let regarding = event.regarding.as_ref()?;
    let object = regarding.name.as_deref()?;
    let ours = object == workload || object.strip_prefix(workload)?.starts_with('-');
    let note = event.note.clone().unwrap_or_default();
    if !ours || note.starts_with("(combined from similar events)") {
        return None;
    }
    let when = newest(event)?;
    // Times of events are whole seconds.
    let since = seconds(since);
    if when < since {
        return None;
    }
    let reason = event.reason.clone().unwrap_or_default();
    let passing = MAY_PASS.iter().any(|it| note.contains(it));
    let is_fatal = match reason.as_str() {
        "BackOff" => true,
        "Failed" | "FailedCreate" | "FailedScheduling" => !passing,
        _ => false,
    };
    let kind = regarding.kind.clone().unwrap_or_default();
    Some(Trouble {
        when: format!("{}s", when - since),
        kind: event.type_.clone().unwrap_or_default(),
        reason,
        object: format!("{kind}/{object}"),
        note: note.split_whitespace().collect::<Vec<_>>().join(" "),
        is_fatal,
    })
}

/// The last time that an event says it happened, in seconds.
fn newest(event: &Event) -> Option<i64> {
    let series = event.series.as_ref().map(|it| it.last_observed_time.0);
    let time = event.event_time.as_ref().map(|it| it.0);
    let older = event.deprecated_last_timestamp.as_ref().map(|it| it.0);
    let created = event.metadata.creation_timestamp.as_ref().map(|it| it.0);
    let times = [series, time, older, created];
    times.into_iter().flatten().map(|it| it.as_second()).max()
}

fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    i64::try_from(since.unwrap_or_default().as_secs()).unwrap_or(i64::MAX)
}

/// The last lines of a container that keeps failing; an app's own go to the log only, since whoever
/// waits for an agent need not have the right to read them.
pub(crate) async fn failing_log(
    client: &Client,
    namespace: &str,
    object: &str,
    note: &str,
) -> Option<String> {
    let pod = object.strip_prefix("Pod/")?;
    let (_, rest) = note.split_once("container ")?;
    let container = rest.split_whitespace().next()?.trim_matches('"');
    let parameters = LogParams {
        container: Some(container.to_owned()),
        tail_lines: Some(LOG_LINES),
        ..LogParams::default()
    };
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let log = match pods.logs(pod, &parameters).await {
        Ok(log) => log,
        Err(error) => {
            tracing::debug!(namespace, pod, "no log: {error}");
            return None;
        }
    };
    tracing::warn!(
        namespace,
        pod,
        container,
        "a container keeps failing, its log:\n{log}"
    );
    let is_ours = [AGENT_CONTAINER, INIT_CONTAINER].contains(&container);
    is_ours.then(|| log.trim().to_owned())
}

/// Renders what was collected as a table.
pub(crate) fn table(troubles: &[Trouble]) -> String {
    let head = ["AGE", "TYPE", "REASON", "OBJECT", "MESSAGE"].map(str::to_owned);
    let rows: Vec<[String; 5]> = std::iter::once(head)
        .chain(troubles.iter().map(|it| {
            let it = it.clone();
            [it.when, it.kind, it.reason, it.object, it.note]
        }))
        .collect();
    let width = |at: usize| rows.iter().map(|row| row[at].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..4).map(width).collect();
    let line = |row: &[String; 5]| {
        let cells = row.iter().zip(&widths);
        let padded: Vec<_> = cells
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        format!("{}   {}", padded.join("   "), row[4])
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn event(reason: &str, object: &str, note: &str) -> Event {
        serde_json::from_value(json!({
            "metadata": {"name": "e", "creationTimestamp": "2026-01-01T00:00:10Z"},
            "eventTime": null, "type": "Warning", "reason": reason, "note": note,
            "regarding": {"kind": "Pod", "name": object},
        }))
        .unwrap()
    }

    fn at(seconds: u64) -> SystemTime {
        // 2026-01-01T00:00:00Z
        SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_767_225_600 + seconds)
    }

    #[test]
    fn events_of_the_workload_from_the_call_on_count() {
        let count = |object, since| trouble(&event("Failed", object, "x"), "web", at(since));
        assert!(count("web", 10).is_some());
        assert!(count("web-7d9-x", 10).is_some());
        assert!(count("web-7d9-x", 11).is_none());
        assert!(count("webshop", 10).is_none());
        assert!(count("other-1", 10).is_none());
    }

    #[test]
    fn some_reasons_end_the_wait() {
        for (reason, note, fatal) in [
            ("BackOff", "Back-off pulling image", true),
            ("Failed", "Error: ErrImagePull", true),
            ("FailedCreate", "exceeded quota", true),
            (
                "FailedScheduling",
                "0/1 nodes are available: 1 Insufficient cpu",
                false,
            ),
            (
                "FailedScheduling",
                "pod has unbound immediate PersistentVolumeClaims",
                false,
            ),
            ("FailedScheduling", "no such node", true),
            ("Unhealthy", "Readiness probe failed", false),
        ] {
            let trouble = trouble(&event(reason, "web", note), "web", at(0)).unwrap();
            assert_eq!(trouble.is_fatal, fatal, "{reason} {note}");
        }
        let combined = event("Failed", "web", "(combined from similar events): x");
        assert_eq!(trouble(&combined, "web", at(0)), None);
    }

    #[test]
    fn the_table_has_a_line_for_each_event() {
        let trouble = trouble(&event("Failed", "web-1", "a\nb"), "web", at(5)).unwrap();
        assert_eq!(
            table(&[trouble]),
            "AGE   TYPE      REASON   OBJECT      MESSAGE\n\
             5s    Warning   Failed   Pod/web-1   a b"
        );
    }
}
