//! Flags that choose a cluster.

use std::path::PathBuf;

use clap::Args;

/// Flags that choose the cluster and its manager.
#[derive(Clone, Debug, Default, Args)]
pub struct ClusterFlags {
    /// Context of the kubeconfig; the current one when left out
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
    /// The kubeconfig; $KUBECONFIG or ~/.kube/config when left out
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Namespace of the traffic-manager; by the kubeconfig's extension telepresence.io, or
    /// ambassador, when left out
    #[arg(long, value_name = "NAMESPACE", env = "TELEPRESENCE_MANAGER_NAMESPACE")]
    pub manager_namespace: Option<String>,
}
