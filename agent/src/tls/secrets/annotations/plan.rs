//! The TLS plan of a port: what annotations say, in types.

use std::path::PathBuf;
use std::time::Duration;

use traffic_proto::fault::{Fault, Faults};

use crate::tls::secrets::secret::SecretSource;

/// A TCP container port of the sidecar configuration.
#[derive(Clone, Debug, Default)]
pub struct AppPort {
    /// Container port number.
    pub container_port: u16,
    /// Service ports that target it.
    pub service_ports: Vec<u16>,
    /// Names of the container port and of the service ports.
    pub names: Vec<String>,
    /// Declared app protocol as written; empty if none.
    pub app_protocol: String,
    /// Mount point of the container's file system in the agent.
    pub mount_point: PathBuf,
}

/// Requirement of a client certificate from callers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallerAuth {
    /// Required: the handshake fails without one.
    Required,
    /// Optional: without one the caller is anonymous; a given one has to be valid.
    Optional,
}

/// TLS towards the app.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ToApp {
    /// Clear text is declared.
    Clear,
    /// TLS is declared.
    Tls,
    /// Undeclared: the app is probed.
    #[default]
    Ask,
}

/// TLS plan of one port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortPlan {
    /// Container port number.
    pub container_port: u16,
    /// Certificates to terminate callers' TLS with, the default first; none: callers' TLS is
    /// relayed.
    pub terminating: Vec<SecretSource>,
    /// An annotation names this port; otherwise callers may well speak clear text.
    pub certain: bool,
    /// Client certificate to present to the app.
    pub originating: Option<SecretSource>,
    /// TLS towards the app.
    pub to_app: ToApp,
    /// Do not verify the app's certificate even if a CA is available.
    pub skip_verify: bool,
    /// Server name to send to the app and to verify, instead of the caller's.
    pub server_name: Option<String>,
    /// Time for the app's answer to a TLS probe.
    pub probe_timeout: Duration,
    /// CA that signs callers' certificates, and whether they have to present one.
    pub caller_ca: Option<(SecretSource, CallerAuth)>,
    /// Request header that carries a verified caller's identity.
    pub identity_header: Option<String>,
}

/// Plans of all ports that have one, with the problems found.
#[derive(Debug, Default)]
pub struct Plans {
    /// Plans in the order of the ports.
    pub ports: Vec<PortPlan>,
    /// Annotations that are invalid.
    pub faults: Faults,
    /// Annotations without effect.
    pub notes: Vec<Fault>,
}
