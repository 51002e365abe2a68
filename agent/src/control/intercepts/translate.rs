//! Translates a manager snapshot to one route table for each port and the reviews to send back.
//! Pure: time is a parameter, so every rule of conflict and precedence is a row in a table test.
//!
//! A port keeps its promises (`held`): an intercept is routed while it is held and the manager
//! shows it as ACTIVE; a waiting one is accepted if no held one conflicts with it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use traffic_proto::manager::{
    InterceptDispositionType as Disposition, InterceptInfo, InterceptSpec,
};
use traffic_proto::port::Transport;
use traffic_proto::sidecar::Target;

use crate::control::intercepts::conflict;
use crate::control::intercepts::spec;
use crate::control::intercepts::spec::{Refusal, Rule};
use traffic_core::routing::{Entry, Intercept, Mechanism, RouteTable, State};

/// Intercepts of the agent as the manager reports them, by id.
pub type Snapshot = BTreeMap<String, InterceptInfo>;

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
    /// Waiting intercepts about no port of this pod, with the time they were first seen.
    strangers: HashMap<String, Instant>,
}

/// Knowledge of a port that a review with filters depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Readability {
    /// Single requests can be told apart.
    #[default]
    Readable,
    /// They cannot; a text for the intercept's owner.
    Unreadable(String),
    /// The app has to be probed first.
    Unknown,
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

/// Review of one waiting intercept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Review {
    /// Intercept id.
    pub id: String,
    /// Description of what it takes, for its owner.
    pub description: String,
    /// Result of the review.
    pub verdict: Verdict,
}

/// Result of reviewing an intercept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Accepted: the agent will serve it.
    Accept {
        /// Container whose environment and mounts its owner gets.
        container: String,
        /// Filters in the form the owner's tools read back.
        headers: BTreeMap<String, String>,
    },
    /// Refused.
    Refuse {
        /// The spec itself is wrong.
        bad_args: bool,
        /// Problem and remedy.
        message: String,
    },
}

#[derive(Debug, Default)]
struct PortRules {
    held: Vec<HeldIntercept>,
    known: HashMap<String, KnownIntercept>,
    /// Intercepts the last table routes.
    served: Vec<Arc<Intercept>>,
    /// Ended intercepts, with the time until which matching requests are answered as expired.
    remembered: Vec<(Arc<Intercept>, Instant)>,
    published: Vec<(Arc<Intercept>, State)>,
}

#[derive(Debug)]
struct HeldIntercept {
    id: String,
    mechanism: Mechanism,
    since: Instant,
}

/// A spec compiled for one port; cached while the spec stays the same.
#[derive(Debug)]
struct KnownIntercept {
    spec: InterceptSpec,
    rule: Result<Compiled, Refusal>,
}

#[derive(Clone, Debug)]
struct Compiled {
    rule: Rule,
    intercept: Arc<Intercept>,
}

/// An intercept of the snapshot that applies to the current port.
struct Candidate<'s> {
    info: &'s InterceptInfo,
    spec: &'s InterceptSpec,
    rule: Result<Compiled, Refusal>,
}

impl Review {
    fn is_refusal(&self) -> bool {
        matches!(self.verdict, Verdict::Refuse { .. })
    }
}

impl Candidate<'_> {
    fn has_filters(&self) -> bool {
        self.rule.as_ref().is_ok_and(|c| !c.rule.filters.is_empty())
    }
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
            strangers: HashMap::new(),
        }
    }

    /// Applies a complete snapshot. `readability` is what is known of each port; ports beyond its end
    /// are readable.
    pub fn apply(
        &mut self,
        snapshot: &Snapshot,
        readability: &[Readability],
        now: Instant,
    ) -> Translation {
        let mut outcome = Translation::default();
        let mut reviews: BTreeMap<&str, Review> = BTreeMap::new();
        let mut unprobed: BTreeSet<&str> = BTreeSet::new();
        let ours: Vec<_> = snapshot
            .values()
            .filter_map(|i| Some((i, self.own_spec(i)?)))
            .collect();
        // Each port is decided by itself: promises first, then routes, then reviews, since a review
        // may add a promise for the next snapshot.
        for (index, (port, target)) in self.ports.iter_mut().zip(&self.targets).enumerate() {
            let readability = readability.get(index).unwrap_or(&Readability::Readable);
            let candidates = port.candidates(&ours, target, &self.containers, readability);
            port.hold(&candidates, now);
            port.route(
                &candidates,
                self.remember,
                now,
                target,
                &mut outcome.changes,
            );
            let (known, later): (Vec<_>, Vec<_>) = candidates
                .iter()
                .filter(|c| c.info.disposition() == Disposition::Waiting)
                .partition(|c| *readability != Readability::Unknown || !c.has_filters());
            if !later.is_empty() {
                outcome.probes.insert(index);
                unprobed.extend(later.iter().map(|c| c.info.id.as_str()));
            }
            port.review(&known, &candidates, target, now, &mut reviews);
            outcome
                .tables
                .extend(port.changed_table().map(|table| (index, table)));
        }
        // One refusing port is enough, but no port accepts alone.
        reviews.retain(|id, review| !unprobed.contains(id) || review.is_refusal());
        let waiting = ours
            .iter()
            .filter(|(i, _)| i.disposition() == Disposition::Waiting);
        let strangers: Vec<_> = waiting
            .filter(|(i, _)| {
                !reviews.contains_key(i.id.as_str()) && !unprobed.contains(i.id.as_str())
            })
            .collect();
        self.strangers
            .retain(|id, _| strangers.iter().any(|(info, _)| info.id == *id));
        // It may be about a port of other pods of the workload, which review it at once. If nobody
        // does, its owner is told the known ports.
        for (info, spec) in strangers {
            let since = *self.strangers.entry(info.id.clone()).or_insert(now);
            let due = since + STRANGER_GRACE;
            match spec::rule(info, spec) {
                Ok(_) if now < due => {
                    let again = outcome.look_again.map_or(due, |at| at.min(due));
                    outcome.look_again = Some(again);
                }
                rule => {
                    let refused = rule
                        .err()
                        .unwrap_or_else(|| spec::unknown_port(spec, &self.targets));
                    reviews.insert(&info.id, refusal(&info.id, "", refused));
                }
            }
        }
        if outcome.look_again.is_none() && !reviews.is_empty() {
            outcome.look_again = Some(now + REVIEW_INTERVAL);
        }
        outcome.reviews = reviews.into_values().collect();
        outcome
    }

    /// Drops all promises with the lost session; current routes stay until a snapshot or
    /// [`Self::clear`].
    pub fn drop_promises(&mut self) {
        self.ports.iter_mut().for_each(|port| port.held.clear());
    }

    /// Sends all traffic to the app; intercepts that had ended before stay remembered.
    pub fn clear(&mut self) -> Vec<(usize, RouteTable)> {
        self.ports.iter_mut().for_each(|port| {
            port.held.clear();
            port.served.clear();
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
    fn own_spec<'s>(&self, info: &'s InterceptInfo) -> Option<&'s InterceptSpec> {
        info.spec.as_ref().filter(|s| {
            (s.agent.is_empty() || s.agent == self.agent)
                && (s.namespace.is_empty() || s.namespace == self.namespace)
        })
    }
}

/// Checks that this pod and port can serve a spec that is valid in itself.
fn fits(
    compiled: Compiled,
    spec: &InterceptSpec,
    target: &Target,
    containers: &[String],
    readability: &Readability,
) -> Result<Compiled, Refusal> {
    if !spec.container_name.is_empty() && !containers.contains(&spec.container_name) {
        return Err(Refusal::of_agent(format!(
            "No match for container {:?}",
            spec.container_name
        )));
    }
    // Without filters the whole port is taken, which needs no parsing of requests.
    if compiled.rule.filters.is_empty() {
        return Ok(compiled);
    }
    if target.transport == Transport::Udp {
        let port = target.container_port;
        return Err(Refusal::of_agent(format!(
            "port {port}/UDP carries no HTTP requests; intercept it without header and path \
            filters"
        )));
    }
    match readability {
        Readability::Unreadable(why) => Err(Refusal::of_agent(why.clone())),
        Readability::Readable | Readability::Unknown => Ok(compiled),
    }
}

impl PortRules {
    fn candidates<'s>(
        &mut self,
        ours: &[(&'s InterceptInfo, &'s InterceptSpec)],
        target: &Target,
        containers: &[String],
        readability: &Readability,
    ) -> Vec<Candidate<'s>> {
        self.known
            .retain(|id, _| ours.iter().any(|(info, _)| info.id == *id));
        let about = |(info, spec): &(&'s InterceptInfo, &'s InterceptSpec)| {
            let delivered = spec::delivers_to(spec, target)?;
            let rule = self.compile(info, spec, delivered);
            let rule = rule.and_then(|c| fits(c, spec, target, containers, readability));
            Some(Candidate { info, spec, rule })
        };
        ours.iter().filter_map(about).collect()
    }

    fn compile(
        &mut self,
        info: &InterceptInfo,
        spec: &InterceptSpec,
        delivered: i64,
    ) -> Result<Compiled, Refusal> {
        let previous = self.known.get(&info.id);
        // An unchanged spec keeps its compiled rule, so that unchanged tables can be detected by
        // pointer.
        if let Some(known) = previous.filter(|k| k.spec == *spec) {
            return known.rule.clone();
        }
        // Counters survive an edited spec: it is the same intercept to its owner.
        let stats = previous
            .and_then(|k| k.rule.as_ref().ok())
            .map(|c| Arc::clone(&c.intercept.stats));
        let rule = spec::rule(info, spec).and_then(|rule| {
            let port = u16::try_from(delivered)
                .ok()
                .filter(|port| *port != 0)
                .ok_or_else(|| Refusal {
                    bad_args: true,
                    message: format!(
                        "{delivered} is not a port number of a workstation; use 1 to 65535"
                    ),
                })?;
            let intercept = Arc::new(rule.intercept(info, spec, port, stats.unwrap_or_default()));
            Ok(Compiled { rule, intercept })
        });
        self.known.insert(
            info.id.clone(),
            KnownIntercept {
                spec: spec.clone(),
                rule: rule.clone(),
            },
        );
        rule
    }

    fn hold(&mut self, candidates: &[Candidate<'_>], now: Instant) {
        let had_tcp = self
            .held
            .iter()
            .any(|held| held.mechanism == Mechanism::Tcp);
        self.keep_held(candidates);
        self.adopt_active(candidates, had_tcp, now);
    }

    /// Drops held intercepts that are gone. A held TCP intercept that another replica refused stays
    /// held, unrouted, until its owner removes it, as in the stock agent.
    fn keep_held(&mut self, candidates: &[Candidate<'_>]) {
        self.held.retain(|held| {
            find(candidates, &held.id).is_some_and(|c| match (&c.rule, c.info.disposition()) {
                // A rule that no longer compiles or fits must not be routed.
                (Err(_), _) | (_, Disposition::Removed) => false,
                (Ok(_), Disposition::Active | Disposition::Waiting) => true,
                (Ok(_), _) => held.mechanism == Mechanism::Tcp,
            })
        });
    }

    /// Adopts intercepts accepted by other replicas. A TCP intercept is adopted only if none was
    /// held before the snapshot: dropping a held one and adopting another in the same pass is
    /// excluded, as in the stock agent. A filtered one also replaces promises that the manager has
    /// not confirmed.
    fn adopt_active(&mut self, candidates: &[Candidate<'_>], had_tcp: bool, now: Instant) {
        for candidate in candidates
            .iter()
            .filter(|c| c.info.disposition() == Disposition::Active)
        {
            let Ok(compiled) = &candidate.rule else {
                continue;
            };
            let mechanism = compiled.rule.mechanism;
            // `had_tcp` is the state before this snapshot, as the stock agent decides it.
            if self.holds(&candidate.info.id) || (mechanism == Mechanism::Tcp && had_tcp) {
                continue;
            }
            let rivals: Vec<_> = self
                .rivals(candidates, compiled)
                .map(|(c, _)| (c.info.id.clone(), is_binding(c)))
                .collect();
            // A confirmed promise is never withdrawn for another replica's choice.
            if rivals.iter().any(|(_, is_binding)| *is_binding) {
                continue;
            }
            self.held
                .retain(|held| rivals.iter().all(|(id, _)| *id != held.id));
            self.held.push(HeldIntercept {
                id: candidate.info.id.clone(),
                mechanism,
                since: now,
            });
        }
    }

    /// Decides the routed intercepts and remembers those that ended.
    fn route(
        &mut self,
        candidates: &[Candidate<'_>],
        remember: Option<Duration>,
        now: Instant,
        target: &Target,
        changes: &mut Vec<String>,
    ) {
        let active = |held: &HeldIntercept| {
            let candidate = find(candidates, &held.id)
                .filter(|c| c.info.disposition() == Disposition::Active)?;
            candidate
                .rule
                .as_ref()
                .ok()
                .map(|c| Arc::clone(&c.intercept))
        };
        // Some managers show an intercept as removed for a while before they show it no longer.
        let gone = |id: &str| {
            find(candidates, id).is_none_or(|c| c.info.disposition() == Disposition::Removed)
        };
        let served: Vec<_> = self.held.iter().filter_map(active).collect();
        let port = target.container_port;
        // Compared with the previous pass, so that each change is logged once.
        for started in served
            .iter()
            .filter(|s| self.served.iter().all(|old| old.id != s.id))
        {
            // Its owner is back, or tries again.
            started.stats.dials.forget();
            changes.push(format!(
                "port {port}: intercept {} of {} started",
                started.id, started.client
            ));
        }
        for ended in self
            .served
            .iter()
            .filter(|old| served.iter().all(|s| s.id != old.id))
        {
            changes.push(format!(
                "port {port}: intercept {} of {} ended",
                ended.id, ended.client
            ));
            if let Some(deadline) =
                // A TCP intercept has no requests that could be answered with 503.
                remember.filter(|_| gone(&ended.id) && ended.mechanism == Mechanism::Http)
            {
                self.remembered.push((Arc::clone(ended), now + deadline));
            }
        }
        self.remembered
            .retain(|(r, until)| now < *until && gone(&r.id));
        self.served = served;
    }

    fn review<'s>(
        &mut self,
        waiting: &[&Candidate<'s>],
        candidates: &[Candidate<'s>],
        target: &Target,
        now: Instant,
        reviews: &mut BTreeMap<&'s str, Review>,
    ) {
        for candidate in waiting {
            let review = self.reviewed(candidate, candidates, target, now);
            // One refusing port refuses the whole intercept, because its owner expects all of its
            // ports.
            let refused_elsewhere = reviews
                .get(candidate.info.id.as_str())
                .is_some_and(Review::is_refusal);
            if !refused_elsewhere {
                reviews.insert(&candidate.info.id, review);
            }
        }
    }

    fn reviewed(
        &mut self,
        candidate: &Candidate<'_>,
        all: &[Candidate<'_>],
        target: &Target,
        now: Instant,
    ) -> Review {
        let id = &candidate.info.id;
        let compiled = match &candidate.rule {
            Ok(compiled) => compiled,
            Err(refused) => return refusal(id, "", refused.clone()),
        };
        let description = compiled.rule.description();
        if !self.holds(id) {
            // The oldest rival is named, since rivals come in order of acceptance.
            if let Some((rival, reason)) = self.rivals(all, compiled).next() {
                let message = self.conflict_message(rival, compiled, reason, now);
                return refusal(id, &description, Refusal::of_agent(message));
            }
            self.held.push(HeldIntercept {
                id: id.clone(),
                mechanism: compiled.rule.mechanism,
                since: now,
            });
        }
        let named = &candidate.spec.container_name;
        let container = if named.is_empty() {
            target.container.clone()
        } else {
            named.clone()
        };
        let headers = compiled.rule.header_map();
        Review {
            id: id.clone(),
            description,
            verdict: Verdict::Accept { container, headers },
        }
    }

    fn conflict_message(
        &self,
        rival: &Candidate<'_>,
        wanted: &Compiled,
        reason: &str,
        now: Instant,
    ) -> String {
        let id = &rival.info.id;
        let both_tcp = wanted.rule.mechanism == Mechanism::Tcp
            && rival
                .rule
                .as_ref()
                .is_ok_and(|c| c.rule.mechanism == Mechanism::Tcp);
        // The exact text of the stock agent, which tools may compare.
        if both_tcp {
            let state = if rival.info.disposition() == Disposition::Active {
                "currently-served"
            } else {
                "currently-waiting-to-be-served"
            };
            return format!("Conflicts with the {state} intercept \"{id}\"");
        }
        let since = self
            .held
            .iter()
            .find(|h| h.id == *id)
            .map_or(now, |h| h.since);
        let age = Duration::from_secs(now.saturating_duration_since(since).as_secs());
        let owner = &rival.spec.client;
        format!(
            "Conflicts with the currently-served intercept \"{id}\" of {owner}: {reason} (held for \
            {age:?})"
        )
    }

    /// Returns the held intercepts that conflict with `wanted`, in order of acceptance.
    fn rivals<'c, 's>(
        &'c self,
        candidates: &'c [Candidate<'s>],
        wanted: &'c Compiled,
    ) -> impl Iterator<Item = (&'c Candidate<'s>, &'static str)> {
        self.held.iter().filter_map(|held| {
            let candidate = find(candidates, &held.id)?;
            let rule = &candidate.rule.as_ref().ok()?.rule;
            Some((
                candidate,
                conflict::between(&rule.filters, &wanted.rule.filters)?,
            ))
        })
    }

    fn holds(&self, id: &str) -> bool {
        self.held.iter().any(|held| held.id == id)
    }

    /// Returns the table if it differs from the last published one.
    fn changed_table(&mut self) -> Option<RouteTable> {
        let active = self.served.iter().map(|i| (i, State::Active));
        let ended = self.remembered.iter().map(|(i, _)| (i, State::Expired));
        let entries: Vec<_> = active
            .chain(ended)
            .map(|(i, state)| Entry {
                intercept: Arc::clone(i),
                state,
            })
            .collect();
        let same = self.published.len() == entries.len()
            && self
                .published
                .iter()
                .zip(&entries)
                // Pointers suffice: a changed spec is always compiled to a new intercept.
                .all(|((i, state), e)| Arc::ptr_eq(i, &e.intercept) && *state == e.state);
        if same {
            return None;
        }
        self.published = entries
            .iter()
            .map(|e| (Arc::clone(&e.intercept), e.state))
            .collect();
        Some(RouteTable::new(entries))
    }
}

/// Returns true if a rival's promise is binding: the manager confirmed it, or it is a TCP
/// intercept, which keeps its place even unserved.
fn is_binding(candidate: &Candidate<'_>) -> bool {
    candidate.info.disposition() == Disposition::Active
        || candidate
            .rule
            .as_ref()
            .is_ok_and(|c| c.rule.mechanism == Mechanism::Tcp)
}

fn find<'c, 's>(candidates: &'c [Candidate<'s>], id: &str) -> Option<&'c Candidate<'s>> {
    candidates.iter().find(|c| c.info.id == id)
}

fn refusal(id: &str, description: &str, refused: Refusal) -> Review {
    let verdict = Verdict::Refuse {
        bad_args: refused.bad_args,
        message: refused.message,
    };
    Review {
        id: id.to_owned(),
        description: description.to_owned(),
        verdict,
    }
}

#[cfg(test)]
mod tests;
