//! Mistakes of users end with 64, and tasks without work end well.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::process::{Command, Output};

use crate::program::{Port, Program};
use crate::space::{Families, ROOT, Space, all_rules, privileged};

fn run(space: &Space, program: &Program, change: impl FnOnce(&mut Command) + Send) -> Output {
    space.run(ROOT, || {
        let mut command = program.command();
        change(&mut command);
        command.output().unwrap()
    })
}

#[test]
fn arguments_and_variables_that_are_no_text_are_the_users_mistake() {
    if !privileged() {
        return;
    }
    let (dir, space) = (tempfile::tempdir().unwrap(), Space::of_pod());
    let program = Program::new(dir.path(), &[Port::tcp(8080, 9900)], Families::V4, "nft");
    let odd = OsStr::from_bytes(b"/caf\xe9");
    for done in [
        run(&space, &program, |it| {
            it.arg("--root").arg(odd);
        }),
        run(&space, &program, |it| {
            it.arg(odd);
        }),
        run(&space, &program, |it| {
            it.env("POD_IP", odd);
        }),
        run(&space, &program, |it| {
            it.env("AGENT_GID", odd);
        }),
    ] {
        let log = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(64), "{log}");
        assert!(log.contains("no UTF-8"), "{log}");
    }
    assert_eq!(all_rules(&space), "");
}

#[test]
fn one_container_port_with_two_agent_ports_is_refused() {
    if !privileged() {
        return;
    }
    let (dir, space) = (tempfile::tempdir().unwrap(), Space::of_pod());
    let ports = [Port::tcp(8080, 9900), Port::tcp(8080, 9901)];
    let log = Program::new(dir.path(), &ports, Families::V4, "nft").must_end_with(&space, 64);
    for words in ["8080", "9900", "9901"] {
        assert!(log.contains(words), "{words}: {log}");
    }
    assert_eq!(all_rules(&space), "");
}

#[test]
fn named_ports_alone_are_nothing_to_do_whatever_is_known_of_the_pod() {
    if !privileged() {
        return;
    }
    let (dir, space) = (tempfile::tempdir().unwrap(), Space::new());
    let named = [Port::tcp(8080, 9900).named()];
    let program = Program::new(dir.path(), &named, Families::V4, "nft").env("POD_IP", "");
    for (mode, words) in [
        ("--dry-run", "nothing to do"),
        ("--dry-run=iptables", "nothing to do"),
        ("--dry-run=json", "\"rules\": []"),
        ("--check", "in force"),
    ] {
        let done = program.clone().argument(mode).run(&space);
        let out = String::from_utf8_lossy(&done.stdout);
        assert_eq!(done.status.code(), Some(0), "{mode}: {done:?}");
        assert!(out.contains(words), "{mode}: {out}");
    }
    assert!(program.must(&space).contains("nothing to redirect"));
}

#[test]
fn the_log_is_json_where_the_agents_is() {
    if !privileged() {
        return;
    }
    let (dir, space) = (tempfile::tempdir().unwrap(), Space::of_pod());
    let program = Program::new(dir.path(), &[Port::tcp(8080, 9900)], Families::V4, "nft")
        .env("AGENT_LOG_FORMAT", "json");
    let log = program.must(&space);
    let lines: Vec<serde_json::Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert!(!lines.is_empty());
    for line in lines {
        assert_eq!(line["level"], "INFO", "{line}");
        assert!(
            line["message"].is_string() && line["timestamp"].is_string(),
            "{line}"
        );
    }
    let log = program
        .env("AGENT_LOG_FORMAT", "xml")
        .must_end_with(&space, 64);
    assert!(
        log.contains("AGENT_LOG_FORMAT") && log.contains("json"),
        "{log}"
    );
}
