//! The promises and routes of one port.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use traffic_core::routing::{Entry, Intercept, Mechanism, RouteTable, State};
use traffic_proto::manager::InterceptDispositionType as Disposition;
use traffic_proto::sidecar::Target;

use super::Wanted;
use super::age::Aged;
use super::candidates::{self, Candidate, Candidates, Compiled, Readability};
use super::carried::Carried;
use super::review::{Review, Verdict, refusal};
use crate::control::intercepts::bounds::{Bounds, PortLoad};
use crate::control::intercepts::conflict;
use crate::control::intercepts::refusal::Refusal;
use crate::control::intercepts::shown::{Shown, ShownSpec};
use crate::control::intercepts::spec;

#[derive(Debug, Default)]
pub(super) struct PortRules {
    pub(super) held: Vec<HeldIntercept>,
    known: HashMap<String, KnownIntercept>,
    /// Intercepts the last table routes.
    pub(super) served: Vec<Arc<Intercept>>,
    /// Intercepts of a lost session that the manager does not show yet.
    pub(super) carried: Carried,
    /// Intercepts that were routed and are still shown, but not as active: suspended ones.
    pub(super) paused: Vec<Arc<Intercept>>,
    /// Ended intercepts, with the time until which matching requests are answered as expired.
    pub(super) remembered: Vec<(Arc<Intercept>, Instant)>,
    published: Vec<(Arc<Intercept>, State)>,
}

#[derive(Debug)]
pub(super) struct HeldIntercept {
    pub(super) id: String,
    mechanism: Mechanism,
    wiretap: bool,
    since: Instant,
}

impl HeldIntercept {
    fn of(candidate: &Candidate<'_>, compiled: &Compiled, since: Instant) -> Self {
        Self {
            id: candidate.info.id.clone(),
            mechanism: compiled.intercept.mechanism,
            wiretap: candidate.spec.wiretap,
            since,
        }
    }

    /// Returns true if it takes the port's connections, so that no other may.
    fn takes_connections(&self) -> bool {
        self.mechanism == Mechanism::Tcp && !self.wiretap
    }
}

/// A spec compiled for one port; cached while the spec stays the same.
#[derive(Debug)]
struct KnownIntercept {
    info: Arc<Shown>,
    rule: Result<Compiled, Refusal>,
}

impl KnownIntercept {
    fn has_spec_of(&self, info: &Arc<Shown>) -> bool {
        Arc::ptr_eq(&self.info, info) || self.info.spec == info.spec
    }
}

/// What a review depends on besides the promises.
pub(super) struct ReviewRound<'c, 's> {
    pub(super) all: &'c Candidates<'s>,
    pub(super) target: &'c Target,
    pub(super) now: Instant,
    pub(super) bounds: &'c Bounds,
}

impl PortRules {
    pub(super) fn candidates<'s>(
        &mut self,
        ours: &[Wanted<'s>],
        (target, targets): (&Target, &[Target]),
        containers: &[String],
        readability: &Readability,
        (bounds, aged): (&Bounds, &Aged<'_>),
    ) -> Candidates<'s> {
        let ids: HashSet<_> = ours.iter().map(|(info, _)| info.id.as_str()).collect();
        let carried = &self.carried;
        self.known
            .retain(|id, _| ids.contains(id.as_str()) || carried.has(id));
        self.known
            .reserve(ids.len().saturating_sub(self.known.len()));
        let about = |(info, spec): &Wanted<'s>| {
            let delivered = spec::delivers_to(spec, target, targets)?;
            let rule = self.compile(info, spec, delivered, bounds);
            let rule = rule
                .and_then(|c| candidates::fits(c, spec, target, containers, readability))
                .and_then(|c| aged.check(&info.id).map(|()| c));
            Some(Candidate { info, spec, rule })
        };
        let list: Vec<_> = ours.iter().filter_map(about).collect();
        let index = list.iter().enumerate();
        let index = index.map(|(at, c)| (c.info.id.as_str(), at)).collect();
        Candidates { list, index }
    }

    fn compile(
        &mut self,
        info: &Arc<Shown>,
        spec: &ShownSpec,
        delivered: i64,
        bounds: &Bounds,
    ) -> Result<Compiled, Refusal> {
        let mut previous = self.known.get_mut(&info.id);
        // An unchanged spec keeps its compiled rule, so that unchanged tables can be detected by
        // pointer.
        if let Some(known) = previous.as_mut().filter(|k| k.has_spec_of(info)) {
            // The snapshot's own is there anyway.
            known.info = Arc::clone(info);
            return known.rule.clone();
        }
        // Counters survive an edited spec: it is the same intercept to its owner.
        let stats = previous
            .and_then(|k| k.rule.as_ref().ok())
            .map(|c| Arc::clone(&c.intercept.stats));
        let rule = spec::rule(info, spec, bounds).and_then(|rule| {
            let port = u16::try_from(delivered)
                .ok()
                .filter(|port| *port != 0)
                .ok_or_else(|| {
                    Refusal::of_spec(format!(
                        "{delivered} is not a port number of a workstation; use 1 to 65535"
                    ))
                })?;
            let pattern_bytes = rule.pattern_bytes;
            let intercept = Arc::new(rule.intercept(info, spec, port, stats.unwrap_or_default()));
            Ok(Compiled {
                intercept,
                pattern_bytes,
            })
        });
        self.known.insert(
            info.id.clone(),
            KnownIntercept {
                info: Arc::clone(info),
                rule: rule.clone(),
            },
        );
        rule
    }

    pub(super) fn hold(&mut self, candidates: &Candidates<'_>, now: Instant) {
        let had_tcp = self.held.iter().any(HeldIntercept::takes_connections);
        self.keep_held(candidates);
        self.adopt_active(candidates, had_tcp, now);
    }

    /// Drops held intercepts that are gone. A held TCP intercept that another replica refused stays
    /// held, unrouted, until its owner removes it, as in the stock agent.
    fn keep_held(&mut self, candidates: &Candidates<'_>) {
        self.held.retain(|held| {
            candidates
                .find(&held.id)
                .is_some_and(|c| match (&c.rule, c.info.disposition()) {
                    // A rule that no longer compiles or fits must not be routed.
                    (Err(_), _) | (_, Disposition::Removed) => false,
                    (Ok(_), Disposition::Active | Disposition::Waiting) => true,
                    (Ok(_), _) => held.takes_connections(),
                })
        });
    }

    /// Adopts intercepts accepted by other replicas. A TCP intercept is adopted only if none was
    /// held before the snapshot: dropping a held one and adopting another in the same pass is
    /// excluded, as in the stock agent. A filtered one also replaces promises that the manager has
    /// not confirmed.
    fn adopt_active(&mut self, candidates: &Candidates<'_>, had_tcp: bool, now: Instant) {
        for candidate in candidates
            .list
            .iter()
            .filter(|c| c.info.disposition() == Disposition::Active)
        {
            let Ok(compiled) = &candidate.rule else {
                continue;
            };
            let adopted = HeldIntercept::of(candidate, compiled, now);
            // `had_tcp` is the state before this snapshot, as the stock agent decides it.
            if self.holds(&adopted.id) || (adopted.takes_connections() && had_tcp) {
                continue;
            }
            let rivals: Vec<_> = self
                .rivals(candidates, compiled)
                .map(|(c, _)| (c.info.id.clone(), candidates::is_binding(c)))
                .collect();
            // A confirmed promise is never withdrawn for another replica's choice.
            if rivals.iter().any(|(_, is_binding)| *is_binding) {
                continue;
            }
            self.held
                .retain(|held| rivals.iter().all(|(id, _)| *id != held.id));
            self.held.push(adopted);
        }
    }

    /// Decides the routed intercepts and remembers those that ended.
    pub(super) fn route(
        &mut self,
        candidates: &Candidates<'_>,
        remember: Option<Duration>,
        now: Instant,
        target: &Target,
        changes: &mut Vec<String>,
    ) {
        let active = |held: &HeldIntercept| {
            let candidate = candidates
                .find(&held.id)
                .filter(|c| c.info.disposition() == Disposition::Active)?;
            candidate
                .rule
                .as_ref()
                .ok()
                .map(|c| Arc::clone(&c.intercept))
        };
        // Some managers show an intercept as removed for a while before they show it no longer.
        let gone = |id: &str| {
            candidates
                .find(id)
                .is_none_or(|c| c.info.disposition() == Disposition::Removed)
        };
        let mut served: Vec<_> = self.held.iter().filter_map(active).collect();
        let carried = self.carried.settle(candidates, &served);
        served.extend_from_slice(carried);
        let port = target.container_port;
        // Compared with the previous pass, so that each change is logged once.
        for started in served
            .iter()
            .filter(|s| self.served.iter().all(|old| old.id != s.id))
        {
            // Its owner is back, or tries again.
            started.stats.dials.forget();
            changes.push(format!(
                "port {port}: {} {} of {} started",
                kind(started),
                started.id,
                started.client
            ));
        }
        let is_served = |id: &str| served.iter().any(|s| s.id == id);
        for ended in self.served.iter().filter(|old| !is_served(&old.id)) {
            changes.push(format!(
                "port {port}: {} {} of {} ended",
                kind(ended),
                ended.id,
                ended.client
            ));
        }
        let before = self.paused.drain(..).chain(self.served.drain(..));
        let stopped = before.filter(|old| !is_served(&old.id));
        let (over, paused): (Vec<_>, Vec<_>) = stopped.partition(|old| gone(&old.id));
        self.paused = paused;
        // A TCP intercept has no requests that could be answered with 503, and a wiretap answers none.
        let answers = |i: &Arc<Intercept>| i.mechanism == Mechanism::Http && !i.wiretap;
        for ended in over.into_iter().filter(answers) {
            if let Some(deadline) = remember {
                self.remembered.push((ended, now + deadline));
            }
        }
        self.remembered
            .retain(|(r, until)| now < *until && gone(&r.id));
        self.served = served;
    }

    pub(super) fn review<'s>(
        &mut self,
        waiting: &[&Candidate<'s>],
        turn: &ReviewRound<'_, 's>,
        reviews: &mut BTreeMap<&'s str, Review>,
    ) {
        for candidate in waiting {
            let mut review = self.reviewed(candidate, turn);
            let earlier = reviews.get(candidate.info.id.as_str());
            // One refusing port refuses the whole intercept, because its owner expects all of its
            // ports.
            if earlier.is_some_and(Review::is_refusal) {
                continue;
            }
            if let Some(earlier) = earlier.filter(|_| !review.is_refusal()) {
                review.describe_also(&earlier.description);
            }
            reviews.insert(&candidate.info.id, review);
        }
    }

    fn reviewed(&mut self, candidate: &Candidate<'_>, turn: &ReviewRound<'_, '_>) -> Review {
        let ReviewRound {
            all, target, now, ..
        } = *turn;
        let id = &candidate.info.id;
        let compiled = match &candidate.rule {
            Ok(compiled) => compiled,
            Err(refused) => return refusal(id, "", refused.clone()),
        };
        let description = spec::description(&compiled.intercept.filters, target.transport);
        if !self.holds(id) {
            // Those whose clients are away give way; they are reviewed anew when the clients are back.
            let away = self.rivals(all, compiled).map(|(rival, _)| rival.info);
            let away = away.filter(|rival| candidates::is_suspended(rival));
            let away: HashSet<_> = away.map(|rival| rival.id.clone()).collect();
            self.held.retain(|held| !away.contains(&held.id));
            // The oldest rival is named, since rivals come in order of acceptance.
            if let Some((rival, reason)) = self.rivals(all, compiled).next() {
                let message = self.conflict_message(rival, compiled, reason, now);
                return refusal(id, &description, Refusal::of_agent(message));
            }
            let load = self.load(all, candidate);
            if let Err(refused) = turn.bounds.check_port(load, compiled.pattern_bytes) {
                return refusal(id, &description, refused);
            }
            self.held.push(HeldIntercept::of(candidate, compiled, now));
        }
        let named = &candidate.spec.container_name;
        let container = if named.is_empty() {
            target.container.clone()
        } else {
            named.clone()
        };
        let headers = spec::header_map(&compiled.intercept.filters);
        Review {
            id: id.clone(),
            description,
            verdict: Verdict::Accept {
                container,
                headers,
                metadata: compiled.intercept.metadata.clone(),
                reads_only: candidate.spec.wiretap,
            },
            is_bound: false,
            ends: false,
        }
    }

    /// What the port has promised, and to the owner of `wanted`.
    fn load(&self, all: &Candidates<'_>, wanted: &Candidate<'_>) -> PortLoad {
        let owner = wanted.info.owner.as_str();
        let mut load = PortLoad::default();
        for held in self.held.iter().filter_map(|held| all.find(&held.id)) {
            load.intercepts += 1;
            load.of_client += usize::from(held.info.owner == owner);
            load.pattern_bytes += held.rule.as_ref().map_or(0, |c| c.pattern_bytes);
        }
        load
    }

    fn conflict_message(
        &self,
        rival: &Candidate<'_>,
        wanted: &Compiled,
        reason: &str,
        now: Instant,
    ) -> String {
        let id = &rival.info.id;
        let both_tcp = wanted.intercept.mechanism == Mechanism::Tcp
            && rival
                .rule
                .as_ref()
                .is_ok_and(|c| c.intercept.mechanism == Mechanism::Tcp);
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

    /// Returns the held intercepts that conflict with `wanted`, in order of acceptance. A wiretap
    /// takes nothing from anybody, so it has no rivals and is none.
    fn rivals<'c, 's>(
        &'c self,
        candidates: &'c Candidates<'s>,
        wanted: &'c Compiled,
    ) -> impl Iterator<Item = (&'c Candidate<'s>, &'static str)> {
        self.held.iter().filter_map(|held| {
            let candidate = candidates.find(&held.id)?;
            let held = candidate.rule.as_ref().ok()?;
            if held.intercept.wiretap || wanted.intercept.wiretap {
                return None;
            }
            let reason = conflict::between(&held.intercept.filters, &wanted.intercept.filters)?;
            Some((candidate, reason))
        })
    }

    fn holds(&self, id: &str) -> bool {
        self.held.iter().any(|held| held.id == id)
    }

    /// Returns the table if it differs from the last published one.
    pub(super) fn changed_table(&mut self) -> Option<RouteTable> {
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

/// The word for a rule in the log.
fn kind(rule: &Intercept) -> &'static str {
    if rule.wiretap { "wiretap" } else { "intercept" }
}
