//! `make demo SERVE=1` in a terminal, until its user has seen enough.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Command, Stdio};

use harness::programs;

/// The key of an interrupt, as a terminal sends it.
const CTRL_C: &[u8] = b"\x03";

#[test]
fn an_interrupt_ends_the_demo_that_stays_up_without_a_complaint() {
    let folder = tempfile::tempdir().unwrap();
    // The programs are built already: what make would build is what stands there.
    let built = programs::path("demo");
    symlink(built.parent().unwrap(), folder.path().join("demo")).unwrap();
    let cargo = folder.path().join("cargo");
    std::fs::write(&cargo, "#!/bin/sh\n").unwrap();
    std::fs::set_permissions(&cargo, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = std::env::var("PATH").unwrap();

    let mut terminal = Command::new("timeout")
        .args(["60", "script", "--quiet", "--return", "--command"])
        .args(["make demo SERVE=1", "/dev/null"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("PATH", format!("{}:{path}", folder.path().display()))
        .env("CARGO_TARGET_DIR", folder.path())
        .env_remove("MAKEFLAGS")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut keys = terminal.stdin.take().unwrap();
    let mut said = Vec::new();
    for line in BufReader::new(terminal.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        if line.contains("x-dev: b' http://") {
            keys.write_all(CTRL_C).unwrap();
        }
        said.push(line);
    }
    let ended = terminal.wait().unwrap();

    let text = said.join("\n");
    assert_eq!(ended.code(), Some(0), "{text}");
    let (_, after) = text
        .split_once("Everything stays up until interrupted")
        .expect(&text);
    assert!(after.contains("Stopped."), "{text}");
    for complaint in ["panicked", "Error", "error", "WRONG"] {
        assert!(!text.contains(complaint), "{complaint}: {text}");
    }
    // Three commands to try, the interrupt's echo, and the end: no logs.
    assert!(after.lines().count() <= 7, "{text}");
}
