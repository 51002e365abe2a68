//! Builds and finds the workspace's programs.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Returns the path of a program of the workspace, such as `traffic-agent` or `examples/app`. All
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

/// Returns cargo's folder for programs of the current profile.
fn folder() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    // Tests and benches are in deps, examples in examples, both below it.
    let parent = exe.parent().unwrap();
    match parent.file_name().and_then(|name| name.to_str()) {
        Some("deps" | "examples") => parent.parent().unwrap().to_owned(),
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
            "--example",
            "app",
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
