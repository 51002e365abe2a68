//! Stands in for `cluster` where the manager is built without Kubernetes (feature `kubernetes`): there
//! is no cluster, so no value of these types, and who asks for one is told.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use traffic_proto::manager::{
    AgentInfo, ClusterInfo, InterceptSpec, PreparedIntercept, WorkloadInfo, workload_info::Kind,
};

use crate::error::RequestError;
use crate::registry::{Registry, Shared};
use crate::serve::{Bound, Ended, ServeError};
use crate::settings::Settings;
use gate::Gate;

pub use env::ClusterSettings;

/// No command takes a cluster.
#[derive(Debug, clap::Subcommand)]
pub enum ClusterCommand {}

impl ClusterCommand {
    /// Runs the command; returns what to print.
    ///
    /// # Errors
    /// None.
    pub async fn run(&self) -> Result<String, String> {
        match *self {}
    }
}

/// Settings of a cluster.
pub(crate) mod env {
    use std::convert::Infallible;
    use std::net::SocketAddr;

    use traffic_proto::{Fault, Faults};

    /// No settings.
    #[derive(Clone, Debug)]
    pub struct ClusterSettings {
        /// Level of the manager's log.
        pub log_level: String,
        /// Port of the webhook.
        pub webhook_port: u16,
        /// Variables that have no effect.
        pub ignored: Vec<String>,
        pub(super) none: Infallible,
    }

    impl ClusterSettings {
        /// Fails.
        ///
        /// # Errors
        /// Always.
        pub fn read(_: impl Fn(&str) -> Option<String>) -> Result<Self, Faults> {
            let mut faults = Faults::default();
            faults.push(Fault::missing(
                "--cluster",
                "the manager was built without Kubernetes",
                "build it with the feature kubernetes",
            ));
            Err(faults)
        }

        /// Address and port of the API.
        pub fn listen(&self) -> SocketAddr {
            match self.none {}
        }
    }
}

impl Settings {
    /// Settings of a manager in a cluster.
    pub fn of_cluster(cluster: ClusterSettings) -> Self {
        match cluster.none {}
    }
}

impl Bound {
    pub(crate) async fn in_cluster(
        self,
        settings: ClusterSettings,
        _: Arc<Shared>,
        _: TaskTracker,
        _: CancellationToken,
        _: CancellationToken,
    ) -> Result<Ended, ServeError> {
        match settings.none {}
    }
}

/// No error.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {}

/// No figures of a cluster.
#[derive(Clone, Debug)]
pub(crate) struct Figures {
    pub(crate) certificate_seconds: Option<i64>,
    pub(crate) reviews: [(&'static str, u64); 3],
    pub(crate) workloads: usize,
    pub(crate) rolling: usize,
}

/// No review.
#[derive(Clone, Debug)]
pub(crate) struct Review {
    pub(crate) at: SystemTime,
    pub(crate) namespace: String,
    pub(crate) pod: String,
    pub(crate) verdict: &'static str,
    pub(crate) reasons: String,
}

/// No cluster.
pub(crate) struct Cluster(Infallible);

impl Cluster {
    pub(crate) fn is_ready(&self) -> bool {
        match self.0 {}
    }

    pub(crate) fn gate(&self) -> Option<Arc<Gate>> {
        match self.0 {}
    }

    pub(crate) fn figures(&self) -> Figures {
        match self.0 {}
    }

    pub(crate) fn reviews(&self) -> Vec<Review> {
        match self.0 {}
    }

    pub(crate) fn info(&self) -> watch::Receiver<ClusterInfo> {
        match self.0 {}
    }

    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        match self.0 {}
    }

    pub(crate) fn client_config(&self) -> Bytes {
        match self.0 {}
    }

    pub(crate) fn rest_api_port(&self) -> u16 {
        match self.0 {}
    }

    pub(crate) fn workload_kinds(&self) -> Vec<Kind> {
        match self.0 {}
    }

    pub(crate) fn workload_infos(&self, _: &Registry, _: &str) -> BTreeMap<String, WorkloadInfo> {
        match self.0 {}
    }

    pub(crate) async fn kind_of(&self, _: &str, _: &str, _: &str) -> String {
        match self.0 {}
    }

    pub(crate) async fn ensure_agents(
        &self,
        _: &str,
        _: &str,
    ) -> Result<Vec<AgentInfo>, RequestError> {
        match self.0 {}
    }

    pub(crate) async fn remove_agents(&self, _: &str, _: &[String]) -> Result<(), RequestError> {
        match self.0 {}
    }

    pub(crate) async fn prepare(
        &self,
        _: &str,
        _: &InterceptSpec,
    ) -> Result<PreparedIntercept, RequestError> {
        match self.0 {}
    }

    pub(crate) async fn complete(
        &self,
        _: &str,
        _: &mut InterceptSpec,
    ) -> Result<(), RequestError> {
        match self.0 {}
    }

    pub(crate) fn settle(&self, _: &str) {
        match self.0 {}
    }
}

pub(crate) mod gate {
    use std::convert::Infallible;
    use std::sync::Arc;

    use tonic::Status;

    use crate::identity::{Credential, Identity};
    use crate::rights::Right;

    /// No gate: everybody may call.
    pub(crate) struct Gate(Infallible);

    impl Gate {
        pub(crate) fn is_enforcing(&self) -> bool {
            match self.0 {}
        }

        pub(crate) fn mode(&self) -> &'static str {
            match self.0 {}
        }

        pub(crate) fn refuse(&self, _: Status) -> Result<(), Status> {
            match self.0 {}
        }

        pub(crate) async fn identify(&self, _: Credential<'_>) -> Result<Arc<Identity>, Status> {
            match self.0 {}
        }

        pub(crate) async fn may(&self, _: &Identity, _: Right) -> Result<(), Status> {
            match self.0 {}
        }
    }
}
