//! Commands that a client without Kubernetes does not have.

use clap::{Args, Subcommand};

use super::check::check;
use crate::Failure;
use crate::flags::cluster::ClusterFlags;
use crate::genyaml::flags::Genyaml;
use crate::helm::flags::HelmCommand;
use crate::{genyaml, helm};

/// Command that takes a cluster.
#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Install, upgrade or uninstall the traffic-manager
    #[command(subcommand)]
    Helm(HelmCommand),
    /// Look for everything an intercept takes
    Check(Check),
    /// Print the agent of a workload, to put it into a manifest by hand
    Genyaml(Box<Genyaml>),
}

/// Flags of `check`.
#[derive(Debug, Args)]
pub struct Check {
    /// Namespace of the workloads to intercept; by default the context's
    #[arg(long, short, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterFlags,
}

impl ClusterCommand {
    /// Runs the command.
    ///
    /// # Errors
    /// The text is for the user.
    pub async fn run(&self) -> Result<(), Failure> {
        match self {
            Self::Helm(command) => helm::run(command).await,
            Self::Check(flags) => check(&flags.cluster, flags.namespace.as_deref()).await,
            Self::Genyaml(flags) => genyaml::run(flags).await,
        }
    }

    /// Returns true if it ends in an orderly way by itself when the user interrupts it.
    pub fn cleans_up(&self) -> bool {
        matches!(self, Self::Helm(_))
    }
}
