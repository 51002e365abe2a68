//! The rig's command, `tests/cluster/rig`, and the facts it writes about a running cluster.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What runs in a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Objects, controllers and admission, without a node: no pod ever starts.
    ControlPlane,
    /// All of it.
    Node,
}

fn program() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("rig")
}

/// Runs one action of the rig on a cluster's folder and returns what it printed.
pub(crate) fn run(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new(program())
        .arg("--folder")
        .arg(folder)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}", program().display()));
    assert!(
        output.status.success(),
        "rig {} failed: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Starts a cluster, which ends with this process at the latest.
pub(crate) fn up(folder: &Path, kind: Kind) {
    let process = std::process::id().to_string();
    let mut arguments = vec!["up", "--owner", &process];
    if kind == Kind::ControlPlane {
        arguments.push("--control-plane");
    }
    run(folder, &arguments);
}

/// The lines NAME=VALUE of the folder's `facts`.
pub(crate) fn facts(folder: &Path) -> HashMap<String, String> {
    let path = folder.join("facts");
    let text = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("no cluster is up: {}: {error}", path.display()));
    text.lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}
