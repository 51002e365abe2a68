//! Containers as strict as they come: an empty image, one capability, any user, a file system
//! nobody may write to, and kernels that lack something.
// `pre_exec`: a child takes its root and its rights before it becomes the program.
#![allow(unsafe_code)]

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use agent_init::rule::Transport::Tcp;
use rustix::process::{Gid, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::parties::{agent, app, asked};
use crate::program::{BACKENDS, Port, Program, config};
use crate::space::{APP, As, Families, Net, POD_V4, POD_V6, ROOT, Space, all_rules, privileged};

const PORTS: &[Port] = &[Port::tcp(8080, 9900)];
const AGENT: As = As {
    uid: 7777,
    gid: 7439,
};

/// Target for a static program, and the flags it takes: musl where Rust has it, as for the image,
/// else glibc.
fn static_target() -> (String, &'static str) {
    let done = Command::new("rustc").args(["--print", "sysroot"]).output();
    let sysroot = String::from_utf8(done.unwrap().stdout).unwrap();
    let target = |library: &str| format!("{}-unknown-linux-{library}", std::env::consts::ARCH);
    let libraries = Path::new(sysroot.trim()).join("lib/rustlib");
    if libraries.join(target("musl")).exists() {
        (target("musl"), "")
    } else {
        (target("gnu"), "-C target-feature=+crt-static")
    }
}

/// The program linked statically, as it is released: what an image with nothing else in it can run.
fn static_program() -> PathBuf {
    static BUILT: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    let build = || {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("static");
        let (target, flags) = static_target();
        let done = Command::new(env!("CARGO"))
            .args(["build", "--offline", "--quiet", "--package", "agent-init"])
            .args(["--bin", "agent-init", "--target", &target, "--target-dir"])
            .arg(&folder)
            // It runs for milliseconds: what counts is how soon it is built.
            .args(["--config", "profile.dev.package.\"*\".opt-level=0"])
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            .env("RUSTFLAGS", flags)
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .unwrap();
        let log = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{log}");
        folder.join(target).join("debug/agent-init")
    };
    BUILT.get_or_init(build).clone()
}

/// A directory with the program in it and nothing else.
pub(crate) fn empty_image() -> tempfile::TempDir {
    let image = tempfile::tempdir().unwrap();
    std::fs::copy(static_program(), image.path().join("agent-init")).unwrap();
    image
}

/// Runs the program of the image as its only file, as `who`, with these capabilities and no other
/// right.
pub(crate) fn run_in(
    image: &Path,
    space: &Space,
    who: As,
    capabilities: CapabilitySet,
    argument: &str,
) -> Output {
    let image = image.to_owned();
    let argument = argument.to_owned();
    space.run(ROOT, move || {
        let mut command = Command::new("/agent-init");
        command
            .arg0("agent-init")
            .args(["agent-init".to_owned(), argument])
            .env_clear();
        command.env(
            "AGENT_CONFIG",
            serde_json::to_string(&json_config()).unwrap(),
        );
        command
            .env("POD_IPS", format!("{POD_V4},{POD_V6}"))
            .env("AGENT_GID", "7439");
        // SAFETY: between fork and exec it makes system calls only; `image` was allocated before.
        unsafe {
            command.pre_exec(move || {
                rustix::process::chroot(&image)?;
                rustix::process::chdir("/")?;
                for capability in CapabilitySet::all()
                    .iter()
                    .filter(|it| !capabilities.contains(*it))
                {
                    // The kernel may know fewer capabilities than the library.
                    let _ = rustix::thread::remove_capability_from_bounding_set(capability);
                }
                if who.uid == 0 {
                    let inheritable = CapabilitySet::empty();
                    let sets = CapabilitySets {
                        effective: capabilities,
                        permitted: capabilities,
                        inheritable,
                    };
                    rustix::thread::set_capabilities(None, sets)?;
                } else {
                    let (uid, gid) = (Uid::from_raw(who.uid), Gid::from_raw(who.gid));
                    rustix::thread::set_thread_groups(&[])?;
                    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
                    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
                }
                rustix::thread::set_no_new_privs(true)?;
                Ok(())
            });
        }
        command.output().unwrap()
    })
}

pub(crate) fn json_config() -> serde_json::Value {
    serde_json::json!({
        "agentName": "echo", "namespace": "default", "managerHost": "traffic-manager.ambassador", "managerPort": 8081,
        "containers": [{
            "name": "app", "envPrefix": "A_", "mountPoint": "/tel_app_mounts/app",
            "intercepts": [{
                "serviceName": "echo", "servicePortName": "http", "servicePort": 80, "targetPortNumeric": true,
                "protocol": "TCP", "containerPort": 8080, "agentPort": 9900,
            }],
        }],
    })
}

pub(crate) fn log_of(done: &Output) -> String {
    String::from_utf8_lossy(&done.stderr).into_owned()
}

#[test]
fn an_empty_image_with_net_admin_alone_is_enough() {
    if !privileged() {
        return;
    }
    let (image, net) = (empty_image(), Net::new(Families::Dual));
    let done = run_in(
        image.path(),
        &net.pod,
        ROOT,
        CapabilitySet::NET_ADMIN,
        "--backend=auto",
    );
    assert_eq!(done.status.code(), Some(0), "{}", log_of(&done));
    assert!(log_of(&done).contains("; nft,"), "{}", log_of(&done));
    app(&net, APP, Tcp, 8080);
    agent(&net, AGENT, Tcp, 9900, PORTS[0].proxy_port(PORTS));
    for address in [POD_V4, POD_V6] {
        assert_eq!(
            asked(&net.outside, ROOT, Tcp, address, 8080),
            "agent9900>app8080"
        );
    }
    let done = run_in(
        image.path(),
        &net.pod,
        ROOT,
        CapabilitySet::NET_ADMIN,
        "--remove",
    );
    assert_eq!(done.status.code(), Some(0), "{}", log_of(&done));
    assert_eq!(all_rules(&net.pod), "");
}

#[test]
fn no_other_program_is_executed() {
    if !privileged() {
        return;
    }
    // Here the programs of iptables are at hand, and rules of theirs are too.
    let (dir, space) = (tempfile::tempdir().unwrap(), Space::of_pod());
    space.sh("iptables-nft -t nat -A OUTPUT -p tcp --dport 4444 -j REDIRECT --to-ports 4445");
    let trace = dir.path().join("trace");
    let tracer = [
        "strace",
        "-f",
        "-e",
        "trace=execve,execveat",
        "-o",
        trace.to_str().unwrap(),
    ];
    Program::new(dir.path(), PORTS, Families::V4, "auto")
        .under(&tracer)
        .must(&space);
    let trace = std::fs::read_to_string(trace).unwrap();
    let executed: Vec<_> = trace.lines().filter(|line| line.contains("exec")).collect();
    assert!(
        executed.len() == 1 && executed[0].contains("agent-init"),
        "{trace}"
    );
    assert!(all_rules(&space).contains("tel_agent"));
}

#[test]
fn without_net_admin_it_says_so_and_ends_with_77() {
    if !privileged() {
        return;
    }
    let (image, space) = (empty_image(), Space::of_pod());
    let root = run_in(
        image.path(),
        &space,
        ROOT,
        CapabilitySet::NET_RAW,
        "--backend=auto",
    );
    assert_eq!(root.status.code(), Some(77), "{}", log_of(&root));
    assert!(
        log_of(&root).contains("NET_ADMIN is missing: add it"),
        "{}",
        log_of(&root)
    );
    assert!(
        log_of(&root).contains("named target port"),
        "{}",
        log_of(&root)
    );

    // What a container gets that is not root and adds NET_ADMIN.
    let user = run_in(
        image.path(),
        &space,
        As {
            uid: 12345,
            gid: 12345,
        },
        CapabilitySet::NET_ADMIN,
        "--backend=auto",
    );
    assert_eq!(user.status.code(), Some(77), "{}", log_of(&user));
    for words in [
        "only in the bounding set",
        "uid 12345",
        "runAsUser: 0",
        "cap_net_admin+p",
    ] {
        assert!(log_of(&user).contains(words), "{words}: {}", log_of(&user));
    }
    assert_eq!(all_rules(&space), "");

    let dir = tempfile::tempdir().unwrap();
    for backend in BACKENDS {
        for mode in ["", "--remove", "--check"] {
            let program = Program::new(dir.path(), PORTS, Families::V4, backend);
            let program = if mode.is_empty() {
                program
            } else {
                program.argument(mode)
            };
            let bare = program.under(&["setpriv", "--bounding-set", "-all", "--inh-caps", "-all"]);
            assert!(
                bare.must_end_with(&space, 77).contains("NET_ADMIN"),
                "{backend} {mode}"
            );
        }
    }
}

#[test]
fn any_user_with_net_admin_may_program() {
    if !privileged() {
        return;
    }
    for backend in BACKENDS {
        let (dir, space) = (tempfile::tempdir().unwrap(), Space::of_pod());
        let program = readable_by_all(
            dir.path(),
            &Program::new(dir.path(), PORTS, Families::V4, backend),
        );
        // The legacy program itself opens a raw socket.
        let capabilities = if backend == "iptables-legacy" {
            "-all,+net_admin,+net_raw"
        } else {
            "-all,+net_admin"
        };
        let program = program.under(&[
            "setpriv",
            "--reuid",
            "12345",
            "--regid",
            "12345",
            "--clear-groups",
            "--inh-caps",
            capabilities,
            "--ambient-caps",
            capabilities,
            "--bounding-set",
            capabilities,
            "--no-new-privs",
        ]);
        program.must(&space);
        program.clone().argument("--check").must(&space);
        assert!(all_rules(&space).contains("TEL_MESH_BYPASS"), "{backend}");
        program.remove(&space);
        assert_eq!(all_rules(&space), "", "{backend}");
    }
}

#[test]
fn a_file_capability_is_enough_for_any_user() {
    if !privileged() {
        return;
    }
    for (backend, effective) in [("nft", false), ("nft", true), ("iptables-nft", false)] {
        let (dir, space) = (tempfile::tempdir().unwrap(), Space::of_pod());
        let program = readable_by_all(
            dir.path(),
            &Program::new(dir.path(), PORTS, Families::V4, backend),
        );
        give_file_capability(&program.path, effective);
        let program = program.under(&[
            "setpriv",
            "--reuid",
            "12345",
            "--regid",
            "12345",
            "--clear-groups",
        ]);
        program.must(&space);
        assert!(all_rules(&space).contains("TEL_MESH_BYPASS"), "{backend}");
    }
}

/// Gives the program NET_ADMIN, permitted as in the image, or effective from its start as well.
pub(crate) fn give_file_capability(program: &Path, effective: bool) {
    // Version 2, its flag; NET_ADMIN is bit 12 of the permitted set.
    let mut capability = vec![u8::from(effective), 0, 0, 2, 0, 0x10, 0, 0];
    capability.resize(20, 0);
    rustix::fs::setxattr(
        program,
        "security.capability",
        &capability,
        rustix::fs::XattrFlags::empty(),
    )
    .unwrap();
}

/// The program and its configuration where everybody may read them.
pub(crate) fn readable_by_all(dir: &Path, program: &Program) -> Program {
    use std::os::unix::fs::PermissionsExt as _;
    let copy = dir.join("agent-init");
    std::fs::copy(&program.path, &copy).unwrap();
    for path in [dir, &copy] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    Program {
        path: copy,
        ..program.clone()
    }
}

#[test]
fn a_read_only_file_system_is_no_hindrance() {
    if !privileged() {
        return;
    }
    for backend in BACKENDS {
        let (dir, space) = (tempfile::tempdir().unwrap(), Space::of_pod());
        let script = "mount --rbind / /mnt && mount -o remount,ro,bind /mnt && for at in /mnt/run \
                      /mnt/tmp; do mount -o remount,ro,bind $at 2>/dev/null || true; done; touch \
                      /mnt/run/probe 2>/dev/null && exit 99; exec unshare --root=/mnt --wd=/ \"$@\"";
        let program = Program::new(dir.path(), PORTS, Families::Dual, backend)
            .env("POD_IPS", "10.77.0.2,fd77::2")
            .under(&["unshare", "--mount", "sh", "-c", script, "sh"]);
        program.must(&space);
        assert!(all_rules(&space).contains("TEL_MESH_BYPASS"), "{backend}");
        program.remove(&space);
        assert_eq!(all_rules(&space), "", "{backend}");
    }
}

#[test]
fn an_image_with_one_flavour_under_the_plain_names_will_do() {
    if !privileged() {
        return;
    }
    for (flavour, other) in [("nft", "legacy"), ("legacy", "nft")] {
        let (dir, space) = (tempfile::tempdir().unwrap(), Space::of_pod());
        // /usr/sbin as such an image has it.
        let image = dir.path().join("sbin");
        std::fs::create_dir(&image).unwrap();
        let multi = format!("xtables-{flavour}-multi");
        std::fs::copy(Path::new("/usr/sbin").join(&multi), image.join(&multi)).unwrap();
        for name in [
            "iptables-save",
            "iptables-restore",
            "ip6tables-save",
            "ip6tables-restore",
        ] {
            std::os::unix::fs::symlink(&multi, image.join(name)).unwrap();
        }
        let script = format!("mount --bind {} /usr/sbin && exec \"$@\"", image.display());
        let under = ["unshare", "--mount", "sh", "-c", &script, "sh"];
        let with =
            |backend: &str| Program::new(dir.path(), PORTS, Families::V4, backend).under(&under);
        let log = with("iptables").must(&space);
        assert!(log.contains(&format!("; iptables-{flavour},")), "{log}");
        with("iptables").argument("--check").must(&space);
        let log = with(&format!("iptables-{other}")).must_end_with(&space, 69);
        assert!(
            log.contains(&format!("no program iptables-{other}-")),
            "{log}"
        );
        assert_eq!(all_rules(&space), "");
    }
}

#[test]
fn a_kernel_without_nf_tables_is_programmed_by_iptables() {
    if !privileged() {
        return;
    }
    let (dir, space) = (tempfile::tempdir().unwrap(), Space::of_pod());
    let without = [
        "strace",
        "-qqq",
        "-o",
        "/dev/null",
        "-e",
        "inject=socket:error=EPROTONOSUPPORT",
    ];
    let program = Program::new(dir.path(), PORTS, Families::V4, "auto")
        .env("POD_IPS", POD_V4)
        .under(&without);
    let log = program.must(&space);
    assert!(log.contains("; iptables-legacy,"), "{log}");
    assert!(
        space
            .sh("iptables-legacy-save -t nat")
            .contains("-j TEL_PREROUTING_TCP")
    );
    let forced = Program::new(dir.path(), PORTS, Families::V4, "nft")
        .env("POD_IPS", POD_V4)
        .under(&without)
        .must_end_with(&space, 69);
    assert!(forced.contains("CONFIG_NETFILTER_NETLINK"), "{forced}");
}

#[test]
fn a_kernel_and_image_without_any_backend_are_told_apart_and_named() {
    if !privileged() {
        return;
    }
    let (image, space) = (empty_image(), Space::of_pod());
    std::fs::write(image.path().join("config.yaml"), config(PORTS)).unwrap();
    let program = Program {
        path: "/agent-init".into(),
        arguments: vec!["--config".into(), "/config.yaml".into()],
        env: vec![("POD_IPS".into(), POD_V4.into())],
        under: Vec::new(),
    };
    let root = format!("--root={}", image.path().display());
    let tracer = [
        "strace",
        "-qqq",
        "-o",
        "/dev/null",
        "-e",
        "inject=socket:error=EPROTONOSUPPORT",
    ];
    let log = program
        .under(&[&tracer[..], &["unshare", &root, "--wd=/"]].concat())
        .must_end_with(&space, 69);
    for words in [
        "CONFIG_NETFILTER_NETLINK",
        "iptables-legacy-",
        "named target port",
        "without the init container",
    ] {
        assert!(log.contains(words), "{words}: {log}");
    }
}

#[test]
fn the_program_carries_no_runtime_no_grpc_and_no_tls() {
    let done = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--offline",
            "--package",
            "agent-init",
            "--edges",
            "normal",
            "--prefix",
            "none",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", log_of(&done));
    let tree = String::from_utf8(done.stdout).unwrap();
    let linked: Vec<&str> = tree
        .lines()
        .filter_map(|line| line.split(' ').next())
        .collect();
    assert!(linked.contains(&"rustix"), "{tree}");
    for heavy in [
        "tokio", "tonic", "prost", "rustls", "hyper", "clap", "regex",
    ] {
        assert!(!linked.contains(&heavy), "{heavy} is linked");
    }
}
