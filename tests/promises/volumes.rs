//! The volumes of the app on the developer's machine, mounted by the sshfs of this machine.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::apps::App;
use harness::process::Process;
use harness::programs;
use harness::system::{Agent, System, WORKLOAD};
use harness::wait::until;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// User without rights.
const NOBODY: u32 = 65534;

/// A system whose app has the volume `/data`, and a place for the client's mounts and records.
struct Volumes {
    system: System,
    laptop: App,
    folder: TempDir,
}

/// Gives an agent a volume `/data` with the file `hello`.
fn with_volume(command: &mut Command) {
    let words: Vec<_> = command.get_args().collect();
    let root = words.iter().position(|word| *word == OsStr::new("--root"));
    let data = Path::new(words[root.unwrap() + 1]).join("tel_app_mounts/app/data");
    fs::create_dir_all(&data).unwrap();
    fs::write(data.join("hello"), "hello from the pod").unwrap();
    command
        .env("A_TELEPRESENCE_MOUNTS", "/data")
        .env("_TEL_APP_A_COLOUR", "blue")
        // The end of a pod is no matter of these tests.
        .env("AGENT_DRAIN_LAME_DUCK", "0s")
        .env("AGENT_DRAIN_GRACE", "1s");
}

impl Volumes {
    fn start() -> Self {
        Self {
            system: System::start_with(|_| {}, with_volume),
            laptop: App::start("laptop"),
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("mnt")
    }

    fn create(&self, more: &[&str]) -> Process {
        self.create_with(more, |_| {})
    }

    /// Creates an intercept by a command that `arrange` may change.
    fn create_with(&self, more: &[&str], arrange: impl FnOnce(&mut Command)) -> Process {
        let mut command = Command::new(programs::path("intercept"));
        command
            .args(self.arguments(more))
            // Records of other tests are none of ours.
            .env("XDG_RUNTIME_DIR", self.folder.path());
        arrange(&mut command);
        Process::start("intercept", &mut command)
    }

    fn arguments(&self, more: &[&str]) -> Vec<String> {
        let container = self.system.agent.sidecar.ports[0].container;
        let port = format!("{}:{container}", self.laptop.address().port());
        let manager = self.system.manager_address.to_string();
        let ours = ["create", "mine", "--workload", WORKLOAD, "--manager"];
        let all = [&ours[..], &[&manager, "--port", &port], more].concat();
        all.into_iter().map(str::to_owned).collect()
    }

    fn ingest(&self, more: &[&str]) -> Process {
        let mut command = Command::new(programs::path("intercept"));
        command
            .args(["ingest", WORKLOAD])
            .args(["--manager", &self.system.manager_address.to_string()])
            .args(more)
            .env("XDG_RUNTIME_DIR", self.folder.path());
        Process::start("intercept", &mut command)
    }

    fn mounted(&self) -> Process {
        let option = format!("--mount={}", self.root().display());
        let client = self.create(&[&option]);
        client.line("mount=ready");
        client
    }

    /// Makes a folder of programs in which sshfs is and nothing that unmounts.
    fn without_unmounters(&self) -> PathBuf {
        let bin = self.folder.path().join("bin");
        fs::create_dir_all(&bin).unwrap();
        let path = std::env::var_os("PATH").unwrap();
        let mut sshfs = std::env::split_paths(&path).map(|folder| folder.join("sshfs"));
        symlink(sshfs.find(|it| it.exists()).unwrap(), bin.join("sshfs")).unwrap();
        bin
    }

    fn is_mounted(&self) -> bool {
        let root = self.root().display().to_string();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        mounts
            .lines()
            .any(|line| line.split(' ').nth(4) == Some(&root))
    }

    fn records(&self) -> usize {
        let entries = fs::read_dir(self.folder.path().join("intercept")).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        paths
            .filter(|path| path.extension().is_some_and(|it| it == "mount"))
            .count()
    }
}

/// Returns the processes that a process has started.
fn children(pid: u32) -> Vec<Pid> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let lists =
        tasks.map(|task| fs::read_to_string(task.unwrap().path().join("children")).unwrap());
    let all: Vec<String> = lists.collect();
    let numbers = all.iter().flat_map(|list| list.split_whitespace());
    numbers
        .map(|number| Pid::from_raw(number.parse().unwrap()).unwrap())
        .collect()
}

#[test]
fn volumes_are_mounted_for_as_long_as_the_intercept_lives() {
    let volumes = Volumes::start();
    let client = volumes.mounted();
    let data = volumes.root().join("data");
    let read = fs::read_to_string(data.join("hello")).unwrap();
    assert_eq!(read, "hello from the pod");
    fs::write(data.join("new"), "from the laptop").unwrap();
    let in_pod = volumes
        .system
        .agent
        .root
        .path()
        .join("tel_app_mounts/app/data/new");
    assert_eq!(fs::read_to_string(in_pod).unwrap(), "from the laptop");

    assert!(client.terminate().success());
    assert!(!volumes.is_mounted() && !volumes.root().exists());
    assert_eq!(volumes.records(), 0);
}

#[test]
fn a_command_finds_the_volumes_and_their_place_is_gone_behind_it() {
    let volumes = Volumes::start();
    let file = volumes.folder.path().join("app.json");
    let json = format!("--env-json={}", file.display());
    let script = "echo root=$TELEPRESENCE_ROOT; cat $TELEPRESENCE_ROOT/data/hello; exit 7";
    let client = volumes.create(&["--mount", &json, "--", "sh", "-c", script]);
    let root = client.line("root=");
    let root = root.trim_start_matches("root=");
    client.line("hello from the pod");
    assert_eq!(client.exit().code(), Some(7));
    assert!(root.contains("/intercept-mine-") && !Path::new(root).exists());
    assert_eq!(volumes.records(), 0);

    let environment: serde_json::Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    assert_eq!(environment["TELEPRESENCE_ROOT"], root);
    assert_eq!(environment["COLOUR"], "blue");
    // Variables of the agent are nobody else's.
    assert!(environment.get("LOG_LEVEL").is_none(), "{environment}");
    assert!(environment.get("AGENT_ENVOY_SERVER_PORT").is_none());
}

#[test]
fn ingest_brings_environment_and_volumes_and_no_request() {
    let volumes = Volumes::start();
    let file = volumes.folder.path().join("app.env");
    let (env, mount) = (
        format!("--env-file={}", file.display()),
        format!("--mount={}", volumes.root().display()),
    );
    let client = volumes.ingest(&[&env, &mount]);
    client.line("state=ACTIVE ingest=hello container=");
    let hello = fs::read_to_string(volumes.root().join("data/hello")).unwrap();
    assert_eq!(hello, "hello from the pod");
    let environment = fs::read_to_string(file).unwrap();
    let has = |line: &str| environment.lines().any(|it| it == line);
    let root = format!("TELEPRESENCE_ROOT={}", volumes.root().display());
    assert!(has("COLOUR=blue") && has(&root), "{environment}");
    assert!(!environment.contains("TELEPRESENCE_INTERCEPT_ID"));
    let answer = harness::caller::get(volumes.system.address(), "/", &[]).unwrap();
    assert_eq!(answer.by(), "app");

    assert!(client.terminate().success());
    assert!(!volumes.is_mounted() && volumes.records() == 0);

    let client = volumes.ingest(&["--", "sh", "-c", "echo colour=$COLOUR; exit 3"]);
    client.line("colour=blue");
    assert_eq!(client.exit().code(), Some(3));
}

#[test]
fn ingest_says_which_containers_there_are() {
    let volumes = Volumes::start();
    let client = volumes.ingest(&["--container=sidecar"]);
    client.line("--container sidecar: the pods of \"hello\" have no such container, but: ");
    assert_eq!(client.exit().code(), Some(64));
}

#[test]
fn an_ingest_that_is_interrupted_while_it_waits_for_an_agent_is_no_success() {
    let volumes = Volumes::start();
    let client = volumes.ingest(&["--namespace=elsewhere"]);
    volumes.system.manager.line("client arrived");
    client.signal(Signal::INT);
    assert_eq!(client.exit().code(), Some(130));
}

#[test]
fn an_ingest_outlives_the_manager() {
    let mut volumes = Volumes::start();
    let mount = format!("--mount={}", volumes.root().display());
    let client = volumes.ingest(&[&mount]);
    client.line("state=ACTIVE");
    volumes.system.manager.kill();
    client.line("manager=lost");
    volumes.system.restart_manager();
    client.line("manager=back");
    let hello = volumes.root().join("data/hello");
    until("the volumes to be back", || {
        (fs::read_to_string(&hello).ok()? == "hello from the pod").then_some(())
    });
    assert!(client.terminate().success());
}

/// Kills a client and its sshfs, whose mount stays.
fn kill_with_sshfs(client: &Process, root: &Path) {
    let sshfs = children(client.pid());
    // So that it cannot mend what is broken now.
    client.signal(Signal::STOP);
    for sshfs in sshfs {
        let _ = kill_process(sshfs, Signal::KILL);
    }
    client.kill();
    until("the mount to have lost its sshfs", || {
        let error = fs::metadata(root).err()?;
        (error.kind() == ErrorKind::NotConnected).then_some(())
    });
}

#[test]
fn a_killed_client_leaves_no_mount_and_the_next_run_takes_away_what_is_left() {
    let volumes = Volumes::start();
    let client = volumes.mounted();
    client.kill();
    // sshfs notices that nobody carries its connection.
    until("sshfs to unmount", || (!volumes.is_mounted()).then_some(()));

    let client = volumes.mounted();
    kill_with_sshfs(&client, &volumes.root());
    assert!(volumes.is_mounted(), "a killed sshfs cannot unmount");
    let bin = volumes.without_unmounters();
    let client = volumes.create_with(&[], |command| {
        command.env("PATH", bin);
    });
    client.line("cannot be unmounted; fusermount3 -u");
    client.line("state=ACTIVE");
    assert!(client.terminate().success());
    assert_eq!(volumes.records(), 1, "for the next run");
    let client = volumes.create(&[]);
    client.line("left behind by an intercept that was killed");
    assert!(!volumes.is_mounted() && !volumes.root().exists());
    assert_eq!(volumes.records(), 0);
}

#[test]
fn a_mount_without_a_record_is_taken_away_once_its_sshfs_has_ended() {
    let volumes = Volumes::start();
    let option = format!("--mount={}", volumes.root().display());
    let elsewhere = tempfile::tempdir().unwrap();
    let lost = volumes.create_with(&[&option], |command| {
        command.env("XDG_RUNTIME_DIR", elsewhere.path());
    });
    lost.line("mount=ready");
    let client = volumes.create(&[&option]);
    client.line("something is mounted there already");
    assert_eq!(client.exit().code(), Some(1));

    kill_with_sshfs(&lost, &volumes.root());
    let bin = volumes.without_unmounters();
    let client = volumes.create_with(&[&option], |command| {
        command.env("PATH", bin);
    });
    let remedy = format!("fusermount3 -u {}", volumes.root().display());
    let line = client.line("cannot be unmounted; ");
    assert!(line.contains(&remedy), "{line}");
    assert_eq!(client.exit().code(), Some(1));

    let client = volumes.create(&[&option]);
    client.line("whose sshfs had ended");
    client.line("mount=ready");
    assert!(client.terminate().success());
    assert!(!volumes.is_mounted());
}

#[test]
fn volumes_are_mounted_again_from_the_next_pod() {
    let mut volumes = Volumes::start();
    let client = volumes.mounted();
    // Its end is told to the manager, which need not find out.
    let _ = volumes.system.agent.process.terminate();
    let sidecar = volumes.system.agent.sidecar.clone();
    volumes.system.agent = Agent::start(&sidecar, with_volume);
    volumes.system.agent.ready();
    let root = volumes.system.agent.root.path().to_owned();
    fs::write(root.join("tel_app_mounts/app/data/which"), "the next pod").unwrap();
    let file = volumes.root().join("data/which");
    let read = until("the next pod's volume", || fs::read_to_string(&file).ok());
    assert_eq!(read, "the next pod");
    assert!(client.terminate().success());
    assert!(!volumes.is_mounted());
}

#[test]
fn what_cannot_be_mounted_is_said_before_anything_is_created() {
    let volumes = Volumes::start();
    let at = |name: &str| volumes.folder.path().join(name);
    fs::create_dir(at("full")).unwrap();
    fs::write(at("full/file"), "").unwrap();
    symlink("nowhere", at("link")).unwrap();
    for (name, said) in [
        ("full", "the folder is not empty"),
        ("full/file", "a file is there and no folder"),
        ("full/file/below", "a file is there and no folder"),
        ("link", "a link that leads nowhere"),
    ] {
        let client = volumes.create(&[&format!("--mount={}", at(name).display())]);
        let line = client.line(&format!("--mount {}: {said}", at(name).display()));
        assert!(line.contains("; name a folder of yours"), "{line}");
        assert_eq!(client.exit().code(), Some(1));
        assert!(client.lines("Connected to").is_empty());
    }
    let client = volumes.create_with(&["--mount"], |command| {
        command.env("TMPDIR", at("missing"));
    });
    client.line("missing is not there; TMPDIR says");
    assert_eq!(client.exit().code(), Some(1));
}

#[test]
fn a_folder_that_may_not_be_written_is_named_before_anything_is_created() {
    let volumes = Volumes::start();
    let folder = tempfile::tempdir().unwrap();
    let (own, others) = (folder.path().join("own"), folder.path().join("others"));
    let program = folder.path().join("intercept");
    // Where the one who may not do everything can start it.
    fs::copy(programs::path("intercept"), &program).unwrap();
    for path in [&own, &others] {
        fs::create_dir(path).unwrap();
    }
    for path in [folder.path(), &others] {
        fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    }
    chown(&own, Some(NOBODY), None).unwrap();
    for (flag, below) in [
        ("--mount", ""),
        ("--mount", "new/folder"),
        ("--env-file", "app.env"),
    ] {
        let wanted = format!("{flag}={}", others.join(below).display());
        let mut command = Command::new("setpriv");
        command
            .args([&format!("--reuid={NOBODY}"), "--clear-groups"])
            .arg(&program)
            .args(volumes.arguments(&[&wanted]))
            .env("XDG_RUNTIME_DIR", &own);
        let client = Process::start("intercept", &mut command);
        client.line(&format!(
            "you may not write into the folder {}",
            others.display()
        ));
        assert_eq!(client.exit().code(), Some(1));
        assert!(client.lines("Connected to").is_empty());
    }
}
