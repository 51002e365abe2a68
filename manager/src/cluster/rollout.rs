//! Pods are brought to what they are to be, a few workloads at a time and never more of a
//! workload's pods than it can spare.
//!
//! Nothing is remembered about a roll-out but its surges: each step looks at the pods that are there.
//! So a manager may end amid one, and the next goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use injector::{Carrier, Kind, Mesh};
use kube::Client;
use tokio::sync::{Semaphore, watch};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::announce::{Announcer, Told};
use super::caches::Key;
use super::env::{ClusterSettings, RolloutMode};
use super::mesh;
use super::objects::{OwnRollout, WorkloadFacts, WorkloadState};
use super::planner::{Desired, Judged, Planner};
use super::replacing::{self, Outcome};
use super::saved_state::{SavedState, Surge};
use super::surge::Surging;
use traffic_proto::sync::lock;

/// Changes that come together are looked at together.
const DEBOUNCE_DELAY: Duration = Duration::from_millis(50);
/// Interval of looks without a change.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// A workload that makes no progress for so long makes room for others.
const STUCK_TIMEOUT: Duration = Duration::from_secs(300);
/// Time a workload is left alone that could not be rolled.
const RETRY_DELAY: Duration = Duration::from_secs(60);
/// Pause before pods that came without an agent are replaced once more.
const REPEAT_DELAY: Duration = Duration::from_secs(1);
/// Time an eviction is tried before the workload's own roll-out is used instead.
const EVICTION_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause between evictions that a budget refuses.
const EVICTION_INTERVAL: Duration = Duration::from_secs(2);

/// Brings pods to what they are to be.
pub(crate) struct Roller {
    client: Client,
    planner: Planner,
    announcer: Announcer,
    state: Arc<SavedState>,
    mode: RolloutMode,
    permits: Semaphore,
    running: Mutex<BTreeSet<Key>>,
    /// Workloads that could not be rolled: when, why.
    failed: Mutex<BTreeMap<Key, (Instant, String)>>,
    /// Counts the ends of roll-outs.
    ended: watch::Sender<u64>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// The end of one roll-out.
#[derive(Debug)]
enum RollEnd {
    Done,
    Failed(String),
}

impl Roller {
    pub(crate) fn new(
        client: Client,
        planner: Planner,
        announcer: Announcer,
        state: Arc<SavedState>,
        settings: &ClusterSettings,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            client,
            planner,
            announcer,
            state,
            mode: settings.rollout,
            permits: Semaphore::new(settings.rollout_concurrency),
            running: Mutex::default(),
            failed: Mutex::default(),
            ended: watch::Sender::new(0),
            tasks,
            stop,
        })
    }

    /// Follows the caches until the end.
    pub(crate) async fn run(self: Arc<Self>) {
        let caches = self.planner.caches.clone();
        // Their namespaces may have nothing else for us.
        for key in self.state.surging() {
            self.look(&key);
        }
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = caches.dirtied.notified() => {}
            }
            sleep(DEBOUNCE_DELAY).await;
            for namespace in caches.take_dirty() {
                let mut keys = self.planner.relevant(&namespace);
                let surging = self.state.surging().into_iter();
                keys.extend(surging.filter(|it| it.namespace == namespace));
                for key in keys {
                    self.look(&key);
                    // Reviews of pods wait for no more than one workload.
                    yield_now().await;
                }
            }
        }
    }

    /// Starts rolling a workload if that is needed and not under way.
    pub(crate) fn look(self: &Arc<Self>, key: &Key) {
        // A look costs no call, so that every change may cause one.
        if self.is_settled(key) || self.failed_lately(key) {
            return;
        }
        if !lock(&self.running).insert(key.clone()) {
            return;
        }
        let (this, key) = (self.clone(), key.clone());
        self.tasks.spawn(async move {
            // The next manager goes on from the pods that are there.
            let end = tokio::select! {
                () = this.stop.cancelled() => RollEnd::Done,
                end = this.roll(&key) => end,
            };
            lock(&this.running).remove(&key);
            match end {
                RollEnd::Done => {
                    lock(&this.failed).remove(&key);
                }
                RollEnd::Failed(why) => {
                    tracing::warn!(workload = %key, "roll-out stopped: {why}");
                    this.tell(&key, Told::RollFailed, &why).await;
                    lock(&this.failed).insert(key.clone(), (Instant::now(), why));
                    this.again_later(&key);
                }
            }
            this.ended.send_modify(|count| *count += 1);
            // Something may have changed at the last moment.
            this.planner.caches.touch(&key.namespace);
        });
    }

    /// Forgets that a workload could not be rolled: somebody asks anew.
    pub(crate) fn forgive(&self, key: &Key) {
        lock(&self.failed).remove(key);
    }

    /// Reason a workload could not be rolled, if that is so.
    pub(crate) fn failure(&self, key: &Key) -> Option<String> {
        lock(&self.failed).get(key).map(|(_, why)| why.clone())
    }

    /// All pods of the workload are as they are to be, and as many as its owner asks for.
    pub(crate) fn is_settled(&self, key: &Key) -> bool {
        self.state.surge(key).is_none() && self.planner.judge(key).iter().all(|it| it.matches)
    }

    /// Workloads being rolled.
    pub(crate) fn active(&self) -> usize {
        lock(&self.running).len()
    }

    /// Hears of the ends of roll-outs.
    pub(crate) fn ends(&self) -> watch::Receiver<u64> {
        self.ended.subscribe()
    }

    fn failed_lately(&self, key: &Key) -> bool {
        let failed = lock(&self.failed);
        let last = failed.get(key);
        last.is_some_and(|(when, _)| when.elapsed() < RETRY_DELAY)
    }

    fn again_later(self: &Arc<Self>, key: &Key) {
        let (this, namespace) = (self.clone(), key.namespace.clone());
        self.tasks.spawn(async move {
            tokio::select! {
                () = this.stop.cancelled() => {}
                () = sleep(RETRY_DELAY) => this.planner.caches.touch(&namespace),
            }
        });
    }

    async fn tell(&self, key: &Key, told: Told, note: &str) {
        let caches = &self.planner.caches;
        self.announcer.tell(caches, key, told, note).await;
    }

    /// Makes or removes, in a mesh, the object that redirects the workload's ports: it is there
    /// before the agent is, and goes after it.
    async fn redirect(&self, key: &Key) -> Result<(), String> {
        if self.planner.settings.mesh != Mesh::Istio {
            return Ok(());
        }
        let Some(workload) = self.planner.caches.workload(key) else {
            return Ok(());
        };
        match self.planner.desired(&workload, &workload.template) {
            Desired::Agent(plan) if plan.mesh => {
                let egress = self.planner.caches.mesh_egress(&key.namespace);
                mesh::apply(&self.client, &plan.config, egress).await
            }
            // As long as one pod has an agent its ports have to be led to it.
            _ if self.planner.judge(key).iter().all(|it| !it.pod.has_agent) => {
                mesh::remove(&self.client, &key.namespace, &key.name).await
            }
            _ => Ok(()),
        }
    }

    fn surging(&self, surge: Surge) -> Surging<'_> {
        Surging {
            client: &self.client,
            planner: &self.planner,
            state: &self.state,
            surge,
        }
    }

    async fn roll(&self, key: &Key) -> RollEnd {
        // Closed never, so this waits at most.
        let Ok(_permit) = self.permits.acquire().await else {
            return RollEnd::Done;
        };
        if let Err(why) = self.redirect(key).await {
            return RollEnd::Failed(why);
        }
        if let Some(surge) = self.state.surge(key)
            && let Err(why) = self.surging(surge).resume().await
        {
            return RollEnd::Failed(why);
        }
        let wanted = self.planner.wants(key);
        let what = if wanted { "adding" } else { "removing" };
        tracing::info!(workload = %key, "rolling pods, {what} the agent");
        let note = format!("replacing pods, {what} the agent");
        self.tell(key, Told::Rolling, &note).await;
        let mut rolling = Rolling {
            roller: self,
            key,
            acted_on: BTreeSet::new(),
            known: BTreeSet::new(),
            restarted: None,
            by_eviction: None,
            refused_since: None,
            repeated: false,
        };
        let mut changes = self.planner.caches.changes();
        let mut progress = (Instant::now(), usize::MAX);
        loop {
            changes.mark_unchanged();
            let pods = self.planner.judge(key);
            let stale = pods.iter().filter(|it| !it.matches).count();
            if stale == 0 {
                tracing::info!(workload = %key, pods = pods.len(), "pods are as they are to be");
                let note = format!("{} pods are as they are to be", pods.len());
                self.tell(key, Told::Rolled, &note).await;
                if let Err(why) = self.redirect(key).await {
                    tracing::warn!(workload = %key, "{why}");
                }
                return RollEnd::Done;
            }
            if stale < progress.1 {
                progress = (Instant::now(), stale);
            }
            if progress.0.elapsed() > STUCK_TIMEOUT {
                let minutes = STUCK_TIMEOUT.as_secs() / 60;
                return RollEnd::Failed(format!("no progress for {minutes} minutes"));
            }
            if let Err(why) = rolling.step(&pods).await {
                return RollEnd::Failed(why);
            }
            let _ = timeout(LOOK_INTERVAL, changes.changed()).await;
        }
    }
}

/// One workload being rolled.
struct Rolling<'a> {
    roller: &'a Roller,
    key: &'a Key,
    /// Uids of pods that were told to go.
    acted_on: BTreeSet<String>,
    /// Uids of pods that were there before anything was done.
    known: BTreeSet<String>,
    /// Start of the workload's own roll-out.
    restarted: Option<Instant>,
    /// True if there were enough ready pods at first for evicting one after the other.
    by_eviction: Option<bool>,
    /// Start of a budget's refusals.
    refused_since: Option<Instant>,
    /// True after new pods came without an agent and everything was started again.
    repeated: bool,
}

impl Rolling<'_> {
    async fn step(&mut self, pods: &[Judged]) -> Result<(), String> {
        let caches = &self.roller.planner.caches;
        let Some(workload) = caches.workload(self.key) else {
            return Ok(());
        };
        let untouched = self.acted_on.is_empty() && self.restarted.is_none();
        if untouched {
            self.known = pods.iter().map(|it| it.pod.uid.clone()).collect();
        } else if pods
            .iter()
            .any(|it| it.lacks_agent && !self.known.contains(&it.pod.uid))
        {
            if !self.repeated {
                return self.repeat(pods).await;
            }
            return Err(
                "a new pod came without an agent: the API server cannot reach the webhook, or \
                 another webhook took the agent away; look at the events of the pod's owner and at \
                 the manager's log, and on clusters whose API server cannot reach pods set \
                 hostNetwork or agentInjector.webhook.url"
                    .to_owned(),
            );
        }
        let ready = pods.iter().filter(|it| it.pod.ready).count();
        let spared = *self
            .by_eviction
            .get_or_insert_with(|| can_spare(&workload, pods));
        if self.restarted.is_some_and(|when| !is_over(&workload, when)) {
            return self.unblock(pods).await;
        }
        if self.restarts(&workload, pods, spared) {
            // What an earlier manager began goes on without this one.
            if brings_wanted(&workload, pods) {
                return Ok(());
            }
            return self.restart().await;
        }
        if needs_surge(&workload, ready) {
            let stale = pods.iter().find(|it| !it.matches).map(|it| it.pod.clone());
            let Some(stale) = stale else { return Ok(()) };
            self.acted_on.insert(stale.uid.clone());
            let surge = Surge::of(&workload, &stale);
            return self.roller.surging(surge).begin().await;
        }
        self.evict(&workload, pods, ready).await
    }

    /// Starts again, once: a single call of the webhook may be lost, for instance right after an
    /// installation, before every API server has the way to it.
    async fn repeat(&mut self, pods: &[Judged]) -> Result<(), String> {
        tracing::warn!(workload = %self.key, "a new pod came without an agent: rolling once more");
        self.repeated = true;
        sleep(REPEAT_DELAY).await;
        self.acted_on.clear();
        self.restarted = None;
        self.known = pods.iter().map(|it| it.pod.uid.clone()).collect();
        Ok(())
    }

    /// Removes a pod of the workload's own roll-out that is not wanted any more and never became
    /// ready, such as one whose agent's image cannot be pulled: the roll-out would wait for it for
    /// ever.
    async fn unblock(&mut self, pods: &[Judged]) -> Result<(), String> {
        let is_new = |uid: &String| !self.known.contains(uid) && !self.acted_on.contains(uid);
        let stuck = pods
            .iter()
            .find(|it| !it.matches && !it.pod.ready && is_new(&it.pod.uid));
        let Some(stuck) = stuck else { return Ok(()) };
        if let Outcome::Done = replacing::evict(&self.roller.client, &stuck.pod).await? {
            self.acted_on.insert(stuck.pod.uid.clone());
        }
        Ok(())
    }

    fn restarts(&self, workload: &WorkloadFacts, pods: &[Judged], spared: bool) -> bool {
        let refused = self
            .refused_since
            .is_some_and(|since| since.elapsed() > EVICTION_TIMEOUT);
        // Replacing what does not serve disturbs nobody.
        let all_idle = pods.iter().all(|it| it.matches || !it.pod.ready);
        workload.can_restart
            && match self.roller.mode {
                RolloutMode::Restart => true,
                RolloutMode::Evict => false,
                RolloutMode::Auto => !all_idle && (!spared || refused),
            }
    }

    async fn restart(&mut self) -> Result<(), String> {
        self.restarted = Some(Instant::now());
        let older = self.roller.planner.settings.carrier == Carrier::ConfigMap;
        replacing::restart(&self.roller.client, self.key, older).await
    }

    /// One pod at a time, and the next only when all others are ready.
    async fn evict(
        &mut self,
        workload: &WorkloadFacts,
        pods: &[Judged],
        ready: usize,
    ) -> Result<(), String> {
        let wanted = usize::try_from(workload.replicas).unwrap_or(0);
        let stale = || pods.iter().filter(|it| !it.matches);
        // One that does not serve anyway may go at once.
        let idle = stale().find(|it| !it.pod.ready);
        let Some(next) = idle.or_else(|| stale().next().filter(|_| ready >= wanted)) else {
            return Ok(());
        };
        match replacing::evict(&self.roller.client, &next.pod).await? {
            Outcome::Done => {
                self.acted_on.insert(next.pod.uid.clone());
                self.refused_since = None;
            }
            Outcome::Refused => {
                self.refused_since.get_or_insert_with(Instant::now);
                sleep(EVICTION_INTERVAL).await;
            }
        }
        Ok(())
    }
}

/// The workload's own roll-out is over, or has had its time to begin.
fn is_over(workload: &WorkloadFacts, since: Instant) -> bool {
    /// Waits until the workload's controller has surely seen the change.
    const BEGIN_DELAY: Duration = Duration::from_secs(10);
    since.elapsed() > BEGIN_DELAY && workload.state == WorkloadState::Available
}

/// The workload's own roll-out brings the pods that are wanted, or will.
fn brings_wanted(workload: &WorkloadFacts, pods: &[Judged]) -> bool {
    match workload.own_rollout {
        OwnRollout::Over => false,
        OwnRollout::Asked => true,
        OwnRollout::UnderWay => pods.iter().any(|it| it.matches),
    }
}

/// Enough pods serve for evicting one after the other. A pod that an earlier manager has replaced
/// counts before it is ready: the next one is evicted only when all are.
fn can_spare(workload: &WorkloadFacts, pods: &[Judged]) -> bool {
    let is_replaced = |it: &Judged| workload.replicas >= 2 && it.matches;
    let spared = pods.iter().filter(|it| it.pod.ready || is_replaced(it));
    spared.count() >= 2
}

/// A single pod of a workload that cannot replace it by itself without a gap.
fn needs_surge(workload: &WorkloadFacts, ready: usize) -> bool {
    workload.kind == Kind::ReplicaSet && workload.replicas == 1 && ready == 1
}

#[cfg(test)]
mod tests;
