//! `--check` and `--validate`: rules that are there and do not work are not reported in force.

use agent_init::rule::Transport::Tcp;

use crate::parties::{agent, app, asked};
use crate::program::{BACKENDS, Port, Program};
use crate::space::{APP, As, Families, Net, POD_V4, ROOT, Space, all_rules, privileged};

const PORTS: &[Port] = &[Port::tcp(8080, 9900)];
const AGENT: As = As {
    uid: 7777,
    gid: 7439,
};

fn program(dir: &std::path::Path, backend: &str) -> Program {
    Program::new(dir, PORTS, Families::Dual, backend).env("POD_IPS", "10.77.0.2,fd77::2")
}

/// Output of `--check`, which must end with this code.
fn checked(program: &Program, space: &Space, code: i32) -> String {
    let done = program.clone().argument("--check").run(space);
    let out = String::from_utf8(done.stdout).unwrap();
    let log = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(code), "{out}{log}");
    out
}

/// Changes to rules that are in force, each with words of the report; for some of them the report
/// is about the probe.
const TROUBLES: [(&str, &str, &str); 9] = [
    (
        "nft",
        "nft add table ip tel_agent '{ flags dormant; }'",
        "dormant",
    ),
    (
        "nft",
        "nft 'table ip x { chain o { type nat hook output priority -150; tcp dport 8080 redirect \
         to :1; }; }'",
        "ip x o",
    ),
    (
        "nft",
        "nft 'table ip x { chain p { type nat hook prerouting priority -150; tcp dport 8080 \
         redirect to :1; }; }'",
        "ip x p",
    ),
    (
        "nft",
        "nft 'table inet x { chain o { type filter hook output priority -300; tcp dport 8080 \
         notrack; }; }'",
        "10.77.0.2:8080",
    ),
    (
        "nft",
        "nft 'table ip x { chain o { type filter hook output priority -400; tcp dport 9912 reject; \
         }; }'",
        "10.77.0.2:9912",
    ),
    (
        "iptables-nft",
        "iptables-nft -t nat -I PREROUTING -p tcp -j ACCEPT",
        "in front of ours",
    ),
    (
        "iptables-nft",
        "iptables-nft -t nat -I OUTPUT -p tcp -j ACCEPT",
        "missing",
    ),
    (
        "iptables-legacy",
        "iptables-legacy -t nat -I PREROUTING -p tcp -j ACCEPT",
        "in front of ours",
    ),
    (
        "iptables-legacy",
        "nft 'table ip x { chain o { type nat hook output priority -150; tcp dport 8080 redirect \
         to :1; }; }'",
        "ip x o",
    ),
];

#[test]
fn rules_that_cannot_work_are_not_in_force() {
    if !privileged() {
        return;
    }
    for (backend, trouble, words) in TROUBLES {
        let (dir, space) = (tempfile::tempdir().unwrap(), Space::of_pod());
        let program = program(dir.path(), backend);
        program.must(&space);
        let out = checked(&program, &space, 0);
        assert!(out.contains("6 connections went right"), "{out}");
        space.sh(trouble);
        let out = checked(&program, &space, 1);
        assert!(out.contains(words), "{trouble}\n{out}");
        assert!(out.contains("not in force"), "{out}");
    }
}

#[test]
fn a_dormant_table_is_mended_by_the_next_run() {
    if !privileged() {
        return;
    }
    let (dir, space) = (tempfile::tempdir().unwrap(), Space::of_pod());
    let program = program(dir.path(), "nft");
    program.must(&space);
    space.sh("nft add table ip tel_agent '{ flags dormant; }'");
    program.must(&space);
    checked(&program, &space, 0);
}

#[test]
fn a_probe_beside_a_running_agent_disturbs_nobody() {
    if !privileged() {
        return;
    }
    for backend in BACKENDS {
        let (dir, net) = (tempfile::tempdir().unwrap(), Net::new(Families::Dual));
        let program = program(dir.path(), backend);
        program.must(&net.pod);
        agent(&net, AGENT, Tcp, 9900, PORTS[0].proxy_port(PORTS));
        app(&net, APP, Tcp, 8080);
        let out = checked(&program, &net.pod, 0);
        assert!(out.contains("6 connections went right"), "{out}");
        assert_eq!(
            asked(&net.outside, ROOT, Tcp, POD_V4, 8080),
            "agent9900>app8080"
        );
    }
}

#[test]
fn rules_that_fail_the_validation_are_taken_away() {
    if !privileged() {
        return;
    }
    for backend in BACKENDS {
        let (dir, space) = (tempfile::tempdir().unwrap(), Space::of_pod());
        let program = program(dir.path(), backend).argument("--validate");
        let log = program.must(&space);
        assert!(
            log.contains("6 connections went where they should"),
            "{log}"
        );
        program.remove(&space);
        space.sh(
            "nft 'table ip x { chain o { type filter hook output priority -300; tcp dport \
                  8080 notrack; }; }'",
        );
        let before = all_rules(&space);
        let log = program.must_end_with(&space, 69);
        for words in ["do not work", "10.77.0.2:8080"] {
            assert!(log.contains(words), "{words}: {log}");
        }
        assert_eq!(all_rules(&space), before, "{backend}");
    }
}
