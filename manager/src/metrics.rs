//! The manager's figures for Prometheus, under the names that dashboards of the stock manager use,
//! and some of our own.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry as Collected;
use tokio_util::sync::CancellationToken;
use traffic_proto::build_info;
use traffic_proto::manager::InterceptDispositionType as Disposition;

use crate::cluster::Cluster;
use crate::intercepts::spec_of;
use crate::registry::{Registry, Shared};
use crate::sessions::Party;

/// Content type of the exposition.
pub(crate) const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Users that have series of their own; all further ones share one.
const MAX_USERS: usize = 1000;
/// States of intercepts whose number is shown also when it is 0.
const STATES: [Disposition; 4] = [
    Disposition::Active,
    Disposition::Waiting,
    Disposition::NoAgent,
    Disposition::AgentError,
];

/// Bytes through tunnels, as workstations and agents report them.
#[derive(Debug, Default)]
pub(crate) struct TunnelBytes {
    ingress: AtomicU64,
    egress: AtomicU64,
    /// Streams of tunnels: a connection between a workstation and an agent has one to each.
    streams: AtomicU64,
    ended: AtomicU64,
    failed: AtomicU64,
}

/// An open stream of a tunnel.
pub(crate) struct OpenStream(Arc<TunnelBytes>);

impl OpenStream {
    /// Counts a refusal or a break.
    pub(crate) fn failed(&self) {
        self.0.failed.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::Relaxed);
    }
}

impl TunnelBytes {
    /// Counts a stream until the result is dropped.
    pub(crate) fn begin(this: &Arc<Self>) -> OpenStream {
        this.streams.fetch_add(1, Ordering::Relaxed);
        OpenStream(this.clone())
    }

    /// Counts one tunnel.
    pub(crate) fn add(&self, ingress: u64, egress: u64) {
        self.ingress.fetch_add(ingress, Ordering::Relaxed);
        self.egress.fetch_add(egress, Ordering::Relaxed);
    }
}

/// A user, as series name them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct User {
    client: String,
    install_id: String,
}

/// All that a scrape shows.
pub(crate) struct Metrics {
    shared: Arc<Shared>,
    bytes: Arc<TunnelBytes>,
    cluster: Option<Arc<Cluster>>,
    users: Mutex<BTreeMap<User, Used>>,
    drop_client: bool,
    prefix: Option<&'static str>,
}

/// A user's sessions and intercepts since the manager's start.
#[derive(Clone, Debug, Default)]
struct Used {
    sessions: Seen,
    /// By the workload.
    intercepts: BTreeMap<String, Seen>,
}

/// Things that are there, and how many there ever were.
#[derive(Clone, Debug, Default)]
struct Seen {
    now: Vec<String>,
    total: u64,
}

impl Seen {
    fn update(&mut self, now: Vec<String>) {
        // Both lists are short: a user has a few sessions.
        let fresh = now.iter().filter(|id| !self.now.contains(id)).count();
        self.total += fresh as u64;
        self.now = now;
    }
}

impl Metrics {
    pub(crate) fn new(
        shared: Arc<Shared>,
        bytes: Arc<TunnelBytes>,
        cluster: Option<Arc<Cluster>>,
        settings: &crate::Settings,
    ) -> Arc<Self> {
        Arc::new(Self {
            shared,
            bytes,
            cluster,
            users: Mutex::default(),
            drop_client: settings.drop_client_label,
            prefix: prefix(&settings.version),
        })
    }

    /// Takes note of users that come and go between two scrapes.
    pub(crate) async fn follow(self: Arc<Self>, stop: CancellationToken) {
        let mut changes = self.shared.changes();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = changes.changed() => {}
            }
            // Before looking: a change that comes meanwhile wakes again.
            changes.mark_unchanged();
            self.look();
        }
    }

    /// All figures as a scraper reads them.
    pub(crate) fn text(self: Arc<Self>) -> Result<String, fmt::Error> {
        let mut text = String::new();
        self.encode(&mut text)?;
        Ok(text)
    }

    fn encode(self: Arc<Self>, into: &mut String) -> fmt::Result {
        self.look();
        let mut stock = match self.prefix {
            Some(prefix) => Collected::with_prefix(prefix),
            None => Collected::default(),
        };
        let mut own = Collected::with_prefix("traffic_manager");
        own.register_collector(Box::new(OwnFigures(self.clone())));
        stock.register_collector(Box::new(StockFigures(self)));
        text::encode_registry(into, &stock)?;
        text::encode(into, &own)
    }

    /// Takes note of who is there.
    fn look(&self) {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        let mut now: BTreeMap<User, Used> = BTreeMap::new();
        self.shared.read(|registry| {
            for (user, session) in sessions(registry, self.drop_client) {
                now.entry(user).or_default().sessions.now.push(session);
            }
            for (user, workload, id) in intercepts(registry, self.drop_client) {
                let used = now.entry(user).or_default();
                used.intercepts.entry(workload).or_default().now.push(id);
            }
        });
        // Users stay with their totals, as counters must, and lose what has ended.
        for used in users.values_mut() {
            used.sessions.now.retain(|id| still(&now, id));
            for seen in used.intercepts.values_mut() {
                seen.now.retain(|id| still_intercepted(&now, id));
            }
        }
        for (user, current) in now {
            let user = match users.len() < MAX_USERS || users.contains_key(&user) {
                true => user,
                false => User {
                    // Names of users are theirs to choose: series must not grow without bound.
                    client: "others".into(),
                    install_id: String::new(),
                },
            };
            let used = users.entry(user).or_default();
            used.sessions.update(current.sessions.now);
            for (workload, seen) in current.intercepts {
                used.intercepts
                    .entry(workload)
                    .or_default()
                    .update(seen.now);
            }
        }
    }
}

fn still(now: &BTreeMap<User, Used>, session: &String) -> bool {
    now.values().any(|it| it.sessions.now.contains(session))
}

fn still_intercepted(now: &BTreeMap<User, Used>, id: &String) -> bool {
    let mut seen = now.values().flat_map(|it| it.intercepts.values());
    seen.any(|it| it.now.contains(id))
}

/// Names had no prefix before 2.24.
fn prefix(version: &str) -> Option<&'static str> {
    let version = semver::Version::parse(version.trim_start_matches('v'));
    // A version that cannot be read is none of the old ones.
    let is_old = version.is_ok_and(|it| it < semver::Version::new(2, 24, 0));
    (!is_old).then_some("telepresence")
}

fn user(client: &str, install_id: &str, drop_client: bool) -> User {
    User {
        client: if drop_client { "" } else { client }.to_owned(),
        install_id: install_id.to_owned(),
    }
}

fn sessions(registry: &Registry, drop_client: bool) -> Vec<(User, String)> {
    let clients = registry.sessions.iter();
    clients
        .filter_map(|(id, session)| match &session.party {
            Party::Client(it) => Some((user(&it.name, &it.install_id, drop_client), id.to_owned())),
            Party::Agent(_) => None,
        })
        .collect()
}

fn intercepts(registry: &Registry, drop_client: bool) -> Vec<(User, String, String)> {
    let all = registry.intercepts.iter();
    all.map(|info| {
        let spec = spec_of(info);
        // The owner's session may have ended before its intercept.
        let client = registry.sessions.client(crate::intercepts::owner(info));
        let install_id = client.map_or("", |it| it.install_id.as_str());
        let user = user(&spec.client, install_id, drop_client);
        (user, spec.agent.clone(), info.id.clone())
    })
    .collect()
}

type Labels = Vec<(&'static str, String)>;

/// Writes the series of one name.
fn write<M: EncodeMetric>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    kind: MetricType,
    series: impl IntoIterator<Item = (Labels, M)>,
) -> fmt::Result {
    let mut written = encoder.encode_descriptor(name, help, None, kind)?;
    for (labels, metric) in series {
        // A metric without labels has one series and no family.
        if labels.is_empty() {
            return metric.encode(written);
        }
        metric.encode(written.encode_family(&labels)?)?;
    }
    Ok(())
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: i64) -> fmt::Result {
    let series = [(Labels::new(), ConstGauge::new(value))];
    write(encoder, name, help, MetricType::Gauge, series)
}

fn counter(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    let series = [(Labels::new(), ConstCounter::new(value))];
    write(encoder, name, help, MetricType::Counter, series)
}

fn count(number: usize) -> i64 {
    // Gauges are signed; no count comes near the limit.
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The stock manager's figures.
struct StockFigures(Arc<Metrics>);

impl fmt::Debug for StockFigures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StockFigures")
    }
}

impl Collector for StockFigures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let metrics = &self.0;
        let (agents, sessions, intercepts) = metrics.shared.read(|registry| {
            let sessions = registry.sessions.iter().count();
            let agents = registry.sessions.agents().count();
            (agents, sessions, registry.intercepts.iter().count())
        });
        let out = &mut encoder;
        // Names and help texts are those of the stock manager, which dashboards know.
        gauge(out, "agent_count", "Connected agents", count(agents))?;
        let clients = count(sessions - agents);
        gauge(out, "client_count", "Connected clients", clients)?;
        gauge(out, "session_count", "Sessions of both", count(sessions))?;
        gauge(
            out,
            "active_intercept_count",
            "Intercepts",
            count(intercepts),
        )?;
        let ingress = metrics.bytes.ingress.load(Ordering::Relaxed);
        let egress = metrics.bytes.egress.load(Ordering::Relaxed);
        counter(out, "tunnel_ingress_bytes", "Bytes to clients", ingress)?;
        counter(out, "tunnel_egress_bytes", "Bytes from clients", egress)?;
        self.of_users(out)
    }
}

impl StockFigures {
    fn of_users(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let users = &self.0.users;
        let users = users.lock().unwrap_or_else(PoisonError::into_inner);
        let labels = |user: &User| -> Labels {
            let mut labels = vec![("install_id", user.install_id.clone())];
            if !self.0.drop_client {
                labels.insert(0, ("client", user.client.clone()));
            }
            labels
        };
        let with = |user: &User, name, value: &str| {
            let mut labels = labels(user);
            labels.push((name, value.to_owned()));
            labels
        };
        let connects = users
            .iter()
            .map(|(user, used)| (labels(user), ConstCounter::new(used.sessions.total)));
        let kind = MetricType::Counter;
        write(out, "connect_count", "Connects", kind, connects)?;
        let created = users.iter().map(|(user, used)| {
            let total: u64 = used.intercepts.values().map(|it| it.total).sum();
            let labels = with(user, "intercept_type", "global");
            (labels, ConstCounter::new(total))
        });
        write(out, "intercept_count", "Intercepts", kind, created)?;
        let is_there = |seen: &Seen| ConstGauge::new(i64::from(!seen.now.is_empty()));
        let kind = MetricType::Gauge;
        let connected = users
            .iter()
            .map(|(user, used)| (labels(user), is_there(&used.sessions)));
        write(
            out,
            "connect_active_status",
            "Is connected",
            kind,
            connected,
        )?;
        let intercepting = users.iter().flat_map(|(user, used)| {
            used.intercepts
                .iter()
                .map(|(workload, seen)| (with(user, "workload", workload), is_there(seen)))
        });
        let help = "Intercepts the workload";
        write(out, "intercept_active_status", help, kind, intercepting)
    }
}

/// Figures of our own.
struct OwnFigures(Arc<Metrics>);

impl fmt::Debug for OwnFigures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OwnFigures")
    }
}

impl Collector for OwnFigures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let out = &mut encoder;
        self.of_every_manager(out)?;
        let reached = self.0.shared.limits.counts().map(|(limit, number)| {
            let labels = vec![("limit", limit.to_owned())];
            (labels, ConstCounter::new(number))
        });
        let help = "How often a limit was reached";
        write(out, "limits", help, MetricType::Counter, reached)?;
        let Some(cluster) = &self.0.cluster else {
            return Ok(());
        };
        let figures = cluster.figures();
        if let Some(seconds) = figures.certificate_seconds {
            let help = "Life left of the webhook's certificate";
            gauge(out, "certificate_seconds_until_expiry", help, seconds)?;
        }
        let reviews = figures.reviews.into_iter().map(|(verdict, number)| {
            let labels = vec![("verdict", verdict.to_owned())];
            (labels, ConstCounter::new(number))
        });
        let help = "Pods that the API server asked about";
        write(out, "webhook_reviews", help, MetricType::Counter, reviews)?;
        let help = "Workloads that have an agent on demand";
        gauge(out, "workloads_with_agent", help, count(figures.workloads))?;
        let help = "Workloads whose pods are being replaced";
        gauge(out, "rollouts_active", help, count(figures.rolling))
    }
}

impl OwnFigures {
    /// Figures that need no cluster. None of them names a user.
    fn of_every_manager(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let build = [
            ("version", build_info::VERSION),
            ("commit", build_info::COMMIT),
            ("date", build_info::DATE),
        ];
        let labels: Labels = build.map(|(key, value)| (key, value.to_owned())).to_vec();
        let help = "1, with the version, the commit and its date";
        let series = [(labels, ConstGauge::new(1_i64))];
        write(out, "build_info", help, MetricType::Gauge, series)?;
        let mut states: BTreeMap<Disposition, usize> = STATES.map(|state| (state, 0)).into();
        let (agents, sessions) = self.0.shared.read(|registry| {
            for state in registry.intercepts.states() {
                *states.entry(state).or_default() += 1;
            }
            let sessions = &registry.sessions;
            (sessions.agents().count(), sessions.iter().count())
        });
        let parties = [("agent", agents), ("client", sessions - agents)];
        let series = parties.map(|(party, number)| {
            let labels: Labels = vec![("party", party.to_owned())];
            (labels, ConstGauge::new(count(number)))
        });
        write(
            out,
            "sessions",
            "Sessions by party",
            MetricType::Gauge,
            series,
        )?;
        let series = states.into_iter().map(|(state, number)| {
            let labels: Labels = vec![("state", state.as_str_name().to_owned())];
            (labels, ConstGauge::new(count(number)))
        });
        write(
            out,
            "intercepts",
            "Intercepts by state",
            MetricType::Gauge,
            series,
        )?;
        let bytes = &self.0.bytes;
        let read = |it: &AtomicU64| it.load(Ordering::Relaxed);
        let (ended, streams) = (read(&bytes.ended), read(&bytes.streams));
        let help = "Streams of tunnels so far; a connection has one to each end";
        counter(out, "tunnel_streams", help, streams)?;
        let open = i64::try_from(streams.saturating_sub(ended)).unwrap_or(i64::MAX);
        gauge(
            out,
            "tunnel_streams_active",
            "Open streams of tunnels",
            open,
        )?;
        let help = "Streams of tunnels that were refused or broke";
        counter(out, "tunnel_streams_failed", help, read(&bytes.failed))
    }
}
