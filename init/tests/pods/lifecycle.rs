//! Life of the rules: twice equals once, a kill at any point is mended by the next run, and taking
//! away leaves the rules that were there before.

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;

use crate::program::{BACKENDS, Port, Program};
use crate::space::{Families, ROOT, Space, all_rules, privileged};

const EARLIER: &[Port] = &[Port::tcp(9090, 9900), Port::udp(5353, 9901)];
const LATER: &[Port] = &[Port::tcp(8080, 9900), Port::tcp(9090, 9901)];

/// Adds rules of others to the tables of the iptables flavour.
fn foreign_rules(space: &Space, flavour: &str) {
    space.sh(&format!(
        "for program in iptables ip6tables; do $program-{flavour}-restore --noflush \
         <<END\n*nat\n:OTHER - [0:0]\n-A OTHER -p tcp -m tcp --dport 4444 -j REDIRECT --to-ports \
         4445\n-A OUTPUT -p tcp -j OTHER\nCOMMIT\nEND\ndone"
    ));
}

fn backend_flavour(backend: &str) -> &'static str {
    if backend == "iptables-legacy" {
        "legacy"
    } else {
        "nft"
    }
}

#[test]
fn the_second_run_changes_nothing_and_check_agrees() {
    if !privileged() {
        return;
    }
    for backend in BACKENDS {
        let (dir, space) = (tempfile::tempdir().unwrap(), Space::of_pod());
        let program = Program::new(dir.path(), LATER, Families::Dual, backend)
            .env("POD_IPS", "10.77.0.2,fd77::2");
        let check = program.clone().argument("--check");
        let nothing = String::from_utf8(check.run(&space).stdout).unwrap();
        assert_eq!(check.run(&space).status.code(), Some(1), "{nothing}");
        assert!(
            nothing.contains("missing") && nothing.contains("not in force"),
            "{nothing}"
        );
        program.must(&space);
        let once = all_rules(&space);
        assert!(once.contains("TEL_PREROUTING_TCP"), "{once}");
        check.must(&space);
        program.must(&space);
        assert_eq!(all_rules(&space), once, "{backend}");
        check.must(&space);

        let other = Program::new(dir.path(), EARLIER, Families::Dual, backend)
            .env("POD_IPS", "10.77.0.2,fd77::2");
        let different = other.clone().argument("--check").run(&space);
        assert_eq!(different.status.code(), Some(1), "{backend}: {different:?}");
        other.must(&space);
        program.must(&space);
        assert_eq!(
            all_rules(&space),
            once,
            "{backend}: nothing of the other configuration is left"
        );
    }
}

#[test]
fn check_sees_a_rule_that_somebody_took_away() {
    if !privileged() {
        return;
    }
    let spoil = [
        "nft flush chain ip tel_agent TEL_OUTPUT_TCP",
        "iptables-nft -t nat -D OUTPUT 1",
        "iptables-legacy -t nat -F TEL_PREROUTING_TCP",
    ];
    for (backend, spoil) in BACKENDS.into_iter().zip(spoil) {
        let (dir, space) = (tempfile::tempdir().unwrap(), Space::of_pod());
        let program = Program::new(dir.path(), LATER, Families::V4, backend);
        program.must(&space);
        let whole = all_rules(&space);
        space.sh(spoil);
        let found = program.clone().argument("--check").run(&space);
        assert_eq!(found.status.code(), Some(1), "{backend}: {found:?}");
        program.must(&space);
        assert_eq!(all_rules(&space), whole, "{backend}: mended");
    }
}

#[test]
fn taking_away_restores_the_namespace_exactly() {
    if !privileged() {
        return;
    }
    for backend in BACKENDS {
        for others in ["nobody", "nft", "legacy", "empty tables"] {
            let (dir, space) = (tempfile::tempdir().unwrap(), Space::of_pod());
            match others {
                "nobody" => {}
                "empty tables" => {
                    space.sh(
                        "nft 'table ip nat { chain OUTPUT { type nat hook output priority \
                              -100; }; }'",
                    );
                }
                flavour => foreign_rules(&space, flavour),
            }
            let before = all_rules(&space);
            let program = Program::new(dir.path(), LATER, Families::Dual, backend)
                .env("POD_IPS", "10.77.0.2,fd77::2");
            // Rules in the tables of the other flavour would be met in the wrong order.
            if [("iptables-nft", "legacy"), ("iptables-legacy", "nft")].contains(&(backend, others))
            {
                let log = program.must_end_with(&space, 69);
                assert!(log.contains("--backend auto"), "{log}");
                assert_eq!(all_rules(&space), before, "{backend} beside {others}");
                continue;
            }
            program.must(&space);
            program.must(&space);
            assert_ne!(all_rules(&space), before);
            let log = program.remove(&space);
            assert!(log.contains(backend), "{log}");
            assert_eq!(all_rules(&space), before, "{backend} beside {others}");
            assert!(program.remove(&space).contains("no rule of ours"));
        }
    }
}

#[test]
fn a_change_of_backend_moves_the_rules() {
    if !privileged() {
        return;
    }
    for first in BACKENDS {
        for second in BACKENDS {
            let (dir, space) = (tempfile::tempdir().unwrap(), Space::of_pod());
            let earlier = Program::new(dir.path(), EARLIER, Families::V4, first);
            let later = Program::new(dir.path(), LATER, Families::V4, second);
            let alone = Space::of_pod();
            later.must(&alone);
            earlier.must(&space);
            later.must(&space);
            assert_eq!(
                all_rules(&space),
                all_rules(&alone),
                "{first} then {second}"
            );
        }
    }
}

#[test]
fn runs_at_the_same_time_leave_what_one_run_leaves() {
    if !privileged() {
        return;
    }
    for backend in BACKENDS {
        let (dir, space) = (tempfile::tempdir().unwrap(), Space::of_pod());
        let program = Program::new(dir.path(), LATER, Families::Dual, backend)
            .env("POD_IPS", "10.77.0.2,fd77::2");
        program.must(&space);
        let alone = all_rules(&space);
        program.remove(&space);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| program.must(&space));
            }
        });
        assert_eq!(all_rules(&space), alone, "{backend}");
    }
}

#[test]
fn nft_survives_a_kill_at_every_system_call() {
    killed_everywhere("nft", Victims::Program, 1);
}

#[test]
fn iptables_nft_survives_a_kill_at_many_system_calls() {
    killed_everywhere("iptables-nft", Victims::Program, 13);
}

#[test]
fn iptables_legacy_survives_a_kill_at_many_system_calls() {
    killed_everywhere("iptables-legacy", Victims::Program, 13);
}

#[test]
fn iptables_nft_survives_a_kill_of_what_it_starts() {
    killed_everywhere("iptables-nft", Victims::Everything, 17);
}

#[test]
fn iptables_legacy_survives_a_kill_of_what_it_starts() {
    killed_everywhere("iptables-legacy", Victims::Everything, 17);
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victims {
    /// Kills agent-init alone; what it started lives on without it.
    Program,
    /// Kills each process at its own n-th system call.
    Everything,
}

/// Kills at every `stride`-th system call of a run (at all of them with
/// `AGENT_INIT_KILL_STRIDE=1`); after each kill, the next run must end right.
fn killed_everywhere(backend: &str, victims: Victims, stride: usize) {
    if !privileged() {
        return;
    }
    let stride = std::env::var("AGENT_INIT_KILL_STRIDE").map_or(stride, |it| it.parse().unwrap());
    let (dir, space, alone) = (
        tempfile::tempdir().unwrap(),
        Space::of_pod(),
        Space::of_pod(),
    );
    let with = |ports| {
        Program::new(dir.path(), ports, Families::Dual, backend).env("POD_IPS", "10.77.0.2,fd77::2")
    };
    let (earlier, later) = (with(EARLIER), with(LATER));
    foreign_rules(&space, backend_flavour(backend));
    foreign_rules(&alone, backend_flavour(backend));
    later.must(&alone);
    let right = all_rules(&alone);
    earlier.must(&space);
    let before = all_rules(&space);
    assert_ne!(before, right);
    let follow = if victims == Victims::Everything {
        "-f"
    } else {
        "-qqq"
    };
    let trace = dir.path().join("trace");
    later
        .clone()
        .under(&["strace", follow, "-o", trace.to_str().unwrap()])
        .must(&space);
    let points = system_calls(&std::fs::read_to_string(&trace).unwrap(), victims);
    assert!(points.len() > 40, "{points:?}");
    let (mut kills, mut child_kills) = (0, 0);
    for (call, nth) in points.iter().step_by(stride) {
        earlier.must(&space);
        let inject = format!("inject={call}:signal=KILL:when={nth}");
        let done = later
            .clone()
            .under(&["strace", follow, "-qqq", "-o", "/dev/null", "-e", &inject])
            .run(&space);
        let point = format!(
            "killed at {call} number {nth}: {}",
            String::from_utf8_lossy(&done.stderr)
        );
        if backend == "nft" {
            // One transaction: all or nothing.
            let after = all_rules(&space);
            assert!(after == before || after == right, "{point}\n{after}");
        }
        match (done.status.code(), done.status.signal()) {
            (None, Some(9)) => kills += 1,
            // A program it had started was killed, and it says so or does without.
            (Some(69), None) => child_kills += 1,
            (code, _) => assert_eq!(code, Some(0), "{point}"),
        }
        later.must(&space);
        assert_eq!(all_rules(&space), right, "{backend}, {point}");
    }
    println!(
        "{backend}: {kills} kills of {victims:?}, and {child_kills} of the programs it started \
         alone"
    );
    let tried = points.len().div_ceil(stride);
    assert!(
        2 * (kills + child_kills) > tried,
        "of {tried} only {kills} and {child_kills} were killed"
    );
    later.remove(&space);
    assert!(!all_rules(&space).contains("TEL_"));
}

/// Lists the system calls in the tracer's output: name, and number among those of that name in the
/// process, each once.
fn system_calls(trace: &str, victims: Victims) -> Vec<(String, usize)> {
    let mut counts = std::collections::HashMap::new();
    let mut points = Vec::new();
    for line in trace.lines() {
        let (process, call) = match victims {
            Victims::Program => ("", line),
            Victims::Everything => line.split_once(' ').unwrap_or(("", line)),
        };
        let Some((name, _)) = call.trim_start().split_once('(') else {
            continue;
        };
        if !name.is_empty()
            && name
                .bytes()
                .all(|it| it.is_ascii_alphanumeric() || it == b'_')
        {
            let count = counts
                .entry((process.to_owned(), name.to_owned()))
                .or_insert(0);
            *count += 1;
            // The very first is the tracer's own way into the program.
            if !points.contains(&(name.to_owned(), *count)) && (name, *count) != ("execve", 1) {
                points.push((name.to_owned(), *count));
            }
        }
    }
    points
}

#[test]
fn a_family_that_cannot_be_programmed_is_an_error_and_leaves_nothing() {
    if !privileged() {
        return;
    }
    for flavour in ["nft", "legacy"] {
        let (dir, space) = (tempfile::tempdir().unwrap(), Space::of_pod());
        foreign_rules(&space, flavour);
        let before = all_rules(&space);
        fake(
            dir.path(),
            &format!("ip6tables-{flavour}-restore"),
            "echo 'line 3: no such thing' >&2; exit 1",
        );
        let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", dir.path().display());
        let program = Program::new(
            dir.path(),
            LATER,
            Families::Dual,
            &format!("iptables-{flavour}"),
        )
        .env("POD_IPS", "10.77.0.2,fd77::2")
        .env("PATH", &path);
        let log = program.must_end_with(&space, 69);
        assert!(
            log.contains("no such thing") && log.contains("ip6tables"),
            "{log}"
        );
        assert!(
            log.contains("named target port") && log.contains("without the init container"),
            "{log}"
        );
        assert_eq!(all_rules(&space), before, "{flavour}");
    }
}

pub(crate) fn fake(dir: &Path, name: &str, script: &str) {
    let path = dir.join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
}

#[test]
fn a_refused_rule_is_named_with_the_kernels_answer_and_the_ways_out() {
    if !privileged() {
        return;
    }
    // A table of our name that only its owner may change: the kernel refuses our transaction.
    let (dir, space) = (tempfile::tempdir().unwrap(), Space::of_pod());
    let program = Program::new(dir.path(), LATER, Families::V4, "nft");
    space.run(ROOT, || {
        let mut owner = std::process::Command::new("nft")
            .args(["-i"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        use std::io::Write as _;
        owner
            .stdin
            .as_mut()
            .unwrap()
            .write_all(b"add table ip tel_agent { flags owner; }\n")
            .unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while !all_rules(&space).contains("tel_agent") {
            assert!(std::time::Instant::now() < deadline, "nft made no table");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let log = program.must_end_with(&space, 69);
        assert!(
            log.contains("table ip tel_agent") && log.contains("Operation not permitted"),
            "{log}"
        );
        drop(owner.stdin.take());
        owner.wait().unwrap();
    });
}

#[test]
fn a_bad_configuration_leaves_no_rule_of_an_earlier_run() {
    if !privileged() {
        return;
    }
    let (dir, space) = (tempfile::tempdir().unwrap(), Space::of_pod());
    let good = Program::new(dir.path(), LATER, Families::V4, "nft");
    good.must(&space);
    let missing = Program {
        arguments: vec!["--config".into(), "/nowhere.yaml".into()],
        ..good.clone()
    };
    let log = missing.must_end_with(&space, 64);
    assert!(
        log.contains("/nowhere.yaml") && log.contains("AGENT_CONFIG"),
        "{log}"
    );
    assert_eq!(all_rules(&space), "");
    let log = good.env("POD_IP", "my pod").must_end_with(&space, 64);
    assert!(log.contains("POD_IP") && log.contains("my pod"), "{log}");
}

#[test]
fn named_ports_alone_end_well_without_a_rule_and_without_any_right() {
    if !privileged() {
        return;
    }
    let (dir, space) = (tempfile::tempdir().unwrap(), Space::of_pod());
    let program = Program::new(
        dir.path(),
        &[Port::tcp(8080, 9900).named()],
        Families::V4,
        "auto",
    )
    .under(&["setpriv", "--bounding-set", "-all", "--inh-caps", "-all"]);
    let log = program.must(&space);
    assert!(log.contains("nothing to redirect"), "{log}");
    assert_eq!(all_rules(&space), "");
}
