//! A kernel that refuses to be asked: nothing is reported that was not seen.

use crate::program::{Port, Program};
use crate::space::{Families, Space, all_rules, privileged};

const PORTS: &[Port] = &[Port::tcp(8080, 9900)];

/// Tracer that makes a system call fail.
fn failing(call: &str, error: &str) -> Vec<String> {
    let inject = format!("inject={call}:error={error}");
    ["strace", "-qqq", "-o", "/dev/null", "-e", &inject]
        .map(str::to_owned)
        .to_vec()
}

fn under(program: &Program, tracer: &[String]) -> Program {
    Program {
        under: tracer.to_vec(),
        ..program.clone()
    }
}

#[test]
fn rules_that_could_not_be_looked_for_are_not_reported_absent() {
    if !privileged() {
        return;
    }
    let (dir, space) = (tempfile::tempdir().unwrap(), Space::of_pod());
    let program =
        Program::new(dir.path(), PORTS, Families::Dual, "nft").env("POD_IPS", "10.77.0.2,fd77::2");
    program.must(&space);
    let in_force = all_rules(&space);
    for (call, error) in [("sendto", "EPERM"), ("recvfrom", "EIO"), ("sendto", "EIO")] {
        let tracer = failing(call, error);
        for mode in ["--remove", "--check"] {
            let log = under(&program, &tracer)
                .argument(mode)
                .must_end_with(&space, 74);
            assert!(!log.contains("no rule of ours"), "{log}");
            assert!(log.contains("the list of tables"), "{log}");
        }
        assert_eq!(all_rules(&space), in_force);
    }
}

#[test]
fn a_clean_up_that_could_not_look_says_what_may_be_left() {
    if !privileged() {
        return;
    }
    let (dir, space) = (tempfile::tempdir().unwrap(), Space::of_pod());
    let program =
        Program::new(dir.path(), PORTS, Families::Dual, "nft").env("POD_IPS", "10.77.0.2,fd77::2");
    program.must(&space);
    let bad = program.env("AGENT_GID", "everybody");
    let log = under(&bad, &failing("recvfrom", "EIO")).must_end_with(&space, 64);
    assert!(log.contains("everybody"), "{log}");
    assert!(log.contains("may be left in nft"), "{log}");
}

#[test]
fn a_family_that_could_not_be_looked_for_is_no_reason_to_leave_it_out() {
    if !privileged() {
        return;
    }
    let (dir, space) = (tempfile::tempdir().unwrap(), Space::of_pod());
    // The first socket is the one that asks for the interfaces.
    let tracer = failing("socket", "EACCES:when=1");
    let program = Program::new(dir.path(), PORTS, Families::V4, "nft");
    let log = under(&program, &tracer).must_end_with(&space, 74);
    for words in ["10.77.0.2", "POD_IPS", "--families"] {
        assert!(log.contains(words), "{words}: {log}");
    }
    assert_eq!(all_rules(&space), "");
    let log = under(&program, &tracer)
        .argument("--families=ipv4")
        .must(&space);
    assert!(log.contains("10.77.0.2"), "{log}");
    assert!(!all_rules(&space).contains("ip6"), "{}", all_rules(&space));
}
