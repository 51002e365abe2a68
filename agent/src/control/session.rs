//! Loops of a live session: remain, intercepts and their reviews, dials, DNS, log level, reports.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt};
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Code, Response, Status, Streaming};
use traffic_proto::conn_id::ConnId;
use traffic_proto::log_level::LogLevel;
use traffic_proto::manager::manager_client::ManagerClient;
use traffic_proto::manager::{
    DialRequest, DnsAgentResponse, DnsRequest, DnsResponse,
    InterceptDispositionType as Disposition, InterceptInfo, LogLevelRequest, RemainRequest,
    ReviewInterceptRequest, SessionInfo, TunnelMetrics,
};
use traffic_proto::tunnel::{StreamInfo, duration_from_nanos};

use crate::control::context::{SessionContext, SessionLost};
use crate::control::intercepts::publisher::Published;
use crate::control::intercepts::spec;
use crate::control::intercepts::translate::{Review, Snapshot, Verdict};
use crate::control::tunnels::{ManagerLink, TunnelDirection};
use crate::control::{dialer, tunnels};
use traffic_core::routing::Intercept;
use traffic_core::routing::dial_memory::Reachability;

/// Interval of the Remain call; older managers forget an agent after 15 s.
const REMAIN_INTERVAL: Duration = Duration::from_secs(5);
/// Time for one response of the manager.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Consecutive failed Remain calls after which the session counts as lost.
const MAX_MISSED_REMAINS: u32 = 3;
/// Time for reporting a finished tunnel.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// Delay before a review that was lost is sent again: the first, and the longest.
const REVIEW_BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));
/// How often to look whether a workstation that was not reached is reached again.
const RECOVERY_INTERVAL: Duration = Duration::from_secs(5);
/// Delay before a side watch is reopened, first and longest; doubles each time.
const REOPEN_BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// A session granted by the manager.
pub(crate) struct Live<'a> {
    pub(crate) context: &'a Arc<SessionContext>,
    pub(crate) client: ManagerClient<Channel>,
    pub(crate) link: ManagerLink,
    pub(crate) session: SessionInfo,
    pub(crate) reviews: Reviews,
}

/// The last review of each intercept, until the manager has taken it.
#[derive(Default)]
pub(crate) struct Reviews(Mutex<HashMap<String, Arc<()>>>);

/// A review's right to be sent: lost to a later one, or with the session.
struct ReviewTicket(Weak<()>);

impl Reviews {
    fn begin(&self, id: &str) -> ReviewTicket {
        let current = Arc::new(());
        let ticket = ReviewTicket(Arc::downgrade(&current));
        self.lock().insert(id.to_owned(), current);
        ticket
    }

    /// Ends the reviews of intercepts that the manager does not show any more.
    fn forget_others(&self, snapshot: &Snapshot) {
        self.lock().retain(|id, _| snapshot.contains_key(id));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ReviewTicket {
    fn is_current(&self) -> bool {
        self.0.strong_count() > 0
    }
}

impl Live<'_> {
    /// Runs the session until it is lost.
    pub(crate) async fn run(&self) -> SessionLost {
        tokio::select! {
            // The session is lost with its intercept watch or its heartbeat; the other watches are
            // optional and never end.
            lost = self.intercepts() => lost,
            lost = self.remain() => lost,
            () = self.dials() => SessionLost::Ended("unreachable".to_owned()),
            () = self.questions() => SessionLost::Ended("unreachable".to_owned()),
            () = self.log_levels() => SessionLost::Ended("unreachable".to_owned()),
            () = self.reports() => SessionLost::Ended("unreachable".to_owned()),
            () = self.failures() => SessionLost::Ended("unreachable".to_owned()),
        }
    }

    async fn remain(&self) -> SessionLost {
        let mut missed = 0;
        loop {
            tokio::time::sleep(REMAIN_INTERVAL).await;
            let request = RemainRequest {
                session: Some(self.session.clone()),
                ..RemainRequest::default()
            };
            match with_timeout(ANSWER_TIMEOUT, self.client.clone().remain(request)).await {
                Ok(_) => missed = 0,
                Err(status) if status.code() == Code::NotFound => {
                    return SessionLost::Ended("it no longer knows our session".to_owned());
                }
                Err(status) => {
                    missed += 1;
                    // A single failure may be a manager that is restarting its listener.
                    if missed == MAX_MISSED_REMAINS {
                        return SessionLost::Ended(format!(
                            "no answer to {MAX_MISSED_REMAINS} heartbeats: {}",
                            status_text(&status)
                        ));
                    }
                }
            }
        }
    }

    /// Watches the intercepts; the session ends with this watch. Newer managers send changes, older
    /// ones everything.
    async fn intercepts(&self) -> SessionLost {
        match self.deltas().await {
            // Managers before the delta watch: use full snapshots instead.
            Err(status) if status.code() == Code::Unimplemented => {}
            ended => return watch_ended(ended),
        }
        watch_ended(self.snapshots().await)
    }

    async fn deltas(&self) -> Result<(), Status> {
        let mut client = self.client.clone();
        let deltas = client.watch_intercepts_delta(self.session.clone()).await?;
        // The first message of a stream holds everything, so the snapshot starts empty.
        self.follow(deltas.into_inner(), |snapshot, delta| {
            snapshot.extend(delta.upserts);
            for id in &delta.removals {
                snapshot.remove(id);
            }
        })
        .await
    }

    async fn snapshots(&self) -> Result<(), Status> {
        let mut client = self.client.clone();
        let snapshots = client.watch_intercepts(self.session.clone()).await?;
        self.follow(snapshots.into_inner(), |snapshot, message| {
            let all = message.intercepts.into_iter();
            *snapshot = all.map(|i| (i.id.clone(), i)).collect();
        })
        .await
    }

    /// Applies each snapshot at once. A review that needs a probe waits alone; the snapshot is then
    /// applied again.
    async fn follow<M>(
        &self,
        mut messages: Streaming<M>,
        merge: impl Fn(&mut Snapshot, M),
    ) -> Result<(), Status> {
        let mut snapshot = Snapshot::new();
        let mut probing = FuturesUnordered::new();
        let (mut started, mut probed) = (HashSet::new(), HashSet::new());
        let mut look_again: Option<Instant> = None;
        loop {
            tokio::select! {
                message = messages.message() => match message? {
                    Some(message) => {
                        merge(&mut snapshot, message);
                        self.context.metrics.snapshots.inc();
                    }
                    None => return Ok(()),
                },
                Some(port) = probing.next() => {
                    probed.insert(port);
                }
                () = sleep_until_some(look_again) => {}
            }
            let published = self.take(&snapshot, &probed);
            look_again = published.look_again;
            for port in published.probes {
                if started.insert(port) {
                    let probe = self.context.publisher.probe(port);
                    probing.push(probe.map(move |()| port));
                }
            }
        }
    }

    fn take(&self, snapshot: &Snapshot, probed: &HashSet<usize>) -> Published {
        let count = i64::try_from(snapshot.len()).unwrap_or(i64::MAX);
        self.context.metrics.intercepts.set(count);
        self.context.tunnels.sessions().announce(owners(snapshot));
        self.reviews.forget_others(snapshot);
        let mut published = self.context.publisher.snapshot(snapshot, probed);
        for review in std::mem::take(&mut published.reviews) {
            self.context.metrics.reviews.inc();
            self.send(review);
        }
        published
    }

    /// Sends a review in a separate task, because a slow response must not hold up the next
    /// snapshot. A review that gets lost is repeated, until the session is over or a later review
    /// of the same intercept takes its place.
    fn send(&self, review: Review) {
        let (mut client, context) = (self.client.clone(), Arc::clone(self.context));
        let request = self.reviewed(review);
        let ticket = self.reviews.begin(&request.id);
        self.context.control.spawn(async move {
            let mut pause = REVIEW_BACKOFF.0;
            while ticket.is_current() {
                match with_timeout(ANSWER_TIMEOUT, client.review_intercept(request.clone())).await {
                    Ok(_) => return,
                    // The owner has removed the intercept meanwhile.
                    Err(status) if status.code() == Code::NotFound => return,
                    Err(status) => {
                        let text = format!(
                            "the traffic-manager did not take the review of {}: {}",
                            request.id,
                            status_text(&status)
                        );
                        context.log_once.warn("review", &text);
                    }
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(REVIEW_BACKOFF.1);
            }
        });
    }

    fn reviewed(&self, review: Review) -> ReviewInterceptRequest {
        let identity = &self.context.identity;
        let mut request = ReviewInterceptRequest {
            session: Some(self.session.clone()),
            id: review.id,
            mechanism_args_desc: review.description,
            ..ReviewInterceptRequest::default()
        };
        match review.verdict {
            Verdict::Accept { container, headers } => {
                tracing::debug!(id = request.id, "intercept accepted");
                request.set_disposition(Disposition::Active);
                request.pod_ip.clone_from(&identity.pod_ip);
                request.headers = headers;
                if let Some(shared) = identity.containers.iter().find(|c| c.name == container) {
                    request.mount_point.clone_from(&shared.mount_point);
                    if !shared.mount_point.is_empty() {
                        request.sftp_port = i32::from(identity.sftp_port);
                    }
                    request.environment.clone_from(&shared.environment);
                    request.mounts.clone_from(&shared.mounts);
                }
            }
            Verdict::Refuse { bad_args, message } => {
                tracing::debug!(id = request.id, message, "intercept refused");
                // BadArgs tells the client that the user must change the command, AgentError that
                // another pod may accept it.
                request.set_disposition(if bad_args {
                    Disposition::BadArgs
                } else {
                    Disposition::AgentError
                });
                request.message = message;
            }
        }
        request
    }

    /// Watches for connections that the manager wants this agent to open into the cluster. Older
    /// managers wait for this watch without limit, newer ones do not have it.
    async fn dials(&self) {
        let open = || {
            let mut client = self.client.clone();
            let session = self.session.clone();
            async move { client.watch_dial(session).await }
        };
        self.side_watch("dials", open, |request| self.dial(&request))
            .await;
    }

    fn dial(&self, request: &DialRequest) {
        let conn_id = match ConnId::parse(&request.conn_id) {
            Ok(conn_id) => conn_id,
            Err(error) => {
                self.context.log_once.warn(
                    "dial",
                    &format!(
                        "dial request of the traffic-manager without a valid connection id: \
                        {error}"
                    ),
                );
                return;
            }
        };
        self.context.metrics.dials.inc();
        let (latency, timeout) = (
            duration_from_nanos(request.roundtrip_latency),
            duration_from_nanos(request.dial_timeout),
        );
        let info = StreamInfo::new(conn_id, self.link.session.as_str(), latency, timeout);
        let (link, context) = (self.link.clone(), Arc::clone(self.context));
        self.context.control.spawn(async move {
            let meter = context.tunnels.meter("", TunnelDirection::Cluster);
            // The tunnel call itself gets at least the usual response time, even with a tiny dial
            // timeout.
            let budget = (latency + timeout).max(ANSWER_TIMEOUT);
            match tokio::time::timeout(budget, tunnels::call(&link, info, meter)).await {
                Ok(Ok(io)) => dialer::dial_and_carry(conn_id, timeout, io).await,
                Ok(Err(error)) => tracing::debug!(%conn_id, %error, "no tunnel for a dial"),
                Err(_) => tracing::debug!(%conn_id, "no tunnel for a dial within {budget:?}"),
            }
        });
    }

    async fn questions(&self) {
        let open = || {
            let mut client = self.client.clone();
            let session = self.session.clone();
            async move { client.watch_lookup_dns(session).await }
        };
        self.side_watch("DNS questions", open, |question| self.answer(question))
            .await;
    }

    fn answer(&self, question: DnsRequest) {
        let (mut client, context, session) = (
            self.client.clone(),
            Arc::clone(self.context),
            self.session.clone(),
        );
        self.context.control.spawn(async move {
            let Some(answer) = context.dns.answer(&question.name, question.r#type).await else {
                return;
            };
            context.metrics.lookups.inc();
            let response = DnsResponse {
                r_code: answer.r_code,
                rrs: answer.rrs.into(),
            };
            let answer = DnsAgentResponse {
                session: Some(session),
                request: Some(question),
                response: Some(response),
            };
            if let Err(status) =
                with_timeout(ANSWER_TIMEOUT, client.agent_lookup_dns_response(answer)).await
            {
                context.log_once.warn(
                    "dns",
                    &format!(
                        "the traffic-manager rejected a DNS answer: {}",
                        status_text(&status)
                    ),
                );
            }
        });
    }

    async fn log_levels(&self) {
        let open = || {
            let mut client = self.client.clone();
            async move { client.watch_log_level(()).await }
        };
        self.side_watch("log levels", open, |level_override| {
            self.set_level(&level_override)
        })
        .await;
    }

    /// Applies a log level request: an empty level ends the override, an unknown one means info.
    /// One with a duration ends by itself, even if the session ends earlier.
    fn set_level(&self, level_override: &LogLevelRequest) {
        let level = (!level_override.log_level.is_empty())
            .then(|| LogLevel::lenient(&level_override.log_level));
        let levels = Arc::clone(&self.context.levels);
        let wish_number = levels.set(level);
        let lasts = level_override
            .duration
            .as_ref()
            .and_then(|d| Duration::try_from(*d).ok())
            // Zero and absent both mean that the level lasts.
            .filter(|d| !d.is_zero());
        // On a task of the control side, so that the level ends even if this session ends before.
        if let Some(lasts) = lasts.filter(|_| level.is_some()) {
            self.context.control.spawn(async move {
                tokio::time::sleep(lasts).await;
                levels.restore_after(wish_number);
            });
        }
    }

    /// Reports the traffic of finished tunnels to the manager.
    async fn reports(&self) {
        // A session under way owns the receiver; its successor waits until it is dropped.
        let mut reports = self.context.reports.lock().await;
        while let Some(report) = reports.recv().await {
            self.report(report).await;
        }
        std::future::pending().await
    }

    async fn report(&self, report: TunnelMetrics) {
        let mut client = self.client.clone();
        if let Err(status) = with_timeout(REPORT_INTERVAL, client.report_metrics(report)).await {
            tracing::debug!(
                "the traffic-manager rejected a report: {}",
                status_text(&status)
            );
        }
    }

    /// Tells the manager, and through it the developer, of intercepts whose requests go to the app
    /// because their workstation is not reached, and when it is reached again.
    async fn failures(&self) {
        let mut told: HashMap<String, u64> = HashMap::new();
        loop {
            tokio::select! {
                () = self.context.tunnels.fallbacks().notified() => {}
                () = tokio::time::sleep(RECOVERY_INTERVAL), if !told.is_empty() => {}
            }
            let routed = self.context.publisher.routed();
            told.retain(|id, _| routed.iter().any(|i| i.id == *id));
            for intercept in routed {
                if let Some(report) = failure_report(&intercept, &mut told) {
                    self.report(report).await;
                }
            }
            // Failures come in crowds.
            tokio::time::sleep(REPORT_INTERVAL).await;
        }
    }

    /// Keeps an optional watch open: one the manager does not have is left alone, one that ends is
    /// reopened after a pause (never a second beside the first, which would split its messages).
    async fn side_watch<M, F>(
        &self,
        what: &'static str,
        open: impl Fn() -> F,
        mut each: impl FnMut(M),
    ) where
        F: Future<Output = Result<Response<Streaming<M>>, Status>>,
    {
        let mut pause = REOPEN_BACKOFF.0;
        loop {
            let ended = async {
                let mut stream = open().await?.into_inner();
                while let Some(message) = stream.next().await {
                    each(message?);
                    pause = REOPEN_BACKOFF.0;
                }
                Ok::<(), Status>(())
            };
            match ended.await {
                Err(status) if status.code() == Code::Unimplemented => {
                    self.context.log_once.info(
                        what,
                        &format!(
                            "the traffic-manager does not offer a watch for {what}; continuing \
                            without it"
                        ),
                    );
                    return std::future::pending().await;
                }
                Ok(()) => tracing::debug!("watch for {what} ended"),
                Err(status) => tracing::debug!("watch for {what} ended: {}", status_text(&status)),
            }
            tokio::time::sleep(pause).await;
            // Doubling up to the maximum; any message resets it.
            pause = (pause * 2).min(REOPEN_BACKOFF.1);
        }
    }
}

/// What is to be reported of an intercept's failures, if anything is new since it was last told.
fn failure_report(intercept: &Intercept, told: &mut HashMap<String, u64>) -> Option<TunnelMetrics> {
    let stats = &intercept.stats;
    let failed_open = stats.failed_open.load(Ordering::Relaxed);
    let failure = match stats.dials.reachability(Instant::now().into_std()) {
        Reachability::Unreachable { reason, .. } => reason,
        Reachability::Untried | Reachability::Reachable => String::new(),
    };
    let before = told.get(&intercept.id).copied();
    let is_news = match before {
        Some(before) => failure.is_empty() || before != failed_open,
        None => !failure.is_empty() && failed_open > 0,
    };
    if !is_news {
        return None;
    }
    if failure.is_empty() {
        told.remove(&intercept.id);
    } else {
        told.insert(intercept.id.clone(), failed_open);
    }
    Some(TunnelMetrics {
        client_session_id: intercept.client_session.clone(),
        intercept_id: intercept.id.clone(),
        failed_open,
        failure,
        ..TunnelMetrics::default()
    })
}

/// Sessions of the clients whose intercepts a snapshot holds.
fn owners(snapshot: &Snapshot) -> HashSet<String> {
    let owner = |info: &InterceptInfo| spec::owner_session(info).to_owned();
    snapshot.values().map(owner).collect()
}

async fn sleep_until_some(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn watch_ended(ended: Result<(), Status>) -> SessionLost {
    SessionLost::Ended(match ended {
        Ok(()) => "it ended the intercept watch".to_owned(),
        Err(status) => format!("the intercept watch failed: {}", status_text(&status)),
    })
}

/// Awaits a response within `limit`.
pub(crate) async fn with_timeout<T>(
    limit: Duration,
    answer: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    tokio::time::timeout(limit, answer)
        .await
        .unwrap_or_else(|_| {
            Err(Status::deadline_exceeded(format!(
                "no answer within {limit:?}"
            )))
        })
}

/// Formats code and message, with the transport's own reason if there is one.
pub(crate) fn status_text(status: &Status) -> String {
    let mut text = format!("{:?}", status.code());
    if !status.message().is_empty() {
        text.push_str(": ");
        text.push_str(status.message());
    }
    let mut source = std::error::Error::source(status);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
