//! The life of a manager in a cluster: it passes connections on until it is its turn to lead, then it
//! serves until it is told to stop or another one leads.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::standby::relay;
use super::{Cluster, ClusterError, ClusterSettings, client};
use crate::registry::Shared;
use crate::serve::{Bound, Ended, ServeError};
use crate::settings::Settings;

/// Pause before the API server is asked again.
const RETRY_DELAY: Duration = Duration::from_secs(1);
/// Time connections wait for a manager that starts.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(5);

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
    /// Starts what a cluster needs; tries again while the API server is away, but where somebody
    /// starts the program by hand.
    async fn start(
        &self,
        settings: ClusterSettings,
        client: Client,
        shared: &Arc<Shared>,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<Arc<Cluster>, ServeError> {
        let is_by_hand = self.is_new && settings.pod_name.is_empty();
        let mut said = None;
        loop {
            if let Some(id) = Cluster::id(&client, &settings.namespace).await {
                shared.change(|registry| registry.identify(id));
            }
            let (settings, client) = (settings.clone(), client.clone());
            match Cluster::start(settings, client, shared.clone(), tasks, stop).await {
                Err(error @ ClusterError::Unreachable(_)) if !is_by_hand => {
                    let text = error.to_string();
                    if said.as_ref() != Some(&text) {
                        tracing::warn!("{text}; trying again");
                        said = Some(text);
                    }
                    sleep(RETRY_DELAY).await;
                }
                started => return Ok(started?),
            }
        }
    }

    /// Closes connections if the start takes long: those that wait would fill the listener's queue,
    /// and the kubelet would take the manager for a dead one.
    async fn reject_connections(&self, webhook_port: u16) -> Infallible {
        sleep(QUEUE_TIMEOUT).await;
        let leader = watch::Sender::new(None);
        relay(&self.listener, webhook_port, leader.subscribe()).await
    }

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
        let cluster = tokio::select! {
            () = outer.cancelled() => return Ok(Ended::Stopped),
            cluster = self.start(settings.clone(), client, &shared, &tasks, &stop) => cluster?,
            never = self.reject_connections(settings.webhook_port) => match never {},
        };
        let candidate = cluster.candidate();
        let port = self.address().port();
        let leader = candidate.leader();
        let lease = tokio::select! {
            () = outer.cancelled() => return Ok(Ended::Stopped),
            lease = candidate.acquire(self.is_new, port) => lease,
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
