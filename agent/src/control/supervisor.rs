//! Supervisor of the manager session: connect, arrive, live, depart, back off, repeat. App traffic
//! continues whatever happens here; it only writes the ports' route tables.

use std::hash::{BuildHasher, Hasher};
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prost::Message as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::transport::Endpoint;
use traffic_proto::manager::manager_client::ManagerClient;
use traffic_proto::manager::{AgentInfo, SessionInfo};
use traffic_proto::tunnel::{GRPC_LIMIT, MAX_FRAME};

use crate::control::answers::{status_text, with_timeout};
use crate::control::config::ControlConfig;
use crate::control::context::{LevelRequests, SessionContext, SessionLost, error_chain};
use crate::control::intercepts::publisher::RoutePublisher;
pub use crate::control::intercepts::publisher::{PortHandle, ProbeFuture};
use crate::control::log_once::LogOnce;
use crate::control::manager_call::ManagerLink;
use crate::control::manager_token::{Calls, Manager, ManagerToken};
use crate::control::reviews::{MAX_REVIEW, Reviews};
use crate::control::session::Live;
use crate::io::state_file;
use crate::ready::Blocker;
use crate::telemetry::metrics::ControlLimit;
use traffic_proto::sync::lock;

/// Time for connecting and for each response while a session begins.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for the Depart call.
const DEPART_TIMEOUT: Duration = Duration::from_secs(1);
/// Maximum wait of a departure for open tunnels: some managers end a departed agent's tunnels. The
/// end of the drain ends this wait too.
const TUNNELS_TIMEOUT: Duration = Duration::from_secs(600);
/// Pause between attempts: first and longest.
const RECONNECT_BACKOFF: (Duration, Duration) =
    (Duration::from_millis(250), Duration::from_secs(8));
/// Minimum age of a successful session: after it the next pause is short again.
const STABLE_SESSION_AGE: Duration = Duration::from_secs(10);
/// Bytes one tunnel may receive ahead of its reader.
const STREAM_WINDOW: u32 = 256 * 1024;
/// Connection window, effectively unlimited: tunnels share a connection, and a few stalled ones
/// must not stop the rest.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;

impl ControlConfig {
    /// Keeps a session with the manager until `stop`; then sends all traffic to the app and
    /// departs.
    pub async fn run(self, stop: CancellationToken) {
        let (supervisor, context) = Supervisor::new(self);
        tokio::select! {
            () = supervisor.run(&stop) => {}
            () = context.publisher.watch_deadlines() => {}
        }
    }
}

struct Supervisor {
    context: Arc<SessionContext>,
    manager: String,
    token: ManagerToken,
    ready: Mutex<Option<Blocker>>,
    ready_file: PathBuf,
    /// Last session granted and not departed from.
    granted: Mutex<Option<(Manager, SessionInfo)>>,
}

impl Supervisor {
    fn new(session: ControlConfig) -> (Self, Arc<SessionContext>) {
        let containers = session
            .identity
            .containers
            .iter()
            .map(|c| c.name.clone())
            .collect();
        let identity = &session.identity;
        let rules = crate::control::intercepts::translate::Rules::new(
            &identity.name,
            &identity.namespace,
            containers,
            session.targets,
            session.remember,
        )
        .within(session.bounds);
        let context = Arc::new(SessionContext {
            identity: session.identity,
            publisher: RoutePublisher::new(session.ports, rules, session.grace),
            tunnels: session.tunnels,
            dns: session.dns,
            dialer: session.dialer,
            control: session.control,
            metrics: session.metrics,
            log_once: LogOnce::default(),
            levels: Arc::new(LevelRequests {
                switch: session.set_level,
                count: AtomicU64::new(0),
            }),
        });
        let supervisor = Self {
            context: Arc::clone(&context),
            manager: session.manager,
            token: ManagerToken::of(session.token_file),
            ready: Mutex::new(session.ready),
            ready_file: session.ready_file,
            granted: Mutex::new(None),
        };
        (supervisor, context)
    }

    async fn run(&self, stop: &CancellationToken) {
        let mut pause = RECONNECT_BACKOFF.0;
        loop {
            let began = Instant::now();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                lost = self.attempt() => self.log_loss(&lost),
            }
            if began.elapsed() >= STABLE_SESSION_AGE {
                pause = RECONNECT_BACKOFF.0;
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(jittered(pause)) => {}
            }
            pause = (pause * 2).min(RECONNECT_BACKOFF.1);
        }
        self.leave().await;
    }

    /// Runs one session from beginning to end.
    async fn attempt(&self) -> SessionLost {
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

    async fn begin(&self) -> Result<Live<'_>, SessionLost> {
        let endpoint = self.endpoint()?;
        let channel = endpoint
            .connect()
            .await
            .map_err(|e| SessionLost::Connect(error_chain(&e)))?;
        let mut client = limited(self.token.calls(channel));
        let version = with_timeout(BEGIN_TIMEOUT, client.version(()))
            .await
            .map_err(SessionLost::Refused)?
            .into_inner();
        if !is_version(&version.version) {
            return Err(SessionLost::Version(version.version));
        }
        let session = self.arrive(&mut client).await?;
        // Tunnels have a connection of their own: one that stalls must not hold up the session's
        // calls.
        let calls = self.token.calls(endpoint.connect_lazy());
        let link = ManagerLink {
            client: limited(calls.clone()),
            calls,
            session: session.session_id.clone(),
        };
        self.context.tunnels.set_manager(Some(link.clone()));
        let text = format!(
            "arrived at {} {} ({})",
            version.name, version.version, self.manager
        );
        self.context.log_once.info("arrived", &text);
        self.become_ready();
        Ok(Live {
            context: &self.context,
            client,
            link,
            session,
            reviews: Arc::<Reviews>::default(),
        })
    }

    fn endpoint(&self) -> Result<Endpoint, SessionLost> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.manager)).map_err(|e| {
            SessionLost::Connect(format!(
                "managerHost and managerPort are not a valid address: {}",
                error_chain(&e)
            ))
        })?;
        Ok(endpoint
            .connect_timeout(BEGIN_TIMEOUT)
            .tcp_nodelay(true)
            .tcp_keepalive(Some(Duration::from_secs(30)))
            .max_frame_size(MAX_FRAME)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW))
    }

    /// Arrives anew. A manager that still knows an earlier session of this pod (it keys agents by
    /// the pod's uid) is asked to drop it first.
    async fn arrive(&self, client: &mut Manager) -> Result<SessionInfo, SessionLost> {
        let previous = lock(&self.granted).take().map(|(_, session)| session);
        let mut info = self.context.identity.info();
        info.proof_key = self.context.tunnels.proof_key().clone();
        self.fit(&mut info);
        let mut is_known = false;
        let arrived = match with_timeout(BEGIN_TIMEOUT, client.arrive_as_agent(info.clone())).await
        {
            Err(status) if status.code() == Code::AlreadyExists => {
                is_known = true;
                let by_uid = SessionInfo {
                    session_id: format!("agent:{}", self.context.identity.pod_uid),
                    ..SessionInfo::default()
                };
                let leftover = previous.clone().unwrap_or(by_uid);
                let _ = with_timeout(DEPART_TIMEOUT, client.depart(leftover)).await;
                with_timeout(BEGIN_TIMEOUT, client.arrive_as_agent(info)).await
            }
            other => other,
        };
        let session = arrived.map_err(SessionLost::Refused)?.into_inner();
        self.context.publisher.arrived(is_known);
        self.context.metrics.arrivals.inc();
        *lock(&self.granted) = Some((client.clone(), session.clone()));
        if let Some(previous) = previous.filter(|p| p.session_id != session.session_id) {
            // Arrive before departing: a workload without any agent would lose its intercepts'
            // clients.
            let _ = with_timeout(DEPART_TIMEOUT, client.depart(previous)).await;
        }
        Ok(session)
    }

    /// Cuts what the manager could not take to what must be there.
    fn fit(&self, info: &mut AgentInfo) {
        let size = info.encoded_len();
        if size <= MAX_REVIEW {
            return;
        }
        self.context
            .metrics
            .limits
            .at(ControlLimit::MessageSize)
            .inc();
        let text = format!(
            "arrival cut: it has {size} bytes and the traffic-manager takes {MAX_REVIEW}; the \
            environment is left out, exclude large variables to have the rest"
        );
        self.context.log_once.warn("arrival size", &text);
        for container in info.containers.values_mut() {
            container.environment.clear();
        }
    }

    fn become_ready(&self) {
        let Some(blocker) = lock(&self.ready).take() else {
            return;
        };
        if let Err(error) = state_file::write(&self.ready_file, b"") {
            tracing::error!(
                "{}: {error}: the pod will not become ready; make its directory writable",
                self.ready_file.display()
            );
        }
        drop(blocker);
    }

    /// Logs a lost session once and starts the grace of the tables.
    fn log_loss(&self, lost: &SessionLost) {
        self.context.metrics.failures.inc();
        self.context.publisher.lost();
        let manager = &self.manager;
        let log_once = &self.context.log_once;
        match lost {
            SessionLost::Connect(error) => {
                // Requests go to the app at once instead of waiting for a manager that is away.
                self.context.tunnels.set_manager(None);
                log_once.warn(
                    "connect",
                    &format!("traffic-manager {manager} cannot be reached: {error}; retrying"),
                );
            }
            SessionLost::Version(version) => log_once.warn(
                "version",
                &format!(
                    "traffic-manager {manager} has version {version:?}, which is not a version \
                    number; retrying"
                ),
            ),
            SessionLost::Refused(status) => {
                let text = format!(
                    "traffic-manager {manager} rejected the arrival: {}; retrying",
                    status_text(status)
                );
                log_once.warn("refused", &text);
            }
            SessionLost::Ended(why) => {
                log_once.warn(
                    "lost",
                    &format!("session with traffic-manager {manager} lost: {why}; arriving again"),
                );
            }
        }
    }

    /// Leaves: all traffic goes to the app, open tunnels may finish, then Depart is called.
    async fn leave(&self) {
        self.context.publisher.clear();
        let granted = lock(&self.granted).take();
        let Some((mut client, session)) = granted else {
            return;
        };
        if tokio::time::timeout(TUNNELS_TIMEOUT, self.context.tunnels.all_closed())
            .await
            .is_err()
        {
            tracing::info!(
                "{} tunnels are still open at departure",
                self.context.tunnels.open_count()
            );
        }
        // The last of them have ended just now.
        let last_reports = async {
            for report in self.context.tunnels.reports().take() {
                let _ = client.report_metrics(report).await;
            }
        };
        let _ = tokio::time::timeout(DEPART_TIMEOUT, last_reports).await;
        match with_timeout(DEPART_TIMEOUT, client.depart(session)).await {
            Ok(_) => tracing::info!("departed from the traffic-manager"),
            Err(status) => tracing::info!(
                "departing from the traffic-manager failed: {}",
                status_text(&status)
            ),
        }
    }
}

fn limited(calls: Calls) -> Manager {
    ManagerClient::new(calls)
        .max_decoding_message_size(GRPC_LIMIT)
        .max_encoding_message_size(GRPC_LIMIT)
}

/// Checks a version: one to three numbers, with an optional `v` prefix and a pre-release or build
/// suffix; development builds of managers are lax about it.
fn is_version(text: &str) -> bool {
    // Managers report `v2.25.0`; semver has no prefix.
    let text = text.strip_prefix('v').unwrap_or(text);
    let end = text.find(['-', '+']).unwrap_or(text.len());
    let (numbers, suffix) = text.split_at(end);
    let numbers: Vec<_> = numbers.split('.').collect();
    // `semver` demands three numbers, so missing ones become zero.
    let missing = ".0".repeat(3_usize.saturating_sub(numbers.len()));
    numbers.len() <= 3
        && semver::Version::parse(&format!("{}{missing}{suffix}", numbers.join("."))).is_ok()
}

/// Returns a random time between half and all of `pause`, so that agents do not reconnect to a
/// restarted manager at once.
fn jittered(pause: Duration) -> Duration {
    let random = std::collections::hash_map::RandomState::new()
        // The standard library's hash keys are random, which is enough for jitter without another
        // dependency.
        .build_hasher()
        .finish();
    let half = pause / 2;
    half + half.mul_f64(f64::from((random >> 32) as u32) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests;
