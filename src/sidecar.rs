//! An agent's configuration as the injector would write it.

use std::net::SocketAddr;

/// Facts about a pod for its agent.
#[derive(Clone, Debug)]
pub struct Sidecar {
    /// Workload and agent name.
    pub workload: String,
    /// Namespace of the workload.
    pub namespace: String,
    /// Address of the manager.
    pub manager: SocketAddr,
    /// Ports of the only app container.
    pub ports: Vec<Port>,
    /// Further top-level keys, as YAML.
    pub extra: String,
}

/// A container port and the agent's port in front of it.
#[derive(Clone, Debug)]
pub struct Port {
    /// Name of the container port; may be empty.
    pub name: String,
    /// Port the app listens on.
    pub container: u16,
    /// Port the agent listens on.
    pub agent: u16,
    /// `TCP` or `UDP`.
    pub protocol: &'static str,
    /// Declared protocol; empty when undeclared.
    pub app_protocol: String,
    /// The container port is redirected by agent-init.
    pub numeric: bool,
}

impl Port {
    /// Creates a TCP port of undeclared protocol.
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
    /// Returns the configuration as YAML.
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
