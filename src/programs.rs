//! Builds and finds the workspace's programs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock};

use traffic_proto::sync::lock;

/// Returns the path of a program of the workspace, such as `traffic-agent` or `app`. All
/// of them are built the first time a process asks, which takes no time if they are up to date.
/// `HARNESS_BUILT=1` says that they are.
pub fn path(name: &str) -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let folder = BUILT.get_or_init(|| {
        let folder = folder();
        if std::env::var_os("HARNESS_BUILT").is_none() {
            build(&folder);
        }
        folder
    });
    let path = folder.join(name);
    assert!(
        path.exists(),
        "{} is not there; cargo build --workspace --bins makes it",
        path.display()
    );
    path
}

/// Returns the path of a test's program in Go, whose module is the folder `tests/NAME`; built the
/// first time a process asks.
pub fn go(name: &'static str) -> PathBuf {
    static BUILT: Mutex<BTreeMap<&str, PathBuf>> = Mutex::new(BTreeMap::new());
    let build = || {
        let folder = folder().join("go");
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/build-go");
        let built = Command::new(script).arg(name).arg(&folder).output();
        let built = built.unwrap();
        let said = String::from_utf8_lossy(&built.stderr);
        assert!(
            built.status.success(),
            "tests/{name} does not build: {said}"
        );
        folder.join(name)
    };
    lock(&BUILT).entry(name).or_insert_with(build).clone()
}

/// Returns cargo's folder for programs of the current profile.
fn folder() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    // Tests and benches are in deps below it.
    let parent = exe.parent().unwrap();
    match parent.file_name().and_then(|name| name.to_str()) {
        Some("deps") => parent.parent().unwrap().to_owned(),
        _ => parent.to_owned(),
    }
}

fn build(folder: &Path) {
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(profile) => profile,
    };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .args([
            "build",
            "--quiet",
            "--workspace",
            "--bins",
            // A test among the targets, so that dependencies have the same features as in a run of
            // all tests and need not be built twice.
            "--test",
            "layers",
            "--profile",
            profile,
            "--target-dir",
        ])
        .arg(folder.parent().unwrap())
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(
        built.status.success(),
        "the programs do not build: {}",
        String::from_utf8_lossy(&built.stderr)
    );
}
