//! The manager session's supervisor: connect, arrive, live, depart, back off, again, for ever.
//! Whatever happens here, app traffic goes on; what it writes is the ports' route tables.

mod conflict;
mod dialer;
pub mod dns;
mod journal;
mod keeper;
mod live;
pub mod serve;
mod spec;
pub mod streams;
pub mod translate;
mod turns;

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use traffic_proto::log_level::LogLevel;
use traffic_proto::manager::manager_client::ManagerClient;
use traffic_proto::manager::workload_info::Kind;
use traffic_proto::manager::{AgentInfo, SessionInfo, TunnelMetrics, agent_info};
use traffic_proto::sidecar::Target;
use traffic_proto::tunnel::GRPC_LIMIT;

use crate::VERSION;
use crate::drain::Drain;
use crate::metrics::ControlMetrics;
use crate::ready::Blocker;
use dns::Dns;
use journal::Journal;
use keeper::Keeper;
pub use keeper::{Asking, PortLink};
use live::{Live, described, timely};
use streams::{Link, Tunnels};

/// What the agent's own API calls itself.
pub const PRODUCT_NAME: &str = "Rust Traffic Agent";
/// Replicas of a workload have to agree on it, the stock agent included.
const PRODUCT: &str = "telepresence";

/// How long a connection or an answer may take while a session begins.
const BEGIN: Duration = Duration::from_secs(5);
/// How long the farewell may take.
const DEPART: Duration = Duration::from_secs(1);
/// How long a departure waits for open tunnels at most: some managers end a departed agent's
/// tunnels. The end of the drain, which cuts what is open, ends this wait too.
const TUNNELS_FINISH: Duration = Duration::from_secs(600);
/// Pauses between attempts: the first, and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(8));
/// A session that lasted this long was a good one: the next pause is short again.
const GOOD_SESSION: Duration = Duration::from_secs(10);
/// What one tunnel may receive ahead of its reader.
const STREAM_WINDOW: u32 = 256 * 1024;
/// Tunnels share a connection: with a window for all of them, a few stalled ones would stop the
/// rest.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;

/// Who this agent is.
#[derive(Clone, Debug, Default)]
pub struct Identity {
    /// The workload's name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its kind, such as `Deployment`; may be empty.
    pub workload_kind: String,
    /// The pod's name.
    pub pod_name: String,
    /// The pod's address; may be empty.
    pub pod_ip: String,
    /// The pod's uid; newer managers key agents by it.
    pub pod_uid: String,
    /// Where the agent's own gRPC API listens.
    pub api_port: u16,
    /// The app containers.
    pub containers: Vec<Container>,
}

/// What an app container shares with the owner of an intercept.
#[derive(Clone, Debug, Default)]
pub struct Container {
    /// Its name.
    pub name: String,
    /// Its environment.
    pub environment: BTreeMap<String, String>,
    /// Where a file server offers its volumes; empty when none does.
    pub mount_point: String,
    /// Mount path to policy number.
    pub mounts: BTreeMap<String, i32>,
}

/// Everything a session needs.
#[derive(Debug)]
pub struct Session {
    /// Who we are.
    pub identity: Identity,
    /// `host:port` of the traffic-manager.
    pub manager: String,
    /// How long the last tables stay in force without a manager.
    pub grace: Duration,
    /// How long ended intercepts are remembered, if they are.
    pub remember: Option<Duration>,
    /// The ports as configured.
    pub targets: Vec<Target>,
    /// The same ports, in the same order, as rules are put in force on them.
    pub ports: Vec<PortLink>,
    /// The way to workstations, shared with the data path and the agent's own API.
    pub tunnels: Tunnels,
    /// The pod's resolver.
    pub dns: Arc<Dns>,
    /// Where tasks of the control side are spawned.
    pub control: Drain,
    /// Counters.
    pub metrics: Arc<ControlMetrics>,
    /// Holds readiness back until the first arrival.
    pub ready: Option<Blocker>,
    /// Created at the first arrival; the pod's readiness probe looks for it.
    pub ready_file: PathBuf,
    /// Changes the log level as the manager wishes: `None` ends its wish.
    pub set_level: LevelSwitch,
}

/// Changes the log level as the manager wishes: `None` ends its wish.
pub struct LevelSwitch(pub Box<dyn Fn(Option<LogLevel>) + Send + Sync>);

/// What all sessions of this process share.
struct Context {
    identity: Identity,
    keeper: Keeper,
    tunnels: Tunnels,
    dns: Arc<Dns>,
    control: Drain,
    metrics: Arc<ControlMetrics>,
    journal: Journal,
    levels: Arc<Levels>,
    reports: tokio::sync::Mutex<mpsc::Receiver<TunnelMetrics>>,
}

/// The manager's wishes for the log level, numbered so that one with a duration ends only itself.
struct Levels {
    switch: LevelSwitch,
    wishes: AtomicU64,
}

/// Why an attempt came to its end.
#[derive(Debug)]
enum Lost {
    /// No connection.
    Connect(String),
    /// The manager's version is no version.
    Version(String),
    /// The manager did not let us in.
    Refused(Status),
    /// The session was there and is gone.
    Ended(String),
}

impl Session {
    /// Keeps a session with the manager until `stop`; then sends all traffic to the app and
    /// departs.
    pub async fn run(self, stop: CancellationToken) {
        let (supervisor, context) = Supervisor::new(self);
        tokio::select! {
            () = supervisor.run(&stop) => {}
            () = context.keeper.keep_time() => {}
        }
    }
}

struct Supervisor {
    context: Arc<Context>,
    manager: String,
    ready: Mutex<Option<Blocker>>,
    ready_file: PathBuf,
    /// The last session granted, until it is departed from.
    granted: Mutex<Option<(ManagerClient<Channel>, SessionInfo)>>,
}

impl Supervisor {
    fn new(session: Session) -> (Self, Arc<Context>) {
        let containers = session
            .identity
            .containers
            .iter()
            .map(|c| c.name.clone())
            .collect();
        let identity = &session.identity;
        let rules = translate::Rules::new(
            &identity.name,
            &identity.namespace,
            containers,
            session.targets,
            session.remember,
        );
        // A second session on the same tunnels would have nothing to report.
        let reports = session
            .tunnels
            .take_reports()
            .unwrap_or_else(|| mpsc::channel(1).1);
        let context = Arc::new(Context {
            identity: session.identity,
            keeper: Keeper::new(session.ports, rules, session.grace),
            tunnels: session.tunnels,
            dns: session.dns,
            control: session.control,
            metrics: session.metrics,
            journal: Journal::default(),
            levels: Arc::new(Levels {
                switch: session.set_level,
                wishes: AtomicU64::new(0),
            }),
            reports: tokio::sync::Mutex::new(reports),
        });
        let supervisor = Self {
            context: Arc::clone(&context),
            manager: session.manager,
            ready: Mutex::new(session.ready),
            ready_file: session.ready_file,
            granted: Mutex::new(None),
        };
        (supervisor, context)
    }

    async fn run(&self, stop: &CancellationToken) {
        let mut pause = PAUSE.0;
        loop {
            let began = Instant::now();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                lost = self.attempt() => self.note(&lost),
            }
            if began.elapsed() >= GOOD_SESSION {
                pause = PAUSE.0;
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(jittered(pause)) => {}
            }
            pause = (pause * 2).min(PAUSE.1);
        }
        self.leave().await;
    }

    /// One session from its beginning to its end.
    async fn attempt(&self) -> Lost {
        match self.begin().await {
            Ok(live) => {
                let connected = self.context.metrics.connected.hold();
                let lost = live.run().await;
                drop(connected);
                lost
            }
            Err(lost) => lost,
        }
    }

    async fn begin(&self) -> Result<Live<'_>, Lost> {
        let endpoint = self.endpoint()?;
        let channel = endpoint
            .connect()
            .await
            .map_err(|e| Lost::Connect(chain(&e)))?;
        let mut client = limited(ManagerClient::new(channel));
        let version = timely(BEGIN, client.version(()))
            .await
            .map_err(Lost::Refused)?
            .into_inner();
        if !is_version(&version.version) {
            return Err(Lost::Version(version.version));
        }
        let session = self.arrive(&mut client).await?;
        // Tunnels have a connection of their own: one that stalls must not hold up the session's
        // calls.
        let tunnels = limited(ManagerClient::new(endpoint.connect_lazy()));
        let link = Link {
            client: tunnels,
            session: session.session_id.clone(),
        };
        self.context.tunnels.set_manager(Some(link.clone()));
        let text = format!(
            "arrived at {} {} ({})",
            version.name, version.version, self.manager
        );
        self.context.journal.info("arrived", &text);
        self.become_ready();
        Ok(Live {
            context: &self.context,
            client,
            link,
            session,
        })
    }

    fn endpoint(&self) -> Result<Endpoint, Lost> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.manager)).map_err(|e| {
            Lost::Connect(format!(
                "managerHost and managerPort make no address: {}",
                chain(&e)
            ))
        })?;
        Ok(endpoint
            .connect_timeout(BEGIN)
            .tcp_nodelay(true)
            .tcp_keepalive(Some(Duration::from_secs(30)))
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW))
    }

    /// Arrives anew. A manager that still knows an earlier session of this pod (it keys agents by
    /// the pod's uid) is asked to forget it first.
    async fn arrive(&self, client: &mut ManagerClient<Channel>) -> Result<SessionInfo, Lost> {
        let previous = lock(&self.granted).take().map(|(_, session)| session);
        let info = self.context.identity.info();
        let arrived = match timely(BEGIN, client.arrive_as_agent(info.clone())).await {
            Err(status) if status.code() == Code::AlreadyExists => {
                let by_uid = SessionInfo {
                    session_id: format!("agent:{}", self.context.identity.pod_uid),
                    ..SessionInfo::default()
                };
                let leftover = previous.clone().unwrap_or(by_uid);
                let _ = timely(DEPART, client.depart(leftover)).await;
                timely(BEGIN, client.arrive_as_agent(info)).await
            }
            other => other,
        };
        let session = arrived.map_err(Lost::Refused)?.into_inner();
        self.context.metrics.arrivals.inc();
        *lock(&self.granted) = Some((client.clone(), session.clone()));
        if let Some(previous) = previous.filter(|p| p.session_id != session.session_id) {
            // Arrive first, then depart: a workload without any agent would lose its intercepts'
            // clients.
            let _ = timely(DEPART, client.depart(previous)).await;
        }
        Ok(session)
    }

    fn become_ready(&self) {
        let Some(blocker) = lock(&self.ready).take() else {
            return;
        };
        if let Err(error) = create_ready_file(&self.ready_file) {
            tracing::error!(
                "{}: {error}: the pod will not become ready; make its directory writable",
                self.ready_file.display()
            );
        }
        drop(blocker);
    }

    /// Says what happened, once, and starts the grace of the tables.
    fn note(&self, lost: &Lost) {
        self.context.metrics.failures.inc();
        self.context.keeper.lost();
        let manager = &self.manager;
        let journal = &self.context.journal;
        match lost {
            Lost::Connect(error) => {
                // Requests go to the app at once instead of waiting for a manager that is away.
                self.context.tunnels.set_manager(None);
                journal.warn("connect", &format!("traffic-manager {manager} cannot be reached: {error}; retrying"));
            }
            Lost::Version(version) => journal.warn(
                "version",
                &format!("traffic-manager {manager} has version {version:?}, which is no version number; retrying"),
            ),
            Lost::Refused(status) => {
                let text = format!("traffic-manager {manager} did not accept us: {}; retrying", described(status));
                journal.warn("refused", &text);
            }
            Lost::Ended(why) => {
                journal.warn("lost", &format!("session with traffic-manager {manager} lost: {why}; arriving again"));
            }
        }
    }

    /// All to the app; what is in flight in tunnels may finish; farewell.
    async fn leave(&self) {
        self.context.keeper.clear();
        let granted = lock(&self.granted).take();
        let Some((mut client, session)) = granted else {
            return;
        };
        if tokio::time::timeout(TUNNELS_FINISH, self.context.tunnels.all_closed())
            .await
            .is_err()
        {
            tracing::info!(
                "{} tunnels are still open at departure",
                self.context.tunnels.open_count()
            );
        }
        match timely(DEPART, client.depart(session)).await {
            Ok(_) => tracing::info!("departed from the traffic-manager"),
            Err(status) => tracing::info!(
                "the traffic-manager did not hear our departure: {}",
                described(&status)
            ),
        }
    }
}

impl Identity {
    fn info(&self) -> AgentInfo {
        let mechanism = |name: &str| agent_info::Mechanism {
            name: name.to_owned(),
            product: PRODUCT.to_owned(),
            version: VERSION.to_owned(),
        };
        let container = |c: &Container| agent_info::ContainerInfo {
            environment: c.environment.clone(),
            mount_point: c.mount_point.clone(),
            mounts: c.mounts.clone(),
        };
        let mut info = AgentInfo {
            name: self.name.clone(),
            namespace: self.namespace.clone(),
            pod_ip: self.pod_ip.clone(),
            pod_name: self.pod_name.clone(),
            pod_uid: self.pod_uid.clone(),
            product: PRODUCT.to_owned(),
            version: VERSION.to_owned(),
            mechanisms: vec![mechanism("tcp"), mechanism("http")],
            api_port: i32::from(self.api_port),
            containers: self
                .containers
                .iter()
                .map(|c| (c.name.clone(), container(c)))
                .collect(),
            ..AgentInfo::default()
        };
        info.set_kind(match self.workload_kind.to_ascii_lowercase().as_str() {
            "deployment" => Kind::Deployment,
            "replicaset" => Kind::Replicaset,
            "statefulset" => Kind::Statefulset,
            "rollout" => Kind::Rollout,
            _ => Kind::Unspecified,
        });
        info
    }
}

impl Levels {
    /// Sets a level and answers the wish's number.
    fn set(&self, level: Option<LogLevel>) -> u64 {
        let number = self.wishes.fetch_add(1, Ordering::Relaxed) + 1;
        (self.switch.0)(level);
        number
    }

    /// Ends the wish, unless another one came meanwhile.
    fn restore_after(&self, number: u64) {
        if self.wishes.load(Ordering::Relaxed) == number {
            (self.switch.0)(None);
        }
    }
}

impl fmt::Debug for LevelSwitch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LevelSwitch")
    }
}

fn limited(client: ManagerClient<Channel>) -> ManagerClient<Channel> {
    client
        .max_decoding_message_size(GRPC_LIMIT)
        .max_encoding_message_size(GRPC_LIMIT)
}

/// One to three numbers, a `v` before and a pre-release or build suffix behind allowed: development
/// builds of managers are lax about it.
fn is_version(text: &str) -> bool {
    let text = text.strip_prefix('v').unwrap_or(text);
    let end = text.find(['-', '+']).unwrap_or(text.len());
    let (numbers, suffix) = text.split_at(end);
    let numbers: Vec<_> = numbers.split('.').collect();
    let missing = ".0".repeat(3_usize.saturating_sub(numbers.len()));
    numbers.len() <= 3
        && semver::Version::parse(&format!("{}{missing}{suffix}", numbers.join("."))).is_ok()
}

/// The readiness probe is a `stat` by whichever user runs it, so both are open to all.
fn create_ready_file(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    if let Some(directory) = path.parent().filter(|d| !d.exists()) {
        std::fs::create_dir_all(directory)?;
        std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o777))?;
    }
    std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)?;
    // One that another user left behind cannot be changed and need not be.
    let _ = std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666));
    Ok(())
}

/// Between half and the whole of `pause`, so that a manager's return is not met by all agents at
/// once.
fn jittered(pause: Duration) -> Duration {
    let random = std::collections::hash_map::RandomState::new()
        .build_hasher()
        .finish();
    let half = pause / 2;
    half + half.mul_f64(f64::from((random >> 32) as u32) / f64::from(u32::MAX))
}

/// An error and its causes; transports repeat themselves, so what has been said is left out.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        source = cause.source();
    }
    text
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
