//! The life of a manager in a cluster: it passes connections on until it is its turn to lead, then it
//! serves until it is told to stop or another one leads.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::standby::relay;
use super::{Cluster, ClusterSettings, client};
use crate::registry::Shared;
use crate::serve::{Bound, Ended, ServeError};
use crate::settings::Settings;

impl Settings {
    /// Settings of a manager in a cluster.
    pub fn of_cluster(cluster: ClusterSettings) -> Self {
        let defaults = Self::default();
        let version = match cluster.compatibility.as_str() {
            "" => defaults.version,
            text if text.starts_with('v') => text.to_owned(),
            text => format!("v{text}"),
        };
        Self {
            version,
            namespace: cluster.namespace.clone(),
            client_ttl: cluster.connection_ttl,
            agent_arrival: cluster.arrival_timeout,
            agent_image: cluster.injector.image.clone(),
            max_receive_size: cluster.max_receive_size,
            prometheus_port: cluster.prometheus_port,
            drop_client_label: cluster.drop_client_label,
            cluster: Some(cluster),
            ..Self::default()
        }
    }
}

impl Bound {
    /// Serves the cluster until `outer`; `stop` is what ends with this turn.
    pub(crate) async fn in_cluster(
        self,
        settings: ClusterSettings,
        shared: Arc<Shared>,
        tasks: TaskTracker,
        outer: CancellationToken,
        stop: CancellationToken,
    ) -> Result<Ended, ServeError> {
        let client = client().await?;
        if let Some(id) = Cluster::id(&client, &settings.namespace).await {
            shared.change(|registry| registry.identify(id));
        }
        let cluster = Cluster::start(settings, client, shared.clone(), &tasks, &stop).await?;
        let candidate = cluster.candidate();
        let leader = candidate.leader();
        let lease = tokio::select! {
            () = outer.cancelled() => return Ok(Ended::Stopped),
            lease = candidate.acquire(self.is_new) => lease,
            never = relay(&self.listener, cluster.webhook_port(), leader) => match never {},
        };
        cluster.lead(&tasks, &stop).await?;
        let lost = async {
            match lease {
                Some(lease) => candidate.hold(lease).await,
                None => std::future::pending().await,
            }
        };
        let serving = self.serve(shared, tasks, stop.clone(), Some(cluster));
        tokio::select! {
            served = serving => {
                candidate.release().await;
                served.map(|()| Ended::Stopped)
            }
            () = lost => {
                stop.cancel();
                Ok(Ended::Replaced)
            }
        }
    }
}
