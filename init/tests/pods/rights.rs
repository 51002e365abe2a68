//! Missing rights: each is told with its own cause and remedy.

use std::path::Path;

use crate::program::{Port, Program};
use crate::sandbox::{give_file_capability, readable_by_all};
use crate::space::{Families, Space, all_rules, privileged};

const PORTS: &[Port] = &[Port::tcp(8080, 9900)];

fn told(dir: &Path, backend: &str, under: &[&str]) -> String {
    let space = Space::of_pod();
    let program = Program::new(dir, PORTS, Families::V4, backend);
    let log = readable_by_all(dir, &program)
        .under(under)
        .must_end_with(&space, 77);
    assert_eq!(all_rules(&space), "");
    assert!(log.contains("named target port"), "{log}");
    log
}

#[test]
fn root_without_net_raw_is_told_that_the_legacy_programs_need_it() {
    if !privileged() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let only_admin = ["setpriv", "--bounding-set", "-all,+net_admin"];
    let log = told(dir.path(), "iptables-legacy", &only_admin);
    assert!(log.contains("need NET_RAW as well"), "{log}");
    assert!(!log.contains("user namespace"), "{log}");
    // The others do without.
    for backend in ["nft", "iptables-nft"] {
        Program::new(dir.path(), PORTS, Families::V4, backend)
            .under(&only_admin)
            .must(&Space::of_pod());
    }
}

#[test]
fn another_user_namespace_is_told_as_such() {
    if !privileged() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for backend in crate::program::BACKENDS {
        let log = told(
            dir.path(),
            backend,
            &["unshare", "--user", "--map-root-user"],
        );
        assert!(log.contains("belongs to another user namespace"), "{log}");
        assert!(!log.contains("NET_RAW"), "{log}");
    }
}

#[test]
fn a_file_capability_under_no_new_privileges_is_told_as_such() {
    if !privileged() {
        return;
    }
    let (dir, space) = (tempfile::tempdir().unwrap(), Space::of_pod());
    let program = Program::new(dir.path(), PORTS, Families::V4, "nft");
    let program = readable_by_all(dir.path(), &program);
    give_file_capability(&program.path, true);
    let user = [
        "setpriv",
        "--reuid",
        "7777",
        "--regid",
        "7777",
        "--clear-groups",
    ];
    let log = program
        .clone()
        // What the tool still has when it starts its program may be kept; a shell has nothing.
        .under(
            &[
                &user[..],
                &["--no-new-privs", "sh", "-c", "exec \"$@\"", "sh"],
            ]
            .concat(),
        )
        .must_end_with(&space, 77);
    for words in [
        "no-new-privileges",
        "allowPrivilegeEscalation: true",
        "7777",
    ] {
        assert!(log.contains(words), "{words}: {log}");
    }
    program.under(&user).must(&space);
}

#[test]
fn a_capability_that_root_lost_is_told_as_such() {
    if !privileged() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let log = told(
        dir.path(),
        "nft",
        &["setpriv", "--securebits", "+noroot", "--inh-caps", "-all"],
    );
    assert!(log.contains("not in the effective set"), "{log}");
}

#[test]
fn a_file_capability_that_the_pod_does_not_add_is_told_as_such() {
    if !privileged() {
        return;
    }
    let (dir, space) = (tempfile::tempdir().unwrap(), Space::of_pod());
    let program = Program::new(dir.path(), PORTS, Families::V4, "nft");
    let program = readable_by_all(dir.path(), &program);
    give_file_capability(&program.path, false);
    let user = [
        "setpriv",
        "--reuid",
        "7777",
        "--regid",
        "7777",
        "--clear-groups",
    ];
    let restricted = ["--bounding-set", "-all", "--no-new-privs"];
    let log = program
        .under(&[&user[..], &restricted].concat())
        .must_end_with(&space, 77);
    for words in ["NET_ADMIN is missing", "capabilities.add", "uid 7777"] {
        assert!(log.contains(words), "{words}: {log}");
    }
}
