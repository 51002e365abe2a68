//! Loops of a live session: remain, intercepts and their reviews, dials, DNS, log level, reports.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt};
use tokio::time::Instant;
use tonic::{Code, Response, Status, Streaming};
use traffic_proto::conn_id::ConnId;
use traffic_proto::heap_trim;
use traffic_proto::log_level::LogLevel;
use traffic_proto::manager::{
    DialRequest, DnsAgentResponse, DnsRequest, DnsResponse,
    InterceptDispositionType as Disposition, LogLevelRequest, RemainRequest, SessionInfo,
    TunnelMetrics,
};
use traffic_proto::tunnel::{StreamInfo, duration_from_nanos};

use crate::control::answers::{ANSWER_TIMEOUT, status_text, with_timeout};
use crate::control::context::{SessionContext, SessionLost};
use crate::control::intercepts::publisher::Published;
use crate::control::intercepts::shown::Shown;
use crate::control::intercepts::translate::{Review, Snapshot, Verdict};
use crate::control::manager_call;
use crate::control::manager_call::ManagerLink;
use crate::control::manager_token::Manager;
use crate::control::meter::TunnelDirection;
use crate::control::reviews::{ReviewSender, Reviews};
use crate::routes::UnreadTls;
use crate::telemetry::metrics::ControlLimit;
use crate::telemetry::rate_limit::limited;
use traffic_core::routing::dial_memory::Reachability;
use traffic_core::routing::{Intercept, Mechanism};

/// Interval of the Remain call; older managers forget an agent after 15 s.
const REMAIN_INTERVAL: Duration = Duration::from_secs(5);
/// Consecutive failed Remain calls after which the session counts as lost.
const MAX_MISSED_REMAINS: u32 = 3;
/// Time for a report, and between two of the same kind.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// Intercepts, and half the filters, of a snapshot that is applied without another thread.
const MAX_SMALL: usize = 32;
/// Intercepts that are kept of what the manager shows.
const MAX_SHOWN: usize = 8192;
/// How often to look whether a workstation that was not reached is reached again.
const RECOVERY_INTERVAL: Duration = Duration::from_secs(5);
/// Delay before a side watch is reopened, first and longest; doubles each time.
const REOPEN_BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// A session granted by the manager.
pub(crate) struct Live<'a> {
    pub(crate) context: &'a Arc<SessionContext>,
    pub(crate) client: Manager,
    pub(crate) link: ManagerLink,
    pub(crate) session: SessionInfo,
    pub(crate) reviews: Arc<Reviews>,
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
            let count = delta.upserts.len();
            let upserts = delta.upserts.into_iter();
            snapshot.extend(upserts.map(|(id, info)| (id, Arc::new(Shown::from(info)))));
            for id in &delta.removals {
                snapshot.remove(id);
            }
            count
        })
        .await
    }

    async fn snapshots(&self) -> Result<(), Status> {
        let mut client = self.client.clone();
        let snapshots = client.watch_intercepts(self.session.clone()).await?;
        self.follow(snapshots.into_inner(), |snapshot, message| {
            let all = message.intercepts.into_iter();
            let shown = all.map(|i| Arc::new(Shown::from(i)));
            *snapshot = shown.map(|i| (i.id.clone(), i)).collect();
            snapshot.len()
        })
        .await
    }

    /// Applies each snapshot at once. A review that needs a probe waits alone; the snapshot is then
    /// applied again. `merge` returns the number of intercepts in a message.
    async fn follow<M>(
        &self,
        mut messages: Streaming<M>,
        merge: impl Fn(&mut Snapshot, M) -> usize,
    ) -> Result<(), Status> {
        let mut snapshot = Snapshot::new();
        let mut probing = FuturesUnordered::new();
        let (mut started, mut probed) = (HashSet::new(), HashSet::new());
        let mut look_again: Option<Instant> = None;
        loop {
            let mut has_freed_much = false;
            tokio::select! {
                message = messages.message() => match message? {
                    Some(message) => {
                        has_freed_much = merge(&mut snapshot, message) > MAX_SMALL;
                        drop_excess(&mut snapshot);
                        self.context.metrics.snapshots.inc();
                    }
                    None => return Ok(()),
                },
                Some(port) = probing.next() => {
                    probed.insert(port);
                }
                () = sleep_until_some(look_again) => {}
            }
            let published = self.take(&mut snapshot, &probed).await?;
            look_again = published.look_again;
            if has_freed_much {
                heap_trim::give_back();
            }
            for port in published.probes {
                if started.insert(port) {
                    let probe = self.context.publisher.probe(port);
                    probing.push(probe.map(move |()| port));
                }
            }
        }
    }

    async fn take(
        &self,
        snapshot: &mut Snapshot,
        probed: &HashSet<usize>,
    ) -> Result<Published, Status> {
        let count = i64::try_from(snapshot.len()).unwrap_or(i64::MAX);
        self.context.metrics.intercepts.set(count);
        let carried = self.context.publisher.carried_sessions();
        let sessions = self.context.tunnels.sessions();
        sessions.announce(owners(snapshot), carried.into_iter().collect());
        self.reviews.forget_others(snapshot);
        let mut published = self.publish(snapshot, probed).await?;
        for review in std::mem::take(&mut published.reviews) {
            if review.is_bound {
                self.say_bound(&review);
            }
            self.context.metrics.reviews.inc();
            self.send(review);
        }
        Ok(published)
    }

    /// Applies a snapshot, a large one on a thread of its own: this one answers `/ready`.
    async fn publish(
        &self,
        snapshot: &mut Snapshot,
        probed: &HashSet<usize>,
    ) -> Result<Published, Status> {
        // There may be intercepts to report on.
        self.context.tunnels.fallbacks().notify_one();
        if is_small(snapshot) {
            return Ok(self.context.publisher.snapshot(snapshot, probed));
        }
        let (all, probed) = (std::mem::take(snapshot), probed.clone());
        let context = Arc::clone(self.context);
        let applied = tokio::task::spawn_blocking(move || {
            let published = context.publisher.snapshot(&all, &probed);
            (all, published)
        });
        let (all, published) = applied
            .await
            .map_err(|error| Status::internal(format!("intercepts were not applied: {error}")))?;
        *snapshot = all;
        Ok(published)
    }

    fn say_bound(&self, review: &Review) {
        let metrics = &self.context.metrics;
        metrics.limits.at(ControlLimit::Intercepts).inc();
        if let Verdict::Refuse { message, .. } = &review.verdict {
            limited!(
                metrics.lines.intercepts,
                warn,
                id = review.id,
                "intercept refused: a bound is reached: {message}"
            );
        }
    }

    /// Has a review sent by a task, because a slow response must not hold up the next snapshot.
    fn send(&self, review: Review) {
        if !self.reviews.add(review) {
            return;
        }
        let sender = ReviewSender {
            client: self.client.clone(),
            session: self.session.clone(),
            context: Arc::clone(self.context),
        };
        let reviews = Arc::downgrade(&self.reviews);
        self.context.control.spawn(async move {
            // The queue ends with the session.
            while let Some((ticket, review)) = reviews.upgrade().and_then(|it| it.next()) {
                sender.send(&ticket, review).await;
            }
        });
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
        // Without a place even for a refusal the other side's wait ends by its own timeout.
        let Some(place) = self.context.dialer.place() else {
            return;
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
            match tokio::time::timeout(budget, manager_call::call(&link, info, meter)).await {
                Ok(Ok(io)) => context.dialer.serve(place, conn_id, timeout, io).await,
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
        let Some(place) = self.context.dns.place() else {
            return;
        };
        let (mut client, context, session) = (
            self.client.clone(),
            Arc::clone(self.context),
            self.session.clone(),
        );
        self.context.control.spawn(async move {
            let _place = place;
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

    /// Reports the traffic of ended tunnels to the manager.
    async fn reports(&self) {
        loop {
            for report in self.context.tunnels.reports().next().await {
                self.report(report).await;
            }
            // Those that end meanwhile are reported together.
            tokio::time::sleep(REPORT_INTERVAL).await;
        }
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
    /// because their workstation is not reached, and when it is reached again; and how many requests
    /// the workstations got.
    async fn failures(&self) {
        let mut told: HashMap<String, Told> = HashMap::new();
        loop {
            tokio::select! {
                () = self.context.tunnels.fallbacks().notified() => {}
                () = tokio::time::sleep(RECOVERY_INTERVAL), if !told.is_empty() => {}
            }
            let routed = self.context.publisher.routed();
            told.retain(|id, _| routed.iter().any(|(i, _)| i.id == *id));
            // As long as there is one, it is looked at.
            for (intercept, _) in &routed {
                told.entry(intercept.id.clone()).or_default();
            }
            for (intercept, unread) in routed {
                if let Some(report) = outcome_report(&intercept, unread, &mut told) {
                    let agent_session_id = self.session.session_id.clone();
                    self.report(TunnelMetrics {
                        agent_session_id,
                        ..report
                    })
                    .await;
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

/// Counts of an intercept that the manager was told last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Told {
    /// Requests that the workstation got.
    hits: u64,
    failed_open: u64,
    is_failing: bool,
}

/// Report of an intercept's requests, if anything is new since it was last told.
fn outcome_report(
    intercept: &Intercept,
    unread: Option<UnreadTls>,
    told: &mut HashMap<String, Told>,
) -> Option<TunnelMetrics> {
    let stats = &intercept.stats;
    let missed = stats.failed_open.load(Ordering::Relaxed);
    let matched = stats.hits.load(Ordering::Relaxed);
    let mut failed_open = missed;
    let unread = unread.filter(|_| intercept.mechanism == Mechanism::Http);
    let failure = match stats.dials.reachability(Instant::now().into_std()) {
        Reachability::Unreachable { reason, .. } => reason,
        Reachability::Untried | Reachability::Reachable => match unread {
            None => String::new(),
            Some(unread) => {
                failed_open += unread.connections;
                unread.text
            }
        },
    };
    let now = Told {
        hits: matched.saturating_sub(missed),
        failed_open,
        is_failing: !failure.is_empty(),
    };
    // A failure without a request has nothing to tell yet.
    if now.is_failing && now.failed_open == 0 {
        return None;
    }
    let before = told.insert(intercept.id.clone(), now).unwrap_or_default();
    (before != now).then(|| TunnelMetrics {
        client_session_id: intercept.client_session.clone(),
        intercept_id: intercept.id.clone(),
        hits: now.hits,
        failed_open: now.failed_open,
        failure,
        ..TunnelMetrics::default()
    })
}

/// Sessions of the clients whose intercepts a snapshot holds.
fn owners(snapshot: &Snapshot) -> HashSet<String> {
    snapshot.values().map(|info| info.owner.clone()).collect()
}

fn is_alive(info: &Shown) -> bool {
    matches!(
        info.disposition(),
        Disposition::Active | Disposition::Waiting
    )
}

/// Returns true for a snapshot that is applied in no time.
fn is_small(snapshot: &Snapshot) -> bool {
    let filters = |info: &Arc<Shown>| {
        let spec = info.spec.as_ref();
        spec.map_or(0, |s| {
            s.header_filters.len() + s.path_filters.len() + s.mechanism_args.len()
        })
    };
    snapshot.len() <= MAX_SMALL && snapshot.values().map(filters).sum::<usize>() <= 2 * MAX_SMALL
}

/// Forgets refused intercepts beyond a bound: they are shown until their owners remove them.
fn drop_excess(snapshot: &mut Snapshot) {
    if snapshot.len() > MAX_SHOWN {
        snapshot.retain(|_, info| is_alive(info));
    }
    while snapshot.len() > MAX_SHOWN {
        snapshot.pop_last();
    }
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
