//! Kernels without one of the matches that the plan can do without.

use std::path::Path;

use crate::lifecycle::fake;
use crate::program::{Port, Program};
use crate::space::{Families, Space, all_rules, privileged};

const PORTS: &[Port] = &[Port::tcp(8080, 9900)];

/// Puts programs in front of those of iptables that refuse one match, as a kernel without it does.
fn without_match(dir: &Path, flavour: &str, name: &str) -> String {
    for program in ["iptables", "ip6tables"] {
        let real = format!("/usr/sbin/{program}-{flavour}-restore");
        fake(
            dir,
            &format!("{program}-{flavour}-restore"),
            &format!(
                "input=$(cat); case $input in *'-m {name}'*) echo 'line 9 failed' >&2; exit 1;; esac
                 echo \"$input\" | {real} \"$@\""
            ),
        );
    }
    format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", dir.display())
}

#[test]
fn tests_that_the_kernel_lacks_are_left_out_where_nobody_needs_them() {
    if !privileged() {
        return;
    }
    for flavour in ["nft", "legacy"] {
        for (name, words) in [
            ("socket", "transparent proxy"),
            ("addrtype", "only routed through the pod"),
        ] {
            let (dir, space) = (tempfile::tempdir().unwrap(), Space::of_pod());
            let path = without_match(dir.path(), flavour, name);
            let backend = format!("iptables-{flavour}");
            let program =
                Program::new(dir.path(), PORTS, Families::V4, &backend).env("PATH", &path);
            let log = program.must(&space);
            assert!(log.contains(words), "{log}");
            program.clone().argument("--check").must(&space);
            let once = all_rules(&space);
            program.must(&space);
            assert_eq!(all_rules(&space), once, "{flavour}");
        }
    }
}

#[test]
fn a_kernel_that_cannot_leave_callers_to_a_transparent_mesh_is_refused() {
    if !privileged() {
        return;
    }
    for flavour in ["nft", "legacy"] {
        let (dir, space) = (tempfile::tempdir().unwrap(), Space::of_pod());
        space.sh(&format!(
            "iptables-{flavour} -t mangle -A PREROUTING -p tcp -j TPROXY --on-port 15006"
        ));
        let path = without_match(dir.path(), flavour, "socket");
        let backend = format!("iptables-{flavour}");
        let program = Program::new(dir.path(), PORTS, Families::V4, &backend).env("PATH", &path);
        let log = program.must_end_with(&space, 69);
        for words in ["TPROXY", "mode REDIRECT"] {
            assert!(log.contains(words), "{words}: {log}");
        }
        assert!(!all_rules(&space).contains("TEL_"), "{flavour}");
    }
}
