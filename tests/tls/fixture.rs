//! A manager and an agent with annotations and secrets, and curl to call it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use harness::certs::{Authority, Signed};
use harness::ports;
use harness::process::Process;
use harness::programs;
use harness::sidecar::Port;
use harness::system::{Agent, NAMESPACE, WORKLOAD, sidecar, start_manager};

pub(crate) struct Fixture {
    pub(crate) manager_addr: SocketAddr,
    pub(crate) agent: Agent,
    pub(crate) authority: Authority,
    /// The server's and the client's certificate, as in the secrets `server` and `client`.
    pub(crate) signed: [Signed; 2],
    ca_file: tempfile::NamedTempFile,
    _manager: Process,
}

/// Setup of the agent.
pub(crate) struct Setup<'s> {
    pub(crate) app: SocketAddr,
    pub(crate) app_protocol: &'s str,
    /// Annotations without their port suffix, which is the app's port.
    pub(crate) annotations: &'s [(&'s str, &'s str)],
    /// Writes further secrets below the given directory.
    pub(crate) secrets: &'s dyn Fn(&Path),
    pub(crate) log_level: &'s str,
}

impl<'s> Setup<'s> {
    pub(crate) fn new(app: SocketAddr, annotations: &'s [(&'s str, &'s str)]) -> Self {
        Self {
            app,
            app_protocol: "",
            annotations,
            secrets: &|_| {},
            log_level: "debug",
        }
    }
}

pub(crate) const TERMINATE: (&str, &str) = ("telepresence.io/downstream-tls-secret", "server");
pub(crate) const ORIGINATE: (&str, &str) = ("telepresence.io/upstream-tls-secret", "client");

impl Fixture {
    pub(crate) fn start(authority: Authority, setup: &Setup<'_>) -> Self {
        let (manager, manager_addr) = start_manager(0);
        let signed = [
            authority.sign(&["app.test"]),
            authority.sign(&["agent-client"]),
        ];
        let port = Port {
            app_protocol: setup.app_protocol.into(),
            ..Port::tcp(setup.app.port(), ports::free())
        };
        let agent = Agent::start(&sidecar(manager_addr, vec![port]), |command| {
            let root = root_of(command);
            let secrets = root.join("downstream-tls");
            authority.write_secret(&secrets.join("server"), &signed[0]);
            authority.write_secret(&secrets.join("client"), &signed[1]);
            (setup.secrets)(&secrets);
            let lines =
                setup
                    .annotations
                    .iter()
                    .map(|(name, value)| match name.contains("inject-") {
                        true => format!("{name}={value:?}\n"),
                        false => format!("{name}.{}={value:?}\n", setup.app.port()),
                    });
            std::fs::create_dir_all(root.join("etc/podinfo")).unwrap();
            std::fs::write(
                root.join("etc/podinfo/annotations"),
                lines.collect::<String>(),
            )
            .unwrap();
            command.env("LOG_LEVEL", setup.log_level);
        });
        agent.ready();
        let ca_file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(ca_file.path(), authority.pem()).unwrap();
        Self {
            manager_addr,
            agent,
            authority,
            signed,
            ca_file,
            _manager: manager,
        }
    }

    /// Starts an intercept for requests with `x-dev: a`.
    pub(crate) fn begin_intercept(&self, local: SocketAddr, flags: &[&str]) -> Process {
        let mut command = Command::new(programs::path("intercept"));
        let port = format!("{}:{}", local.port(), self.agent.sidecar.ports[0].container);
        command.args([
            "create",
            "dev",
            "--workload",
            WORKLOAD,
            "--namespace",
            NAMESPACE,
            "--port",
            &port,
        ]);
        command
            .args([
                "--manager",
                &self.manager_addr.to_string(),
                "--http-header=x-dev=a",
            ])
            .args(flags);
        Process::start("intercept", &mut command)
    }

    /// The same, and waits until it is active.
    pub(crate) fn intercept(&self, local: SocketAddr, flags: &[&str]) -> Process {
        let process = self.begin_intercept(local, flags);
        process.line("state=ACTIVE");
        process.line("direct=connected");
        self.agent.serves("dev");
        process
    }

    /// curl's answer to a request for `https://app.test/`, or what it complained of.
    pub(crate) fn curl(&self, args: &[&str]) -> Result<String, String> {
        let port = self.agent.address().port();
        let mut command = Command::new("curl");
        command
            .args(["-sS", "--max-time", "30", "--cacert"])
            .arg(self.ca_file.path())
            .args(args);
        command.args([
            "--resolve",
            &format!("app.test:{port}:127.0.0.1"),
            &format!("https://app.test:{port}/"),
        ]);
        said(command)
    }
}

/// Returns the output of a command, or its error.
pub(crate) fn said(mut command: Command) -> Result<String, String> {
    let output = command.stdin(Stdio::null()).output().unwrap();
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout).unwrap()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

fn root_of(command: &Command) -> PathBuf {
    let mut args = command.get_args().skip_while(|arg| *arg != "--root");
    PathBuf::from(args.nth(1).unwrap())
}
