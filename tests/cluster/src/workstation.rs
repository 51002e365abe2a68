//! A developer's machine beside the cluster: our client, a process that answers, and nothing but a
//! kubeconfig.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use harness::process::Process;
use harness::wait::until_within;
use harness::{ports, programs};

use crate::cluster::{Cluster, User};
use crate::manager::Manager;

/// Header that intercepts ask for unless told otherwise.
pub const HEADER: &str = "x-dev: me";

/// Time for an intercept to become active, unless told otherwise.
const INTERCEPT_TIMEOUT: Duration = Duration::from_secs(60);

/// A machine with a kubeconfig.
#[derive(Debug)]
pub struct Workstation<'a> {
    cluster: &'a Cluster,
    kubeconfig: PathBuf,
    /// Where flags say that the manager is.
    manager_namespace: Option<String>,
    /// Name of the developer.
    client: String,
    /// Time for an intercept to become active.
    timeout: Duration,
}

/// An intercept that is being served.
#[derive(Debug)]
pub struct Served {
    process: Process,
    _app: Process,
    /// Name under which the process on the workstation answers.
    pub answers_as: String,
    name: String,
}

/// Result of one command of the client.
#[derive(Clone, Debug)]
pub struct Said {
    /// Standard output and error.
    pub text: String,
    /// Exit code; 255 where a signal ended it.
    pub code: i32,
    /// Time from start to end.
    pub took: Duration,
}

impl<'a> Workstation<'a> {
    /// The administrator's machine.
    pub fn new(manager: &Manager<'a>) -> Self {
        let cluster = manager.cluster();
        Self::with(cluster, manager, cluster.folder().join("admin.conf"))
    }

    /// The machine of a user with few rights.
    pub fn of(manager: &Manager<'a>, user: &User) -> Self {
        Self::with(manager.cluster(), manager, user.kubeconfig.clone())
    }

    /// A machine whose kubeconfig alone says where the manager is.
    pub fn plain(cluster: &'a Cluster, kubeconfig: &Path) -> Self {
        Self::at(cluster, None, kubeconfig.to_owned())
    }

    fn with(cluster: &'a Cluster, manager: &Manager<'a>, kubeconfig: PathBuf) -> Self {
        Self::at(cluster, Some(manager.namespace().to_owned()), kubeconfig)
    }

    fn at(cluster: &'a Cluster, manager_namespace: Option<String>, kubeconfig: PathBuf) -> Self {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        Self {
            cluster,
            kubeconfig,
            manager_namespace,
            client: format!("dev-{number}@workstation"),
            timeout: INTERCEPT_TIMEOUT,
        }
    }

    /// The same with so much time for an intercept to become active.
    #[must_use]
    pub fn patient(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The client's command with these arguments.
    pub fn command(&self, arguments: &[&str]) -> Command {
        // What follows `--` is the user's own command.
        let end = arguments.iter().position(|it| *it == "--");
        let (ours, users) = arguments.split_at(end.unwrap_or(arguments.len()));
        let mut command = Command::new(programs::path("intercept"));
        command.args(ours).args(["--client", &self.client]);
        let mut command = self.place(command);
        command.args(users);
        command
    }

    /// Runs a command of the client to its end.
    pub fn run(&self, arguments: &[&str]) -> Said {
        said(&mut self.command(arguments))
    }

    /// The same for a command that names no developer, such as `check` and `helm`.
    pub fn run_plainly(&self, arguments: &[&str]) -> Said {
        let mut command = Command::new(programs::path("intercept"));
        command.args(arguments);
        said(&mut self.place(command))
    }

    fn place(&self, mut command: Command) -> Command {
        command.arg("--kubeconfig").arg(&self.kubeconfig);
        if let Some(namespace) = &self.manager_namespace {
            command.args(["--manager-namespace", namespace]);
        }
        command
    }

    /// Intercepts what carries [`HEADER`]; `options` are the client's, such as `--port=:http`.
    /// Waits until the intercept is active.
    pub fn intercept(&self, namespace: &str, workload: &str, options: &[&str]) -> Served {
        let served = self.start(namespace, workload, options);
        until_within(self.timeout, "the intercept to be active", || {
            (!served.process.lines("Intercepting").is_empty()).then_some(())
        });
        served
    }

    /// Takes the place of the workload's container. Waits until it has it.
    pub fn replace(&self, namespace: &str, workload: &str, options: &[&str]) -> Served {
        let served = self.attach("replace", namespace, workload, options);
        served.process.line("Replacing");
        served
    }

    /// The same as [`Self::intercept`] without waiting.
    pub fn start(&self, namespace: &str, workload: &str, options: &[&str]) -> Served {
        self.attach("create", namespace, workload, options)
    }

    fn attach(&self, command: &str, namespace: &str, workload: &str, options: &[&str]) -> Served {
        let name = format!("{workload}-{}", self.client.split('@').next().unwrap());
        let answers_as = format!("beside-{workload}");
        let port = ports::free();
        let address = format!("127.0.0.1:{port}");
        let mut app = Command::new(self.cluster.facts().programs.join("app"));
        app.args(["serve", &answers_as, "-http", &address, "-udp", &address]);
        let app = Process::start(&answers_as, &mut app);
        let is_global = command == "replace" || options.contains(&"--mechanism=tcp");
        let identifier = options.iter().find_map(|it| it.strip_prefix("--port="));
        let port = format!("--port={port}{}", identifier.unwrap_or(""));
        let mut arguments = vec![command, &name, "--workload", workload];
        let timeout = format!("--timeout={}", self.timeout.as_secs());
        arguments.extend(["--namespace", namespace, &port, &timeout]);
        // Whoever names headers means others.
        if !is_global && !options.contains(&"--http-header") {
            arguments.extend(["--http-header", "x-dev=me"]);
        }
        arguments.extend(options.iter().filter(|it| !it.starts_with("--port=")));
        let process = Process::start(&name, &mut self.command(&arguments));
        Served {
            process,
            _app: app,
            answers_as,
            name,
        }
    }
}

fn said(command: &mut Command) -> Said {
    let begin = Instant::now();
    let output = command.output().unwrap();
    let text = [&output.stdout, &output.stderr].map(|it| String::from_utf8_lossy(it));
    Said {
        text: text.concat(),
        code: output.status.code().unwrap_or(255),
        took: begin.elapsed(),
    }
}

impl Served {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The client's process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Ends it as Ctrl-C does.
    pub fn leave(self) {
        let status = self.process.terminate();
        assert!(status.success(), "{}: {status}", self.name);
    }
}
