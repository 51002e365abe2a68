//! The program under test, run in a pod's namespace with a configuration of the test's.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use agent_init::rule::Transport;

use crate::space::{Families, ROOT, Space};

/// The three ways into the kernel, as `--backend` names them.
pub(crate) const BACKENDS: [&str; 3] = ["nft", "iptables-nft", "iptables-legacy"];

/// One port of the configuration.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Port {
    pub(crate) container_port: u16,
    pub(crate) agent_port: u16,
    pub(crate) transport: Transport,
    pub(crate) numeric: bool,
}

impl Port {
    pub(crate) const fn tcp(container_port: u16, agent_port: u16) -> Self {
        Self {
            container_port,
            agent_port,
            transport: Transport::Tcp,
            numeric: true,
        }
    }

    pub(crate) const fn udp(container_port: u16, agent_port: u16) -> Self {
        Self {
            transport: Transport::Udp,
            ..Self::tcp(container_port, agent_port)
        }
    }

    pub(crate) const fn named(self) -> Self {
        Self {
            numeric: false,
            ..self
        }
    }

    /// Port the agent dials to reach the app: it is behind all agent ports.
    pub(crate) fn proxy_port(&self, ports: &[Self]) -> u16 {
        self.agent_port + 11 + u16::try_from(ports.len()).unwrap()
    }
}

/// A configuration as the injector writes it, one container for each port.
pub(crate) fn config(ports: &[Port]) -> String {
    let mut text = String::from(
        "agentName: echo\nnamespace: default\nmanagerHost: \
         traffic-manager.ambassador\nmanagerPort: 8081\nworkloadName: echo\nworkloadKind: \
         Deployment\ncontainers:\n",
    );
    for (at, port) in ports.iter().enumerate() {
        let Port {
            container_port,
            agent_port,
            transport,
            numeric,
        } = port;
        text += &format!(
            "- name: c{at}\n  envPrefix: A{at}_\n  mountPoint: /tel_app_mounts/c{at}\n  \
             intercepts:\n  - serviceName: echo\n    servicePortName: p{at}\n    servicePort: \
             {container_port}\n    targetPortNumeric: {numeric}\n    protocol: {transport}\n    \
             containerPort: {container_port}\n    agentPort: {agent_port}\n"
        );
    }
    text
}

/// The program with its surroundings: a configuration file and an environment.
#[derive(Clone)]
pub(crate) struct Program {
    pub(crate) path: PathBuf,
    pub(crate) arguments: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    /// Command that is put in front of it, such as a tracer.
    pub(crate) under: Vec<String>,
}

impl Program {
    /// Writes this configuration to `dir`, for a pod of these families.
    pub(crate) fn new(dir: &Path, ports: &[Port], families: Families, backend: &str) -> Self {
        let numbers: Vec<_> = ports.iter().take(4).map(|it| it.container_port).collect();
        let file = dir.join(format!("{numbers:?}.yaml"));
        std::fs::write(&file, config(ports)).unwrap();
        let arguments = ["agent-init", "--backend", backend, "--config"]
            .map(str::to_owned)
            .into_iter();
        Self {
            path: env!("CARGO_BIN_EXE_agent-init").into(),
            arguments: arguments.chain([file.display().to_string()]).collect(),
            env: vec![
                ("POD_IP".into(), families.pod()[0].into()),
                ("AGENT_GID".into(), "7439".into()),
            ],
            under: Vec::new(),
        }
    }

    pub(crate) fn env(mut self, key: &str, value: &str) -> Self {
        self.env.retain(|(it, _)| it != key);
        self.env.push((key.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    pub(crate) fn under(mut self, words: &[&str]) -> Self {
        self.under = words.iter().map(|it| (*it).to_owned()).collect();
        self
    }

    /// Adds the file to which the tracer in front writes.
    pub(crate) fn traced_to(mut self, file: &Path) -> Self {
        self.under.push(file.display().to_string());
        self
    }

    /// The command, for those who have more to set.
    pub(crate) fn command(&self) -> Command {
        let mut words: Vec<std::ffi::OsString> = self.under.iter().map(Into::into).collect();
        words.push(self.path.clone().into());
        words.extend(self.arguments.iter().map(Into::into));
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin");
        command.envs(self.env.iter().cloned());
        command
    }

    /// Runs it in `space` to its end.
    pub(crate) fn run(&self, space: &Space) -> Output {
        space.run(ROOT, || self.command().output().unwrap())
    }

    /// Runs it and insists on success; gives what it logged.
    pub(crate) fn must(&self, space: &Space) -> String {
        let done = self.run(space);
        let log = String::from_utf8_lossy(&done.stderr).into_owned();
        let out = String::from_utf8_lossy(&done.stdout).into_owned();
        assert!(
            done.status.success(),
            "{:?}: {}\n{out}{log}",
            self.arguments,
            done.status
        );
        log
    }

    /// Runs it and insists on this exit code; gives what it logged.
    pub(crate) fn must_end_with(&self, space: &Space, code: i32) -> String {
        let done = self.run(space);
        let log = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!(
            done.status.code(),
            Some(code),
            "{:?}\n{log}",
            self.arguments
        );
        log
    }

    /// Takes every rule of ours away.
    pub(crate) fn remove(&self, space: &Space) -> String {
        Self {
            arguments: vec!["--remove".into()],
            ..self.clone()
        }
        .must(space)
    }
}
