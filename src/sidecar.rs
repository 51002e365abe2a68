//! An agent's configuration, as the injector would write it.

use std::net::SocketAddr;

/// What an agent is told about its pod.
#[derive(Clone, Debug)]
pub struct Sidecar {
    /// Workload and agent name.
    pub workload: String,
    /// Namespace of the workload.
    pub namespace: String,
    /// Where the manager is.
    pub manager: SocketAddr,
    /// The ports of the one app container.
    pub ports: Vec<Port>,
    /// Further top-level keys, as YAML.
    pub extra: String,
}

/// A container port and the agent's in front of it.
#[derive(Clone, Debug)]
pub struct Port {
    /// Name of the container port; may be empty.
    pub name: String,
    /// Where the app listens.
    pub container: u16,
    /// Where the agent listens.
    pub agent: u16,
    /// `TCP` or `UDP`.
    pub protocol: &'static str,
    /// Declared protocol; empty when undeclared.
    pub app_protocol: String,
    /// Whether agent-init redirects the container port.
    pub numeric: bool,
}

impl Port {
    /// A TCP port of no declared protocol.
    pub fn tcp(container: u16, agent: u16) -> Self {
        Self {
            name: String::new(),
            container,
            agent,
            protocol: "TCP",
            app_protocol: String::new(),
            numeric: false,
        }
    }
}

impl Sidecar {
    /// The configuration as YAML.
    pub fn yaml(&self) -> String {
        let Self {
            workload,
            namespace,
            manager,
            extra,
            ..
        } = self;
        let (host, port) = (manager.ip(), manager.port());
        let mut yaml = format!(
            "agentName: {workload}\nnamespace: {namespace}\nworkloadName: {workload}\nworkloadKind: Deployment\n\
             managerHost: {host:?}\nmanagerPort: {port}\n{extra}\ncontainers:\n- name: app\n  envPrefix: A_\n  \
             mountPoint: /tel_app_mounts/app\n  intercepts:\n",
            host = host.to_string()
        );
        for port in &self.ports {
            yaml += &format!(
                "  - containerPortName: {:?}\n    containerPort: {}\n    agentPort: {}\n    protocol: {}\n    \
                 targetPortNumeric: {}\n    appProtocol: {:?}\n",
                port.name,
                port.container,
                port.agent,
                port.protocol,
                port.numeric,
                port.app_protocol
            );
        }
        yaml
    }
}
