//! Waiting for others is bounded and said, and a signal ends it without leaving half of the rules.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::lifecycle::fake;
use crate::program::{Port, Program};
use crate::space::{Families, ROOT, Space, all_rules, privileged};

const PORTS: &[Port] = &[Port::tcp(8080, 9900)];
const EVENT_TIMEOUT: Duration = Duration::from_secs(20);

/// Program that holds a lock file until it is dropped.
struct Holder(Child);

impl Holder {
    fn of(file: &Path) -> Self {
        let mut child = Command::new("flock")
            .arg(file)
            .args(["sh", "-c", "echo held && read line"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut held = [0; 5];
        child
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut held)
            .unwrap();
        Self(child)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Run of the program as process 1 of a pid namespace, with the lines of its log.
struct Running {
    child: Child,
    log: BufReader<std::process::ChildStderr>,
}

impl Running {
    fn start(program: &Program, space: &Space) -> Self {
        let program = program
            .clone()
            .under(&["unshare", "--pid", "--fork", "--kill-child"]);
        let mut child = space.run(ROOT, || {
            program
                .command()
                .stderr(Stdio::piped())
                .stdout(Stdio::null())
                .spawn()
                .unwrap()
        });
        let log = BufReader::new(child.stderr.take().unwrap());
        Self { child, log }
    }

    /// Reads the log up to a line with these words.
    fn line(&mut self, words: &str) -> String {
        let mut line = String::new();
        while !line.contains(words) {
            line.clear();
            let got = self.log.read_line(&mut line).unwrap();
            assert!(got > 0, "the log ended before {words:?}");
        }
        line
    }

    /// Process number of the program, which is the one child of `unshare`.
    fn process(&self) -> Pid {
        let id = self.child.id();
        let path = format!("/proc/{id}/task/{id}/children");
        let children = std::fs::read_to_string(path).unwrap();
        let first = children.split_whitespace().next().unwrap();
        Pid::from_raw(first.parse().unwrap()).unwrap()
    }

    fn end_by(&mut self, signal: Signal) -> (Option<i32>, String) {
        kill_process(self.process(), signal).unwrap();
        let mut rest = String::new();
        self.log.read_to_string(&mut rest).unwrap();
        (self.child.wait().unwrap().code(), rest)
    }
}

fn program(dir: &Path, backend: &str, lock: &Path) -> Program {
    Program::new(dir, PORTS, Families::Dual, backend)
        .env("POD_IPS", "10.77.0.2,fd77::2")
        .env("XTABLES_LOCKFILE", lock.to_str().unwrap())
}

#[test]
fn a_held_lock_is_told_and_a_signal_ends_the_wait_of_process_1() {
    if !privileged() {
        return;
    }
    let (dir, space) = (tempfile::tempdir().unwrap(), Space::of_pod());
    let lock = dir.path().join("lock");
    let _holder = Holder::of(&lock);
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let mut running = Running::start(&program(dir.path(), "iptables-legacy", &lock), &space);
        let line = running.line("another program holds");
        assert!(line.contains(lock.to_str().unwrap()), "{line}");
        assert!(line.contains("at most 30 s"), "{line}");
        let (ended, rest) = running.end_by(signal);
        assert_eq!(ended, Some(code), "{rest}");
        assert!(rest.contains("ended by signal"), "{rest}");
        assert_eq!(all_rules(&space), "");
    }
}

#[test]
fn a_lock_that_is_released_lets_the_run_go_on() {
    if !privileged() {
        return;
    }
    let (dir, space) = (tempfile::tempdir().unwrap(), Space::of_pod());
    let lock = dir.path().join("lock");
    let holder = Holder::of(&lock);
    let mut running = Running::start(&program(dir.path(), "iptables-legacy", &lock), &space);
    running.line("another program holds");
    drop(holder);
    assert_eq!(running.child.wait().unwrap().code(), Some(0));
    assert!(all_rules(&space).contains("TEL_MESH_BYPASS"));
}

#[test]
fn a_lock_that_is_never_released_ends_the_run() {
    if !privileged() {
        return;
    }
    let (dir, space) = (tempfile::tempdir().unwrap(), Space::of_pod());
    let lock = dir.path().join("lock");
    let _holder = Holder::of(&lock);
    let log = program(dir.path(), "iptables-legacy", &lock).must_end_with(&space, 69);
    assert!(
        log.contains("has held") && log.contains("XTABLES_LOCKFILE"),
        "{log}"
    );
    assert_eq!(all_rules(&space), "");
}

#[test]
fn a_signal_between_the_families_leaves_no_half() {
    if !privileged() {
        return;
    }
    for flavour in ["nft", "legacy"] {
        let (dir, space) = (tempfile::tempdir().unwrap(), Space::of_pod());
        // IPv4 is in force by then.
        let began = dir.path().join("began");
        fake(
            dir.path(),
            &format!("ip6tables-{flavour}-restore"),
            &format!("touch {}; exec sleep 1000", began.display()),
        );
        let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", dir.path().display());
        let lock = dir.path().join("lock");
        let program = program(dir.path(), &format!("iptables-{flavour}"), &lock).env("PATH", &path);
        let mut running = Running::start(&program, &space);
        until(|| began.exists());
        assert!(all_rules(&space).contains("TEL_OUTPUT_TCP"), "{flavour}");
        let (ended, rest) = running.end_by(Signal::TERM);
        assert_eq!(ended, Some(143), "{rest}");
        assert_eq!(all_rules(&space), "", "{flavour}");
    }
}

#[test]
fn another_run_that_does_not_end_is_waited_for_and_told() {
    if !privileged() {
        return;
    }
    let (dir, space) = (tempfile::tempdir().unwrap(), Space::of_pod());
    let began = dir.path().join("began");
    fake(
        dir.path(),
        "iptables-nft-save",
        &format!("touch {}; exec sleep 1000", began.display()),
    );
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", dir.path().display());
    let lock = dir.path().join("lock");
    let slow = program(dir.path(), "iptables-nft", &lock).env("PATH", &path);
    let mut first = Running::start(&slow, &space);
    until(|| began.exists());
    let mut second = Running::start(&program(dir.path(), "nft", &lock), &space);
    second.line("another agent-init is programming rules");
    let (ended, _) = first.end_by(Signal::TERM);
    assert_eq!(ended, Some(143));
    assert_eq!(second.child.wait().unwrap().code(), Some(0));
    assert!(all_rules(&space).contains("tel_agent"));
}

fn until(happened: impl Fn() -> bool) {
    let deadline = Instant::now() + EVENT_TIMEOUT;
    while !happened() {
        assert!(Instant::now() < deadline, "it did not happen");
        std::thread::sleep(Duration::from_millis(10));
    }
}
