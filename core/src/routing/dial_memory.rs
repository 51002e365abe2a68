//! Memory of an intercept's dials: after one that failed the workstation is skipped at once for a
//! short, growing time, and one request at a time tries again. Pure: time comes in as a value.
//!
//! ```text
//!             success                    failure
//!   Trusted <--------- Doubted ------------------> Skipped(1, 2, 4 … 30 s)
//!      |                  ^  ^                            |
//!      +- attachment or --+  +---- back-off is over ------+
//!         tunnel lost
//! ```
//!
//! While the workstation is trusted, requests dial side by side; the first waits for the whole dial
//! timeout, the others only a little longer than dials usually take, or as long as the slowest of
//! late, unless one succeeds meanwhile.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use traffic_proto::sync::lock;

/// Backoff after failed dials: first and longest.
const SKIP_BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Multiple of the usual dial time that a request waits behind an unanswered dial.
const USUAL_FACTOR: u32 = 8;
/// The same multiple for an intercept of a whole port, whose callers are anybody.
const WHOLE_PORT_FACTOR: u32 = 3;
/// Time the slowest dial is remembered: what one took lately, the next may take too, and a caller
/// who waits as long gets the workstation's answer and not the app's.
const SLOWEST_AGE: Duration = Duration::from_secs(30);
/// Bounds of that wait for an intercept of a whole port. It counts from the unanswered dial's
/// begin: a laptop that was busy for less misses nothing, and all who wait give up together.
const WHOLE_PORT_TIMEOUT: (Duration, Duration) =
    (Duration::from_millis(150), Duration::from_secs(1));
/// Least time that the first of a whole port's callers waits, and one that tries again, where
/// earlier dials were quicker.
const WHOLE_PORT_DIAL_TIMEOUT: Duration = Duration::from_secs(1);
const WHOLE_PORT_RETRY_TIMEOUT: Duration = Duration::from_millis(250);
/// Bounds of that wait for an intercept with filters, whose callers are the developer's own.
const FILTERED_TIMEOUT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(2));
/// A dial that its caller gave up counts as failed when it was unanswered for this long.
const ABANDONED_AGE: Duration = Duration::from_secs(1);

/// Memory of one intercept's dials.
#[derive(Debug, Default)]
pub struct DialMemory(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    trust: Trust,
    /// The dial that waits for its whole timeout.
    leader: Option<Leader>,
    numbers: u64,
    /// Successes so far: others learn by it that the workstation answers.
    successes: u64,
    /// Usual time of a dial; none until one has succeeded.
    usual: Option<Duration>,
    /// Time of the slowest dial of late, and when it ended.
    slowest: Option<(Duration, Instant)>,
    /// The workstation's attachment at the last success or failure.
    attachment: Option<u64>,
    /// Failures in a row.
    failures: u32,
    last_failure: Option<String>,
}

#[derive(Clone, Copy, Debug)]
struct Leader {
    number: u64,
    began: Instant,
    successes_before: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Trust {
    #[default]
    Trusted,
    Doubted,
    Skipped {
        until: Instant,
    },
}

/// The answer to a request that wants to dial.
#[derive(Debug)]
pub enum Admission {
    /// The request may dial.
    Dial(Attempt),
    /// The workstation is skipped; the app is to answer at once.
    Skip(Skipped),
}

/// Reason a workstation is skipped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Failure of the last dial.
    pub reason: String,
    /// Time until the next request may dial; zero while one does.
    pub retry_in: Duration,
}

/// State of a workstation by earlier dials, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reachability {
    /// Untried: no dial has ended yet.
    Untried,
    /// The last dial succeeded.
    Reachable,
    /// The last dial, or the last tunnel, failed.
    Unreachable {
        /// Failures in a row.
        failures: u32,
        /// Failure of the last dial.
        reason: String,
        /// Time until the next request may dial; zero if it may now.
        retry_in: Duration,
    },
}

/// A dial attempt. Dropped without an outcome, it counts as failed only if it was unanswered for
/// long.
#[derive(Debug)]
pub struct Attempt {
    memory: Arc<DialMemory>,
    number: u64,
    began: Instant,
    successes_before: u64,
    attachment: Option<u64>,
    /// Time to wait behind the leader; none for the leader itself.
    patience: Option<Duration>,
    /// Time after which the dial has failed, below the intercept's own.
    limit: Option<Duration>,
    doubted: bool,
    /// Clock readings come in as values everywhere else; a drop has none.
    over: bool,
}

impl DialMemory {
    /// Asks for leave to dial at `now`. `attachment` numbers the workstation's present attachment
    /// to this agent; a new one is a reason to try at once.
    pub fn admit(
        self: &Arc<Self>,
        now: Instant,
        attachment: Option<u64>,
        whole_port: bool,
    ) -> Admission {
        let mut known = self.lock();
        if attachment != known.attachment {
            known.attachment_changed(attachment);
        }
        if let Trust::Skipped { until } = known.trust {
            if now < until {
                return Admission::Skip(known.skipped(until - now));
            }
            known.trust = Trust::Doubted;
        }
        let doubted = known.trust == Trust::Doubted;
        // One request tries; whoever comes meanwhile gets the app's answer without waiting.
        if doubted && known.leader.is_some() {
            return Admission::Skip(known.skipped(Duration::ZERO));
        }
        let mut patience = known.leader.map(|_| known.patience(now, whole_port));
        if let (Some(silence), Some(patience)) = (known.silence(now), &mut patience) {
            if silence > *patience {
                return Admission::Skip(known.skipped(Duration::ZERO));
            }
            if whole_port {
                *patience -= silence;
            }
        }
        let limit = known.limit(whole_port);
        known.numbers += 1;
        let number = known.numbers;
        let successes_before = known.successes;
        // Only the first dial of a burst waits for the whole timeout.
        known.leader.get_or_insert(Leader {
            number,
            began: now,
            successes_before,
        });
        Admission::Dial(Attempt {
            memory: Arc::clone(self),
            number,
            began: now,
            successes_before,
            attachment,
            patience,
            limit,
            doubted,
            over: false,
        })
    }

    /// Notes that an established tunnel broke: the next request dials alone.
    pub fn tunnel_lost(&self) {
        let mut known = self.lock();
        // A skipped workstation stays skipped: the loss says nothing new.
        if known.trust == Trust::Trusted {
            known.trust = Trust::Doubted;
        }
    }

    /// Forgets failures; for an intercept that begins anew.
    pub fn forget(&self) {
        let mut known = self.lock();
        known.trust = Trust::Trusted;
        known.failures = 0;
        known.last_failure = None;
    }

    /// Notes that nothing takes the datagrams of a flow whose dial had succeeded, as those do
    /// whoever listens. Flows that are refused side by side count once.
    pub fn refused(&self, now: Instant, reason: &str) {
        let mut known = self.lock();
        if !matches!(known.trust, Trust::Skipped { .. }) {
            known.failed(now, reason);
        }
    }

    /// Returns true if a request at `now` may dial the workstation of this `attachment`.
    #[must_use]
    pub fn may_try(&self, now: Instant, attachment: Option<u64>) -> bool {
        let known = self.lock();
        if attachment.is_some() && attachment != known.attachment {
            return true;
        }
        match known.trust {
            Trust::Trusted => true,
            Trust::Doubted => known.leader.is_none(),
            Trust::Skipped { until } => now >= until,
        }
    }

    /// Returns the state at `now`, for messages.
    #[must_use]
    pub fn reachability(&self, now: Instant) -> Reachability {
        let known = self.lock();
        match (&known.last_failure, known.successes) {
            (Some(reason), _) => Reachability::Unreachable {
                failures: known.failures,
                reason: reason.clone(),
                retry_in: match known.trust {
                    Trust::Skipped { until } => until.saturating_duration_since(now),
                    Trust::Trusted | Trust::Doubted => Duration::ZERO,
                },
            },
            (None, 0) => Reachability::Untried,
            (None, _) => Reachability::Reachable,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        lock(&self.0)
    }
}

impl Known {
    /// A workstation that attached may be tried at once; one that let go is doubted.
    fn attachment_changed(&mut self, attachment: Option<u64>) {
        self.trust = match attachment {
            Some(_) => Trust::Trusted,
            None if self.trust == Trust::Trusted => Trust::Doubted,
            None => self.trust,
        };
        self.attachment = attachment;
    }

    fn end_lead(&mut self, number: u64) {
        if self.leader.is_some_and(|leader| leader.number == number) {
            self.leader = None;
        }
    }

    /// Time for which the leader's dial is unanswered. A success since it began proves that the
    /// workstation answers, whatever holds the leader up.
    fn silence(&self, now: Instant) -> Option<Duration> {
        let leader = self.leader?;
        let is_silent = leader.successes_before == self.successes;
        is_silent.then(|| now.saturating_duration_since(leader.began))
    }

    fn patience(&self, now: Instant, whole_port: bool) -> Duration {
        let (factor, (least, most)) = if whole_port {
            (WHOLE_PORT_FACTOR, WHOLE_PORT_TIMEOUT)
        } else {
            (USUAL_FACTOR, FILTERED_TIMEOUT)
        };
        let slowest = self.slowest(now).unwrap_or_default();
        self.usual.map_or(most, |usual| {
            (usual * factor).max(slowest).clamp(least, most)
        })
    }

    fn slowest(&self, now: Instant) -> Option<Duration> {
        let (took, at) = self.slowest?;
        (now.saturating_duration_since(at) < SLOWEST_AGE).then_some(took)
    }

    /// Callers of a whole port are anybody: what they wait is bounded by what dials usually take.
    fn limit(&self, whole_port: bool) -> Option<Duration> {
        let usual = self.usual.filter(|_| whole_port)?;
        let least = if self.failures > 0 {
            WHOLE_PORT_RETRY_TIMEOUT
        } else {
            WHOLE_PORT_DIAL_TIMEOUT
        };
        Some((usual * USUAL_FACTOR).max(least))
    }

    fn skipped(&self, retry_in: Duration) -> Skipped {
        let reason = self.last_failure.as_deref();
        Skipped {
            reason: reason.unwrap_or("an earlier dial is unanswered").to_owned(),
            retry_in,
        }
    }

    fn succeeded(&mut self, now: Instant, attempt: &Attempt) {
        let took = now.saturating_duration_since(attempt.began);
        self.successes += 1;
        self.usual = Some(self.usual.map_or(took, |usual| (usual * 3 + took) / 4));
        if self.slowest(now).is_none_or(|slowest| took >= slowest) {
            self.slowest = Some((took, now));
        }
        self.trust = Trust::Trusted;
        self.failures = 0;
        self.last_failure = None;
        self.attachment = attempt.attachment;
        self.end_lead(attempt.number);
    }

    fn failed(&mut self, now: Instant, reason: &str) {
        self.failures = self.failures.saturating_add(1);
        self.last_failure = Some(reason.to_owned());
        let doublings = (self.failures - 1).min(16);
        let skip = SKIP_BACKOFF.0.saturating_mul(1 << doublings);
        self.trust = Trust::Skipped {
            until: now + skip.min(SKIP_BACKOFF.1),
        };
    }
}

impl Attempt {
    /// Returns the time to wait behind another unanswered dial; none for the dial that waits for
    /// its whole timeout.
    #[must_use]
    pub fn patience(&self) -> Option<Duration> {
        self.patience
    }

    /// Returns the time after which the dial has failed, if it is less than the intercept's own.
    #[must_use]
    pub fn limit(&self) -> Option<Duration> {
        self.limit
    }

    /// Returns true if other requests skip the workstation until this dial is over, so that no byte
    /// may be sent before.
    #[must_use]
    pub fn is_doubted(&self) -> bool {
        self.doubted
    }

    /// Returns true if the workstation has answered another dial since this one began.
    #[must_use]
    pub fn others_succeeded(&self) -> bool {
        self.memory.lock().successes != self.successes_before
    }

    /// The workstation has connected.
    pub fn succeeded(mut self, now: Instant) {
        self.over = true;
        self.memory.lock().succeeded(now, &self);
    }

    /// The workstation has a socket for datagrams, which tells nothing about who listens: a
    /// workstation that is trusted stays so, and one that is not has to prove more.
    pub fn opened(mut self, now: Instant) {
        self.over = true;
        let mut known = self.memory.lock();
        if known.trust == Trust::Trusted {
            known.succeeded(now, &self);
        } else {
            known.end_lead(self.number);
        }
    }

    /// The dial has failed. Dials that began side by side fail together and count once.
    pub fn failed(mut self, now: Instant, reason: &str) {
        self.over = true;
        self.conclude(Some((now, reason)));
    }

    fn conclude(&self, failure: Option<(Instant, &str)>) {
        let mut known = self.memory.lock();
        known.end_lead(self.number);
        let Some((now, reason)) = failure else { return };
        let counted_already = matches!(known.trust, Trust::Skipped { .. })
            || known.successes != self.successes_before;
        if !counted_already {
            known.failed(now, reason);
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        // The only place that reads a clock: nobody hands a drop the time.
        let now = Instant::now();
        let long = now.saturating_duration_since(self.began) >= ABANDONED_AGE;
        let leads = self.patience.is_none();
        let failure = (long && leads).then_some((now, "the workstation did not answer in time"));
        self.conclude(failure);
    }
}

#[cfg(test)]
mod tests;
