//! The state of the release, as Helm tells it.

use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::time::{Instant, sleep};

use super::flags::InstallTarget;
use super::{RELEASE, at, not_started, words_of};
use crate::Failure;
use crate::report::line;

/// Interval between looks at a release that is changing.
const SETTLE_INTERVAL: Duration = Duration::from_secs(1);

/// State of the release.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ReleaseState {
    None,
    Deployed {
        /// Version of the chart's application.
        version: String,
    },
    /// The last command on it did not succeed.
    Failed,
    /// A command on it is under way, or was cut off.
    Stuck,
}

#[derive(Deserialize)]
struct HelmStatus {
    info: Info,
    #[serde(default)]
    chart: ReleasedChart,
}

#[derive(Deserialize)]
struct Info {
    status: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ReleasedChart {
    metadata: Metadata,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Metadata {
    app_version: String,
}

/// Current state.
pub(crate) async fn state(place: &InstallTarget, namespace: &str) -> Result<ReleaseState, Failure> {
    let mut helm = at(place, namespace);
    helm.args(["status", RELEASE, "--output", "json"]);
    let output = helm
        .stdin(Stdio::null())
        // Ctrl-C drops this future; Helm must not continue without its caller.
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| not_started(&error))?;
    if !output.status.success() {
        let words = words_of(&output.stderr);
        if words.contains("not found") {
            return Ok(ReleaseState::None);
        }
        return Err(Failure::Failed(format!(
            "Helm cannot look for the release in namespace {namespace}: {words}"
        )));
    }
    parse(&output.stdout)
}

/// State once no command changes it any more, or `Stuck` when that takes longer than `timeout`.
pub(crate) async fn settled(
    place: &InstallTarget,
    namespace: &str,
    timeout: Duration,
) -> Result<ReleaseState, Failure> {
    let deadline = Instant::now() + timeout;
    let mut is_said = false;
    loop {
        let state = state(place, namespace).await?;
        if state != ReleaseState::Stuck || Instant::now() >= deadline {
            return Ok(state);
        }
        if !is_said {
            line("Another Helm command on the release is under way; waiting for it");
            is_said = true;
        }
        sleep(SETTLE_INTERVAL).await;
    }
}

fn parse(json: &[u8]) -> Result<ReleaseState, Failure> {
    let status: HelmStatus = serde_json::from_slice(json).map_err(|error| {
        Failure::Failed(format!(
            "helm status answers something else than expected: {error}; Helm 3.14 or newer is \
            needed"
        ))
    })?;
    Ok(match status.info.status.as_str() {
        "deployed" | "superseded" => ReleaseState::Deployed {
            version: status.chart.metadata.app_version,
        },
        "uninstalled" => ReleaseState::None,
        "uninstalling" => ReleaseState::Stuck,
        // pending-install, pending-upgrade and pending-rollback: left behind when Helm was killed,
        // or held by another Helm that works.
        pending if pending.starts_with("pending") => ReleaseState::Stuck,
        _ => ReleaseState::Failed,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_of_helms_words_is_one_state() {
        let deployed = ReleaseState::Deployed {
            version: "1.2".into(),
        };
        for (word, state) in [
            ("deployed", deployed),
            ("pending-install", ReleaseState::Stuck),
            ("pending-upgrade", ReleaseState::Stuck),
            ("uninstalling", ReleaseState::Stuck),
            ("uninstalled", ReleaseState::None),
            ("failed", ReleaseState::Failed),
            ("unknown", ReleaseState::Failed),
        ] {
            let json = format!(
                r#"{{"info":{{"status":"{word}"}},"chart":{{"metadata":{{"appVersion":"1.2"}}}}}}"#
            );
            assert_eq!(parse(json.as_bytes()).unwrap(), state, "{word}");
        }
    }

    #[test]
    fn an_answer_that_is_no_status_is_an_error() {
        let error = parse(b"{}").unwrap_err().to_string();
        assert!(error.contains("Helm 3.14"), "{error}");
    }
}
