//! Translates a manager snapshot to one route table for each port and the reviews to send back.
//! Pure: time is a parameter, so every rule of conflict and precedence is a row in a table test.
//!
//! A port keeps its promises (`held`): an intercept is routed while it is held and the manager
//! shows it as ACTIVE; a waiting one is accepted if no held one conflicts with it.

mod age;
mod candidates;
mod carried;
mod port;
mod review;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use traffic_core::routing::RouteTable;
use traffic_proto::manager::InterceptDispositionType as Disposition;
use traffic_proto::sidecar::Target;

use self::age::Ages;
pub use self::candidates::Readability;
use self::candidates::awaits_review;
use self::carried::{RETURN_GRACE, Returning};
use self::port::{PortRules, ReviewRound};
use self::review::refusal;
pub use self::review::{Review, Verdict};
use crate::control::intercepts::bounds::Bounds;
use crate::control::intercepts::shown::{Shown, ShownSpec};
use crate::control::intercepts::spec;

/// Intercepts of the agent as the manager reports them, by id; shared with what is compiled of them.
pub type Snapshot = BTreeMap<String, Arc<Shown>>;

/// An intercept of a snapshot, with its spec.
type Wanted<'s> = (&'s Arc<Shown>, &'s ShownSpec);

/// Time that an intercept about an unknown port is left to other pods of the workload, whose
/// configuration may be newer.
const STRANGER_GRACE: Duration = Duration::from_secs(10);
/// Interval at which an intercept is reviewed again while the manager shows it as waiting: a review
/// that got lost would leave it so for good.
const REVIEW_INTERVAL: Duration = Duration::from_secs(30);

/// Rules of all ports, kept between snapshots.
#[derive(Debug)]
pub struct Rules {
    agent: String,
    namespace: String,
    containers: Vec<String>,
    targets: Vec<Target>,
    ports: Vec<PortRules>,
    /// Time an ended intercept is remembered; none: not at all.
    remember: Option<Duration>,
    bounds: Bounds,
    /// Waiting intercepts about no port of this pod, with the time they were first seen.
    strangers: HashMap<String, Instant>,
    ages: Ages,
    returning: Returning,
}

/// Result of applying one snapshot.
#[derive(Debug, Default)]
pub struct Translation {
    /// Tables of the ports (by index) whose rules changed.
    pub tables: Vec<(usize, RouteTable)>,
    /// Reviews of the waiting intercepts.
    pub reviews: Vec<Review>,
    /// Changes for the log: intercepts that began and ended.
    pub changes: Vec<String>,
    /// Ports (by index) to probe before the rest of the reviews can be given.
    pub probes: BTreeSet<usize>,
    /// Time at which the same snapshot has to be applied again, if it stays the last one.
    pub look_again: Option<Instant>,
}

impl Rules {
    /// Creates empty rules. `remember` is the time matches of an ended intercept are answered as
    /// expired.
    #[must_use]
    pub fn new(
        agent: &str,
        namespace: &str,
        containers: Vec<String>,
        targets: Vec<Target>,
        remember: Option<Duration>,
    ) -> Self {
        let ports = targets.iter().map(|_| PortRules::default()).collect();
        Self {
            agent: agent.to_owned(),
            namespace: namespace.to_owned(),
            containers,
            targets,
            ports,
            remember,
            bounds: Bounds::default(),
            strangers: HashMap::new(),
            ages: Ages::default(),
            returning: Returning::default(),
        }
    }

    /// Sets other bounds than the defaults.
    #[must_use]
    pub fn within(self, bounds: Bounds) -> Self {
        Self { bounds, ..self }
    }

    /// Applies a complete snapshot. `readability` is what is known of each port; ports beyond its end
    /// are readable.
    pub fn apply(
        &mut self,
        snapshot: &Snapshot,
        readability: &[Readability],
        (now, wall): (Instant, SystemTime),
    ) -> Translation {
        let mut outcome = Translation::default();
        let mut reviews: BTreeMap<&str, Review> = BTreeMap::new();
        let mut unprobed: BTreeSet<&str> = BTreeSet::new();
        let mut ours: Vec<_> = snapshot
            .values()
            .filter_map(|i| Some((i, self.own_spec(i)?)))
            .collect();
        let excess = self.take_excess(&mut ours);
        let infos = ours.iter().map(|(info, _)| info.as_ref());
        let aged = self.ages.take(infos, self.bounds.rails(), (now, wall));
        self.end_overdue(now);
        // Each port is decided by itself: promises first, then routes, then reviews, since a review
        // may add a promise for the next snapshot.
        for (index, (port, target)) in self.ports.iter_mut().zip(&self.targets).enumerate() {
            let readability = readability.get(index).unwrap_or(&Readability::Readable);
            let candidates = port.candidates(
                &ours,
                (target, &self.targets),
                &self.containers,
                readability,
                (&self.bounds, &aged),
            );
            port.hold(&candidates, now);
            port.route(
                &candidates,
                self.remember,
                now,
                target,
                &mut outcome.changes,
            );
            let (known, later): (Vec<_>, Vec<_>) = candidates
                .list
                .iter()
                .filter(|c| awaits_review(c.info))
                .partition(|c| *readability != Readability::Unknown || !c.has_filters());
            if !later.is_empty() {
                outcome.probes.insert(index);
                unprobed.extend(later.iter().map(|c| c.info.id.as_str()));
            }
            let turn = ReviewRound {
                all: &candidates,
                target,
                now,
                bounds: &self.bounds,
            };
            port.review(&known, &turn, &mut reviews);
            outcome
                .tables
                .extend(port.changed_table().map(|table| (index, table)));
        }
        aged.tell(&mut outcome.changes, &mut reviews);
        for info in excess {
            let refused = refusal(&info.id, "", self.bounds.too_many());
            reviews.insert(&info.id, refused);
        }
        // One refusing port is enough, but no port accepts alone.
        reviews.retain(|id, review| !unprobed.contains(id) || review.is_refusal());
        let waiting = ours.iter().filter(|(i, _)| awaits_review(i));
        let strangers: Vec<_> = waiting
            .filter(|(i, _)| {
                !reviews.contains_key(i.id.as_str()) && !unprobed.contains(i.id.as_str())
            })
            .copied()
            .collect();
        let mut reviewed_again = self.review_strangers(&strangers, now, &mut reviews);
        if reviewed_again.is_none() && !reviews.is_empty() {
            reviewed_again = Some(now + REVIEW_INTERVAL);
        }
        let deadlines = [reviewed_again, aged.next(), self.return_deadline(now)];
        outcome.look_again = deadlines.into_iter().flatten().min();
        outcome.reviews = reviews.into_values().collect();
        outcome
    }

    /// Reviews intercepts that no port of this pod is about. They may be about a port of other pods
    /// of the workload, which review them at once; if nobody does within a while, their owners are
    /// told the known ports. Returns when to look again.
    fn review_strangers<'s>(
        &mut self,
        strangers: &[Wanted<'s>],
        now: Instant,
        reviews: &mut BTreeMap<&'s str, Review>,
    ) -> Option<Instant> {
        let ids: HashSet<_> = strangers.iter().map(|(info, _)| info.id.as_str()).collect();
        self.strangers.retain(|id, _| ids.contains(id.as_str()));
        let mut look_again = None;
        for (info, spec) in strangers {
            let since = *self.strangers.entry(info.id.clone()).or_insert(now);
            let due = since + STRANGER_GRACE;
            match spec::rule(info, spec, &self.bounds) {
                Ok(_) if now < due => {
                    look_again = Some(look_again.map_or(due, |at: Instant| at.min(due)));
                }
                rule => {
                    let refused = rule
                        .err()
                        .unwrap_or_else(|| spec::unknown_port(spec, &self.targets));
                    reviews.insert(&info.id, refusal(&info.id, "", refused));
                }
            }
        }
        look_again
    }

    /// Takes out of `ours` what is beyond the bound, and returns the waiting ones of it. Those that
    /// were promised or are active stay before all others.
    fn take_excess<'s>(&self, ours: &mut Vec<Wanted<'s>>) -> Vec<&'s Shown> {
        let most = self.bounds.intercepts();
        if ours.len() <= most {
            return Vec::new();
        }
        let held = self.ports.iter().flat_map(|port| &port.held);
        let held: HashSet<_> = held.map(|held| held.id.as_str()).collect();
        let is_later = |info: &Shown| {
            !held.contains(info.id.as_str()) && info.disposition() != Disposition::Active
        };
        ours.sort_by_key(|(info, _)| is_later(info));
        let excess = ours.split_off(most).into_iter();
        let excess = excess.map(|(info, _)| info.as_ref());
        excess.filter(|info| awaits_review(info)).collect()
    }

    /// Drops all promises with the lost session; current routes stay until a snapshot or
    /// [`Self::clear`].
    pub fn drop_promises(&mut self) {
        self.ports.iter_mut().for_each(|port| port.held.clear());
    }

    /// Begins a session. A manager that has no memory of this agent has none of the intercepts in
    /// force either: they stay until their clients have come back to it, or had the time to.
    pub fn arrive(&mut self, is_known: bool, now: Instant) {
        for port in &mut self.ports {
            port.carried.clear();
            if !is_known {
                port.carried.take(&port.served);
            }
        }
        self.returning = match is_known {
            true => Returning::Over,
            false => Returning::Until(now + RETURN_GRACE),
        };
    }

    /// Ends what was carried over a lost session when the time to come back is over.
    fn end_overdue(&mut self, now: Instant) {
        if self.returning.deadline(now).is_none() {
            self.ports.iter_mut().for_each(|port| port.carried.clear());
        }
    }

    /// Returns when what is carried ends; none where nothing is.
    fn return_deadline(&mut self, now: Instant) -> Option<Instant> {
        let are_carried = self.ports.iter().any(|port| !port.carried.is_empty());
        self.returning.deadline(now).filter(|_| are_carried)
    }

    /// Returns the client sessions of the intercepts that a lost session left in force.
    pub fn carried_sessions(&self) -> impl Iterator<Item = &str> {
        let carried = self.ports.iter().flat_map(|port| port.carried.iter());
        carried.map(|intercept| intercept.client_session.as_str())
    }

    /// Sends all traffic to the app; intercepts that had ended before stay remembered.
    pub fn clear(&mut self) -> Vec<(usize, RouteTable)> {
        self.ports.iter_mut().for_each(|port| {
            port.held.clear();
            port.served.clear();
            port.paused.clear();
            port.carried.clear();
        });
        self.changed_tables()
    }

    /// Drops remembered intercepts whose time is over.
    pub fn expire(&mut self, now: Instant) -> Vec<(usize, RouteTable)> {
        self.ports
            .iter_mut()
            .for_each(|port| port.remembered.retain(|(_, until)| now < *until));
        self.changed_tables()
    }

    /// Returns the time of the next [`Self::expire`].
    #[must_use]
    pub fn next_expiry(&self) -> Option<Instant> {
        self.ports
            .iter()
            .flat_map(|port| port.remembered.iter().map(|(_, until)| *until))
            .min()
    }

    fn changed_tables(&mut self) -> Vec<(usize, RouteTable)> {
        let changed = |(index, port): (usize, &mut PortRules)| {
            port.changed_table().map(|table| (index, table))
        };
        self.ports
            .iter_mut()
            .enumerate()
            .filter_map(changed)
            .collect()
    }

    /// Returns the spec of an intercept of this agent's workload; managers send no others, but one
    /// that does must not harm.
    fn own_spec<'s>(&self, info: &'s Shown) -> Option<&'s ShownSpec> {
        info.spec.as_ref().filter(|s| {
            (s.agent.is_empty() || s.agent == self.agent)
                && (s.namespace.is_empty() || s.namespace == self.namespace)
        })
    }
}

#[cfg(test)]
mod tests;
