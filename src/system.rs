//! The whole system on loopback: a manager, an agent in front of an app, and workstations with
//! intercepts, each a separate process.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;

use crate::apps::App;
use crate::process::Process;
use crate::sidecar::{Port, Sidecar};
use crate::wait::until;
use crate::{caller, ports, programs};

/// Workload name of the systems.
pub const WORKLOAD: &str = "hello";
/// Namespace of the workload.
pub const NAMESPACE: &str = "default";

/// A manager, an agent and an app.
#[derive(Debug)]
pub struct System {
    /// The manager, which may be stopped and started again.
    pub manager: Process,
    /// Address of the manager.
    pub manager_address: SocketAddr,
    /// The agent.
    pub agent: Agent,
    /// The app behind it.
    pub app: App,
}

impl System {
    /// Starts all three; returns when the agent has arrived at the manager.
    pub fn start() -> Self {
        Self::start_with(|_| {}, |_| {})
    }

    /// Starts all three with changes to the agent's configuration and command.
    pub fn start_with(
        configure: impl FnOnce(&mut Sidecar),
        arrange: impl FnOnce(&mut Command),
    ) -> Self {
        let (manager, manager_address) = start_manager(0);
        let app = App::start("app");
        let mut sidecar = sidecar(
            manager_address,
            vec![Port::tcp(app.address().port(), ports::free())],
        );
        configure(&mut sidecar);
        let agent = Agent::start(&sidecar, arrange);
        agent.ready();
        Self {
            manager,
            manager_address,
            agent,
            app,
        }
    }

    /// Returns the address at which callers reach the pod's first port.
    pub fn address(&self) -> SocketAddr {
        self.agent.address()
    }

    /// Creates an intercept whose requests go to `local`; returns when it is active. `flags` are
    /// the client's own, such as `--http-header=x-dev=a`; with `--no-direct` all connections come
    /// through the manager, else this waits until the agent is attached directly.
    pub fn intercept(&self, name: &str, local: SocketAddr, flags: &[&str]) -> Process {
        self.attach("create", name, local, flags)
    }

    /// Makes an attachment by a command of the client's, such as `wiretap`; as [`Self::intercept`].
    pub fn attach(&self, command: &str, name: &str, local: SocketAddr, flags: &[&str]) -> Process {
        let container_port = self.agent.sidecar.ports[0].container;
        let port = format!("{}:{container_port}", local.port());
        let process = self.begin(command, name, &port, flags);
        process.line("state=ACTIVE");
        if !flags.contains(&"--no-direct") {
            process.line("direct=connected");
        }
        self.agent.serves(name);
        process
    }

    /// Starts a client that creates an intercept, without waiting for it.
    pub fn begin_intercept(&self, name: &str, port: &str, flags: &[&str]) -> Process {
        self.begin("create", name, port, flags)
    }

    fn begin(&self, verb: &str, name: &str, port: &str, flags: &[&str]) -> Process {
        let mut command = Command::new(programs::path("intercept"));
        command.args([
            verb,
            name,
            "--workload",
            WORKLOAD,
            "--namespace",
            NAMESPACE,
            "--port",
            port,
        ]);
        command
            .args(["--manager", &self.manager_address.to_string()])
            .args(flags);
        Process::start(&format!("intercept {name}"), &mut command)
    }

    /// Restarts the stopped manager on its port.
    pub fn restart_manager(&mut self) {
        self.manager = start_manager(self.manager_address.port()).0;
    }
}

/// Starts a manager on loopback; port 0 means any. Returns when it listens.
pub fn start_manager(port: u16) -> (Process, SocketAddr) {
    start_manager_with(port, &[])
}

/// Starts a manager with further flags, such as `--client-ttl=3s`.
pub fn start_manager_with(port: u16, flags: &[&str]) -> (Process, SocketAddr) {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut command = Command::new(programs::path("traffic-manager"));
    command
        .args(["--listen", &address.to_string(), "--log-level", "debug"])
        .args(flags);
    let manager = Process::start("traffic-manager", &mut command);
    let line = manager.line("listening=");
    let address = line.trim_start_matches("listening=").parse().unwrap();
    (manager, address)
}

/// Returns the usual configuration of an agent in front of these ports.
pub fn sidecar(manager: SocketAddr, ports: Vec<Port>) -> Sidecar {
    Sidecar {
        workload: WORKLOAD.into(),
        namespace: NAMESPACE.into(),
        manager,
        ports,
        extra: String::new(),
    }
}

/// An agent with its own file tree.
#[derive(Debug)]
pub struct Agent {
    /// The running agent.
    pub process: Process,
    /// Configuration of the agent.
    pub sidecar: Sidecar,
    /// Root of the pod's file system.
    pub root: TempDir,
    /// Name of the pod.
    pub pod: String,
}

impl Agent {
    /// Starts an agent as in a pod, without waiting; `arrange` may change the command, whose
    /// environment holds only what the injector sets.
    pub fn start(sidecar: &Sidecar, arrange: impl FnOnce(&mut Command)) -> Self {
        static PODS: AtomicU32 = AtomicU32::new(0);
        let root = tempfile::tempdir().unwrap();
        let config = root.path().join("config.yaml");
        std::fs::write(&config, sidecar.yaml()).unwrap();
        let pod = format!(
            "{}-{}-{}",
            sidecar.workload,
            std::process::id(),
            PODS.fetch_add(1, Ordering::Relaxed)
        );
        let mut command = Command::new(programs::path("traffic-agent"));
        command
            .arg("agent")
            .arg("--config")
            .arg(&config)
            .arg("--root")
            .arg(root.path());
        command
            .env_clear()
            .env("LOG_LEVEL", "debug")
            .env("_TEL_AGENT_POD_IP", Ipv4Addr::LOCALHOST.to_string());
        command
            .env("_TEL_AGENT_NAME", &pod)
            .env("_TEL_AGENT_POD_UID", format!("uid-{pod}"));
        command
            .env("AGENT_ENVOY_SERVER_PORT", "0")
            .env("AGENT_ENVOY_ADMIN_PORT", "0");
        arrange(&mut command);
        let process = Process::start("traffic-agent", &mut command);
        Self {
            process,
            sidecar: sidecar.clone(),
            root,
            pod,
        }
    }

    /// Waits until it has arrived at the manager.
    pub fn ready(&self) {
        let file = self.root.path().join("tmp/agent/ready");
        until("the agent to arrive at the manager", || {
            assert!(self.process.is_running(), "the agent has ended");
            file.exists().then_some(())
        });
    }

    /// Returns the address at which callers reach its first port.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.sidecar.ports[0].agent))
    }

    /// Waits until the agent serves the intercept `name`: it learns of it by its own snapshot,
    /// which may come after the client's.
    pub fn serves(&self, name: &str) {
        let served = format!("\"name\": \"{name}\"");
        until("the agent to serve the intercept", || {
            let page = caller::get(self.admin(), "/intercepts", &[]).ok()?;
            let page = String::from_utf8_lossy(&page.body);
            page.contains(&served).then_some(())
        });
    }

    /// Returns the sum of all statistics whose names end like this, such as
    /// `.fail_open.dial_timeout`.
    pub fn stat(&self, name: &str) -> u64 {
        let page = caller::get(self.admin(), "/stats", &[]).expect("the admin answers");
        let page = String::from_utf8_lossy(&page.body).into_owned();
        let values = page
            .lines()
            .filter_map(|line| line.split_once(": "))
            .filter(|(key, _)| key.ends_with(name));
        let values: Vec<u64> = values.map(|(_, value)| value.parse().unwrap()).collect();
        assert!(!values.is_empty(), "no statistic is called {name}:\n{page}");
        values.iter().sum()
    }

    /// Returns the address of its admin.
    pub fn admin(&self) -> SocketAddr {
        self.server("admin")
    }

    /// Returns the address of its gRPC API.
    pub fn api(&self) -> SocketAddr {
        self.server("server")
    }

    fn server(&self, name: &str) -> SocketAddr {
        let file: PathBuf = self.root.path().join("tmp/agent/ports.json");
        let port = until("the agent's ports.json", || {
            let ports: serde_json::Value =
                serde_json::from_slice(&std::fs::read(&file).ok()?).ok()?;
            u16::try_from(ports[name].as_u64()?).ok()
        });
        SocketAddr::from((Ipv4Addr::LOCALHOST, port))
    }
}
