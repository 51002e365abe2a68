//! The manager in a cluster: watches, the webhook, certificates, roll-outs, and agents on demand.
//!
//! The core knows nothing of Kubernetes; it asks this, where there is one, for agents, workloads and
//! the cluster's facts. `caches` hold what `feed` brings; `wishes` say who is to have an agent;
//! `planner` makes plans of both; `admission` gives pods theirs, `rollout` replaces pods that are
//! not as planned, and `ensure` waits for what comes of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use injector::Wanted;
use k8s_openapi::api::core::v1::Namespace;
use kube::client::ClientBuilder;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::{Instant, interval};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::layer::layer_fn;
use traffic_proto::manager as pb;

use crate::listen::bind_everywhere;
use crate::registry::{Registry, Shared};
use admission::{Admission, AdmissionCounts};
use agents_map::AgentsMap;
use announce::{Announcer, Told};
use caches::{Caches, Key};
use certificates::{Keeper, Served};
use config_maps::ConfigMaps;
use feed::Feeds;
use gate::Gate;
use lease::Candidate;
use networks::Networks;
use planner::Planner;
use read_timeout::ReadTimeout;
use rollout::Roller;
use saved_state::SavedState;
use traffic_proto::sync::lock;
use webhook::Webhook;
use wishes::Wishes;

mod admission;
mod agents_map;
mod announce;
mod answer;
mod caches;
mod certificates;
mod config_maps;
mod ensure;
pub(crate) mod env;
mod events;
mod explain;
mod feed;
pub(crate) mod gate;
mod goals;
mod lean;
mod lease;
mod mesh;
mod networks;
mod objects;
mod planner;
mod prepare;
mod quantity;
mod read_timeout;
mod removal;
mod replacing;
mod retry;
mod rollout;
mod saved_state;
mod selector;
mod standby;
mod standing;
mod store;
mod surge;
mod turn;
mod webhook;
mod wishes;
mod workloads;

pub(crate) use admission::Review;
pub use env::ClusterSettings;
pub use explain::ClusterCommand;

/// How long a prepared replacement waits for its intercept.
const PREPARED_TIMEOUT: Duration = Duration::from_secs(60);
/// How often idle agents and ended replacements are looked for.
const KEEP_INTERVAL: Duration = Duration::from_secs(5);

/// The manager's view of its cluster.
pub(crate) struct Cluster {
    settings: ClusterSettings,
    client: Client,
    shared: Arc<Shared>,
    caches: Arc<Caches>,
    wishes: Arc<Wishes>,
    state: Arc<SavedState>,
    planner: Planner,
    roller: Arc<Roller>,
    announcer: Announcer,
    maps: Arc<ConfigMaps>,
    info: watch::Sender<pb::ClusterInfo>,
    served: Arc<Served>,
    admissions: Arc<AdmissionCounts>,
    gate: Option<Arc<Gate>>,
    /// Replacements that were prepared, and whose intercept is still to come.
    prepared: Mutex<BTreeMap<String, Instant>>,
}

/// What metrics show of the cluster's part.
#[derive(Clone, Debug)]
pub(crate) struct Figures {
    /// Seconds until the webhook's certificate ends.
    pub(crate) certificate_seconds: Option<i64>,
    /// Admission reviews by verdict.
    pub(crate) reviews: [(&'static str, u64); 3],
    /// Workloads that have an agent on demand.
    pub(crate) workloads: usize,
    /// Workloads whose pods are being replaced.
    pub(crate) rolling: usize,
}

/// The reason why a manager cannot work in its cluster.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// No way to the API server.
    #[error(
        "no access to the API server: {0}; run in a pod with a ServiceAccount, or name a kubeconfig"
    )]
    Config(String),
    /// The API server does not answer.
    #[error("the API server does not answer: {0}")]
    Unreachable(kube::Error),
    /// The webhook's port is taken.
    #[error("MUTATOR_WEBHOOK_PORT={0}: cannot listen: {1}; choose another port")]
    WebhookPort(u16, std::io::Error),
}

/// A client for the API server, from the pod's service account, else from the kubeconfig.
///
/// # Errors
/// There is neither.
async fn client() -> Result<Client, ClusterError> {
    let failed = |error: &dyn std::fmt::Display| ClusterError::Config(error.to_string());
    let config = kube::Config::infer().await.map_err(|it| failed(&it))?;
    let builder = ClientBuilder::try_from(config).map_err(|it| failed(&it))?;
    Ok(builder.with_layer(&layer_fn(ReadTimeout)).build())
}

impl Cluster {
    /// Starts everything, and returns when the watches have brought what there is.
    pub(crate) async fn start(
        mut settings: ClusterSettings,
        client: Client,
        shared: Arc<Shared>,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<Arc<Self>, ClusterError> {
        let version = client.apiserver_version().await;
        let version = version.map_err(ClusterError::Unreachable)?;
        tracing::info!(version = version.git_version, "cluster");
        settings.injector.server_version = numbers(&version.major, &version.minor);
        let caches = Caches::new(&settings.kinds);
        let wishes = Arc::new(Wishes::default());
        let planner = Planner::new(caches.clone(), wishes.clone(), settings.injector.clone());
        let maps = Arc::new(ConfigMaps::new(shared.excluded_env()));
        // Before the feeds start: the selector decides what they watch.
        maps.load(&client, &settings.namespace).await;
        let announcer = Announcer::new(client.clone(), &settings.pod_name);
        let state = SavedState::new(client.clone(), &settings.namespace, wishes.clone());
        let state = Arc::new(state);
        let roller = Roller::new(
            client.clone(),
            planner.clone(),
            announcer.clone(),
            state.clone(),
            &settings,
            tasks.clone(),
            stop.clone(),
        );
        let cluster = Arc::new(Self {
            client: client.clone(),
            shared,
            caches: caches.clone(),
            wishes,
            state,
            planner,
            roller,
            announcer,
            maps,
            info: watch::Sender::new(pb::ClusterInfo::default()),
            served: Arc::default(),
            admissions: Arc::default(),
            gate: Gate::new(&settings, client.clone(), caches.clone()),
            prepared: Mutex::default(),
            settings,
        });
        let feeds = Feeds::new(client, caches, tasks.clone(), stop.clone());
        feeds.start(&cluster.settings, cluster.maps.selector.subscribe());
        // A decision on half of the pods and services would be a wrong one.
        feeds.synced().await;
        tracing::info!(
            pods = cluster.caches.pods.len(),
            services = cluster.caches.services.len(),
            "watching"
        );
        Ok(cluster)
    }

    /// Figures for metrics.
    pub(crate) fn figures(&self) -> Figures {
        let counts = &self.admissions;
        let read = |it: &AtomicU64| it.load(Ordering::Relaxed);
        Figures {
            certificate_seconds: self.served.seconds_left(),
            reviews: [
                ("injected", read(&counts.injected)),
                ("skipped", read(&counts.skipped)),
                ("refused", read(&counts.refused)),
            ],
            workloads: self.wishes.all().len(),
            rolling: self.roller.active(),
        }
    }

    /// The gate of the API; none: everybody may call.
    pub(crate) fn gate(&self) -> Option<Arc<Gate>> {
        self.gate.clone()
    }

    /// The last admission reviews, newest first.
    pub(crate) fn reviews(&self) -> Vec<Review> {
        self.admissions.last()
    }

    /// This manager's part in the election of the one that leads.
    pub(crate) fn candidate(&self) -> Candidate {
        let settings = &self.settings;
        let (namespace, pod) = (&settings.namespace, &settings.pod_name);
        Candidate::new(&self.client, namespace, pod, settings.pod_ip)
    }

    /// Port of the webhook; 0: there is none.
    pub(crate) fn webhook_port(&self) -> u16 {
        self.settings.webhook_port
    }

    /// Takes over from an earlier manager, and starts everything that writes.
    pub(crate) async fn lead(
        self: &Arc<Self>,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<(), ClusterError> {
        let namespace = &self.settings.namespace;
        // Again: the earlier leader may have written since this one started.
        if let Some(map) = self.maps.load(&self.client, namespace).await {
            self.state.load(&map).await;
        }
        self.adopt();
        let known = self.wishes.all().len();
        tracing::info!(workloads = known, "looking after workloads with an agent");
        self.start_tasks(tasks, stop).await
    }

    async fn start_tasks(
        self: &Arc<Self>,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<(), ClusterError> {
        let until_stop = |task: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>| {
            let stop = stop.clone();
            tasks.spawn(async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = task => {}
                }
            });
        };
        let networks = Networks {
            client: self.client.clone(),
            caches: self.caches.clone(),
            settings: self.settings.clone(),
            info: self.info.clone(),
        };
        until_stop(Box::pin(async move { networks.run().await }));
        let this = self.clone();
        until_stop(Box::pin(async move {
            let namespace = &this.settings.namespace;
            this.maps.follow(&this.client, namespace).await;
        }));
        let this = self.clone();
        until_stop(Box::pin(async move { this.state.save_changes().await }));
        let this = self.clone();
        until_stop(Box::pin(async move { this.keep().await }));
        if self.settings.webhook_port == 0 {
            return Ok(());
        }
        // The certificate first, so that the webhook's first call finds one.
        let keeper = Keeper::new(self.client.clone(), &self.settings, self.served.clone());
        until_stop(Box::pin(async move { keeper.run().await }));
        self.start_webhook(tasks, stop).await?;
        // Behind the webhook: pods that are replaced without it would come without an agent.
        let roller = self.roller.clone();
        until_stop(Box::pin(async move { roller.run().await }));
        if self.planner.settings.carrier == injector::Carrier::ConfigMap {
            let (client, planner) = (self.client.clone(), self.planner.clone());
            let maps = AgentsMap::new(client, planner, self.settings.managed.clone());
            until_stop(Box::pin(maps.run()));
        }
        Ok(())
    }

    async fn start_webhook(
        self: &Arc<Self>,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<(), ClusterError> {
        let port = self.settings.webhook_port;
        let listener = bind_everywhere(port).await;
        let listener = listener.map_err(|error| ClusterError::WebhookPort(port, error))?;
        let webhook = Webhook {
            cluster: self.clone(),
            admission: Admission {
                client: self.client.clone(),
                planner: self.planner.clone(),
                counts: self.admissions.clone(),
            },
            certificates: self.served.clone(),
            tasks: tasks.clone(),
            stop: stop.clone(),
            limits: self.shared.limits.clone(),
        };
        tasks.spawn(Arc::new(webhook).run(listener));
        Ok(())
    }

    /// The webhook can be called, where there is one.
    pub(crate) fn is_ready(&self) -> bool {
        self.settings.webhook_port == 0 || self.served.is_ready()
    }

    /// Uid of the manager's namespace, by which clients know the cluster.
    pub(crate) async fn id(client: &Client, namespace: &str) -> Option<String> {
        let api: Api<Namespace> = Api::all(client.clone());
        match api.get(namespace).await {
            Ok(namespace) => namespace.metadata.uid,
            Err(error) => {
                tracing::warn!(namespace, "its uid cannot be read: {error}");
                None
            }
        }
    }

    /// Takes over workloads whose pods have an agent already: an earlier manager put it there.
    fn adopt(&self) {
        let mut found = BTreeSet::new();
        self.caches.pods.each(|pod| {
            if pod.digest.is_some() && pod.is_live() {
                found.insert((pod.namespace.clone(), pod.controller.clone()));
            }
        });
        for (namespace, controller) in found {
            if let caches::Owners::Found(workload, _) = self.caches.owners(&namespace, controller) {
                self.wishes.want(&workload.key(), SystemTime::now());
            }
        }
    }

    /// Facts of the cluster, as they change.
    pub(crate) fn info(&self) -> watch::Receiver<pb::ClusterInfo> {
        self.info.subscribe()
    }

    /// The chart's client configuration, with the namespaces that can be used.
    pub(crate) fn client_config(&self) -> Bytes {
        let config = self.maps.client_config.borrow().clone();
        let managed = &self.settings.managed;
        if managed.is_empty() || String::from_utf8_lossy(&config).contains("mappedNamespaces") {
            return config;
        }
        let text = String::from_utf8_lossy(&config);
        let added = format!("mappedNamespaces: [{}]", managed.join(", "));
        let with_group = text.lines().any(|it| it.trim_end() == "cluster:");
        Bytes::from(match with_group {
            true => text.replacen("cluster:", &format!("cluster:\n  {added}"), 1),
            false => format!("{text}\ncluster:\n  {added}\n"),
        })
    }

    /// Port of the REST API that agents offer to apps.
    pub(crate) fn rest_api_port(&self) -> u16 {
        self.planner.settings.api_port
    }

    /// The agent's image.
    pub(crate) fn agent_image(&self) -> String {
        self.planner.settings.image.clone()
    }

    /// Hears of changes of the cluster's objects.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.caches.changes()
    }

    /// Asks for the replacement of containers; it lasts as long as the intercept.
    fn replacing(&self, key: &Key, intercept: &str, containers: BTreeSet<String>) {
        let mut prepared = lock(&self.prepared);
        prepared.insert(intercept.to_owned(), Instant::now());
        drop(prepared);
        if self.wishes.replace(key, intercept, containers) {
            self.caches.touch(&key.namespace);
        }
    }

    /// Ends the wait for the intercept of a replacement: the intercept is there, and the replacement
    /// ends with it, or it will not come, and the replacement ends now.
    pub(crate) fn settle(&self, intercept: &str) {
        let mut prepared = lock(&self.prepared);
        prepared.remove(intercept);
        drop(prepared);
        self.restore_ended();
    }

    fn restore_ended(&self) {
        let prepared = {
            let mut prepared = lock(&self.prepared);
            prepared.retain(|_, since| since.elapsed() < PREPARED_TIMEOUT);
            prepared.clone()
        };
        let live: BTreeSet<String> = self
            .shared
            .read(|registry| registry.intercepts.iter().map(|it| it.id.clone()).collect());
        let is_live = |id: &str| live.contains(id) || prepared.contains_key(id);
        for key in self.wishes.restore(is_live) {
            self.caches.touch(&key.namespace);
        }
    }

    /// Looks after replacements, use and idleness.
    async fn keep(&self) {
        let mut ticks = interval(KEEP_INTERVAL);
        let mut changes = self.shared.changes();
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                _ = changes.changed() => changes.mark_unchanged(),
            }
            self.restore_ended();
            let now = SystemTime::now();
            let longest = self.settings.max_idle_time;
            for key in self.shared.read(|registry| self.in_use(registry)) {
                let longest = longest.unwrap_or(Duration::MAX);
                self.wishes.used(&key, now, longest);
            }
            let Some(longest) = longest else { continue };
            for key in self.wishes.idle(now, longest) {
                tracing::info!(workload = %key, "agent not used for long, removing it");
                let note = "the agent has not been used for long and is removed";
                self.announcer
                    .tell(&self.caches, &key, Told::Idle, note)
                    .await;
                self.wishes.release(&key);
                self.caches.touch(&key.namespace);
            }
        }
    }

    /// Workloads with an intercept.
    fn in_use(&self, registry: &Registry) -> Vec<Key> {
        let specs = registry.intercepts.iter().filter_map(|it| it.spec.as_ref());
        let wanted = |key: &Key| self.wishes.of(key) != Wanted::No;
        specs
            .flat_map(|spec| self.caches.named(&spec.namespace, &spec.agent))
            .map(|workload| workload.key())
            .filter(wanted)
            .collect()
    }
}

/// Versions of some clouds end in a plus sign.
fn numbers(major: &str, minor: &str) -> Option<(u32, u32)> {
    let number = |text: &str| {
        let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok()
    };
    Some((number(major)?, number(minor)?))
}
