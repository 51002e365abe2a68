//! Rules of earlier images, of the original image, and of others that look like ours.

use std::path::Path;

use crate::program::{BACKENDS, Port, Program};
use crate::sandbox::{empty_image, log_of, run_in};
use crate::space::{Families, ROOT, Space, all_rules, privileged};
use rustix::thread::CapabilitySet;

const PORTS: &[Port] = &[Port::tcp(8080, 9900)];

fn earlier(dir: &Path, space: &Space, backend: &str) {
    Program::new(
        dir,
        &[Port::tcp(8080, 9900), Port::udp(5353, 9901)],
        Families::Dual,
        backend,
    )
    .env("POD_IPS", "10.77.0.2,fd77::2")
    .must(space);
}

#[test]
fn an_empty_image_takes_the_rules_of_every_earlier_image_away() {
    if !privileged() {
        return;
    }
    let image = empty_image();
    for backend in BACKENDS {
        for others in [
            "",
            "-A OUTPUT -p tcp -m tcp --dport 4444 -j REDIRECT --to-ports 4445",
        ] {
            let (dir, space) = (tempfile::tempdir().unwrap(), Space::of_pod());
            let alone = Space::of_pod();
            for space in [&space, &alone] {
                if backend != "nft" && !others.is_empty() {
                    for program in ["iptables", "ip6tables"] {
                        let flavour = backend.trim_start_matches("iptables-");
                        space.sh(&format!("{program}-{flavour} -t nat {others}"));
                    }
                }
            }
            earlier(dir.path(), &space, backend);
            for argument in ["--backend=auto", "--remove"] {
                for space in [&space, &alone] {
                    let admin = CapabilitySet::NET_ADMIN;
                    let done = run_in(image.path(), space, ROOT, admin, argument);
                    assert_eq!(done.status.code(), Some(0), "{}", log_of(&done));
                }
                assert_eq!(
                    all_rules(&space),
                    all_rules(&alone),
                    "{backend}, {argument}"
                );
            }
        }
    }
}

#[test]
fn counts_of_others_rules_survive_the_removal_of_ours() {
    if !privileged() {
        return;
    }
    let (dir, space) = (tempfile::tempdir().unwrap(), Space::of_pod());
    space.sh("iptables-legacy -t nat -A OUTPUT -c 7 77 -p tcp -m tcp --dport 4444 -j RETURN");
    earlier(dir.path(), &space, "iptables-legacy");
    Program::new(dir.path(), PORTS, Families::Dual, "nft").remove(&space);
    let saved = space.sh("iptables-legacy-save -c -t nat");
    assert!(saved.contains("[7:77] -A OUTPUT -p tcp"), "{saved}");
    assert!(!saved.contains("TEL_"), "{saved}");
}

/// Number of the system call of this name that replaces a table of x_tables, and how many such
/// calls there are.
fn replacing_call(program: &Program, space: &Space, dir: &Path) -> usize {
    let trace = dir.join("trace");
    program
        .clone()
        .under(&["strace", "-qqq", "-e", "trace=setsockopt", "-o"])
        .traced_to(&trace)
        .must(space);
    let trace = std::fs::read_to_string(trace).unwrap();
    let at = trace
        .lines()
        .position(|line| line.contains("IPT_SO_SET_REPLACE"));
    at.expect("a call that replaces the table") + 1
}

#[test]
fn a_removal_that_the_kernel_refuses_is_an_error_that_names_what_is_left() {
    if !privileged() {
        return;
    }
    let (dir, space) = (tempfile::tempdir().unwrap(), Space::of_pod());
    let program =
        Program::new(dir.path(), PORTS, Families::Dual, "nft").env("POD_IPS", "10.77.0.2,fd77::2");
    earlier(dir.path(), &space, "iptables-legacy");
    let nth = replacing_call(&program, &space, dir.path());
    program.remove(&space);
    earlier(dir.path(), &space, "iptables-legacy");
    let inject = format!("inject=setsockopt:error=EBUSY:when={nth}+");
    let log = program
        .under(&["strace", "-qqq", "-o", "/dev/null", "-e", &inject])
        .must_end_with(&space, 69);
    for words in ["iptables-legacy", "rules of ours are left", "IPv4"] {
        assert!(log.contains(words), "{words}: {log}");
    }
    assert!(space.sh("iptables-legacy-save -t nat").contains("TEL_"));
}

#[test]
fn a_foreign_rule_is_kept_whatever_its_comment_says() {
    if !privileged() {
        return;
    }
    for backend in BACKENDS {
        let (dir, space) = (tempfile::tempdir().unwrap(), Space::of_pod());
        let flavour = if backend == "iptables-legacy" {
            "legacy"
        } else {
            "nft"
        };
        let rule = "-p tcp -m tcp --dport 4444 -m comment --comment 'see -j TEL_OUTPUT_TCP \"x\" \
                    y' -j ACCEPT";
        space.sh(&format!("iptables-{flavour} -t nat -A OUTPUT {rule}"));
        // The comment is not in what nft lists.
        let saved = |space: &Space| {
            let saved = space.sh(&format!("iptables-{flavour}-save -t nat"));
            let lines = saved.lines().filter(|line| line.contains("4444"));
            lines.collect::<Vec<_>>().join("\n")
        };
        let (before, rule) = (all_rules(&space), saved(&space));
        assert!(rule.contains("see -j TEL_OUTPUT_TCP"), "{rule}");
        let program = Program::new(dir.path(), PORTS, Families::Dual, backend)
            .env("POD_IPS", "10.77.0.2,fd77::2");
        program.must(&space);
        assert_eq!(saved(&space), rule, "{backend}");
        program.must(&space);
        program.remove(&space);
        assert_eq!(saved(&space), rule, "{backend}");
        assert_eq!(all_rules(&space), before, "{backend}");
    }
}

/// Rules that the original image leaves: those of 2.20, those of 2.28 with a group, and those of
/// 2.31.
const ORIGINALS: [(&str, &str); 3] = [
    (
        "2.20",
        "for n in '-N TEL_PREROUTING_TCP' '-N TEL_OUTPUT_TCP' '-A TEL_PREROUTING_TCP -p tcp \
         --dport 8080 -j REDIRECT --to-ports 9900' '-A TEL_OUTPUT_TCP -p tcp --dport 8080 -j \
         REDIRECT --to-ports 9900' '-A TEL_OUTPUT_TCP -p tcp -d 10.77.0.2 --dport 9912 -j DNAT \
         --to-destination 10.77.0.2:8080' '-A PREROUTING -p tcp -j TEL_PREROUTING_TCP' '-I OUTPUT \
         1 -o lo -p tcp -m owner ! --uid-owner 0 -j TEL_OUTPUT_TCP' '-I OUTPUT 1 -o lo -p tcp ! -d \
         127.0.0.1 -m owner --uid-owner 0 -j TEL_OUTPUT_TCP' '-I OUTPUT 3 -m owner --uid-owner 0 \
         -j RETURN'; do iptables-FLAVOUR -t nat $n; done",
    ),
    (
        "2.28",
        "for n in '-N TEL_INBOUND_UDP' '-N TEL_OUTPUT_TCP' '-N TEL_MESH_BYPASS' \
           '-A TEL_OUTPUT_TCP -p tcp --dport 8080 -j REDIRECT --to-ports 9900' \
           '-I OUTPUT 1 -o lo -p tcp -m owner ! --gid-owner 7439 -j TEL_OUTPUT_TCP' \
           '-I OUTPUT 2 -p tcp -d 10.77.0.2 -m owner --gid-owner 7439 -j TEL_OUTPUT_TCP' \
           '-I OUTPUT 3 -p tcp ! --dport 53 -m owner --gid-owner 7439 -j RETURN' \
           '-I OUTPUT 4 -p udp ! --dport 53 -m owner --gid-owner 7439 -j RETURN' \
           '-I OUTPUT 5 -p tcp -m owner --gid-owner 7439 -j TEL_MESH_BYPASS' \
           '-A TEL_MESH_BYPASS -j ACCEPT'; do iptables-FLAVOUR -t nat $n; done",
    ),
    (
        "2.31",
        "for family in ip ip6; do nft \"table $family telepresence {
           map ports { type inet_service : inet_service; elements = { 8080 : 9900 }; }
           chain prerouting { type nat hook prerouting priority -90; meta l4proto tcp redirect to :tcp dport map @ports; };
           chain output { type nat hook output priority -110; meta skgid 7439 accept; }; }\"; done",
    ),
];

#[test]
fn rules_of_the_original_image_are_replaced() {
    if !privileged() {
        return;
    }
    for (version, original) in ORIGINALS {
        for flavour in ["nft", "legacy"] {
            for backend in BACKENDS {
                let (dir, space, alone) = (
                    tempfile::tempdir().unwrap(),
                    Space::of_pod(),
                    Space::of_pod(),
                );
                // The program creates hooks of the table for both of them.
                for space in [&space, &alone] {
                    space.sh(&format!(
                        "iptables-{flavour} -t nat -A OUTPUT -m owner --uid-owner 1337 -j RETURN
                         iptables-{flavour} -t nat -A PREROUTING -p tcp -m tcp --dport 1 -j RETURN"
                    ));
                }
                space.sh(&original.replace("FLAVOUR", flavour));
                assert_ne!(all_rules(&space), all_rules(&alone));
                let program = Program::new(dir.path(), PORTS, Families::Dual, backend)
                    .env("POD_IPS", "10.77.0.2,fd77::2");
                let wrong_order = [("iptables-nft", "legacy"), ("iptables-legacy", "nft")];
                let code = if wrong_order.contains(&(backend, flavour)) {
                    69
                } else {
                    0
                };
                program.must_end_with(&space, code);
                program.must_end_with(&alone, code);
                // Chains that were there before are listed before others.
                let sorted = |space: &Space| {
                    let rules = all_rules(space);
                    let mut lines: Vec<_> = rules.lines().map(str::to_owned).collect();
                    lines.sort();
                    lines
                };
                assert_eq!(
                    sorted(&space),
                    sorted(&alone),
                    "{version}, {flavour}, {backend}"
                );
                program.remove(&space);
                program.remove(&alone);
                assert_eq!(all_rules(&space), all_rules(&alone));
            }
        }
    }
}
