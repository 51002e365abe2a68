//! Flags of `intercept genyaml`, spelled as the stock client's.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::cluster::kubeconfig::DEFAULT_MANAGER_NAMESPACE;
use crate::flags::cluster::ClusterFlags;

/// Parts of a workload with an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Entry for the ConfigMap telepresence-agents
    Config,
    /// The agent's container
    Container,
    /// The init container that redirects numeric ports
    Initcontainer,
    /// Volumes to add to the template
    Volume,
    /// Annotations of the template
    Annotations,
    /// The workload itself, with everything in it
    Workload,
}

/// Flags of `genyaml`.
#[derive(Debug, Args)]
pub struct Genyaml {
    /// Part to print
    pub part: Part,
    /// Workload in the cluster: NAME or KIND/NAME
    #[arg(
        long,
        short,
        value_name = "[KIND/]NAME",
        required_unless_present = "input"
    )]
    pub workload: Option<String>,
    /// Manifest with the workload, and the Services that select its pods; - is standard input
    #[arg(long, short, value_name = "FILE", conflicts_with = "workload")]
    pub input: Option<PathBuf>,
    /// File to write; - is standard output
    #[arg(long, short, value_name = "FILE", default_value = "-")]
    pub output: PathBuf,
    /// Namespace of the workload; by default the kubeconfig context's
    #[arg(long, short, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// Image of the agent
    #[arg(long, value_name = "IMAGE", default_value = concat!("localhost/traffic-agent:", env!("CARGO_PKG_VERSION")))]
    pub agent_image: String,
    /// First port of the agent
    #[arg(long, value_name = "PORT", default_value_t = 9900)]
    pub agent_port: u16,
    /// Port of the traffic-manager
    #[arg(long, value_name = "PORT", default_value_t = 8081)]
    pub manager_port: u16,
    /// Log level of the agent
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub loglevel: String,
    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterFlags,
}

impl Genyaml {
    pub(crate) fn manager_namespace(&self) -> &str {
        let named = self.cluster.manager_namespace.as_deref();
        named.unwrap_or(DEFAULT_MANAGER_NAMESPACE)
    }
}
