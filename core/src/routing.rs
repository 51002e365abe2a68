//! Routing of requests to upstreams. A [`RouteTable`] is built once per snapshot and port and never
//! changes; it knows no sockets, no clock and no gRPC.

pub mod clause;
mod copy_pause;
mod coverage;
pub mod dial_memory;
pub mod go_regex;
mod index;
pub mod matcher;
mod pattern;
mod request;
mod stats;
mod view;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub use crate::routing::coverage::within;
use crate::routing::index::Index;
use crate::routing::matcher::Filters;
pub use crate::routing::request::Request;
pub use crate::routing::stats::{Stats, TunnelPath};

/// Default dial timeout, if the intercept's spec has none.
const DEFAULT_DIAL_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum dial timeout, because a caller is waiting.
const MAX_DIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// Mechanism by which an intercept takes traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mechanism {
    /// The whole port: every connection, or every request if the connection is parsed as HTTP.
    Tcp,
    /// Requests that match header and path filters.
    Http,
}

/// A compiled intercept of one port.
#[derive(Debug)]
pub struct Intercept {
    /// `<client session>:<name>`, unique in the cluster.
    pub id: String,
    /// Name given by its owner.
    pub name: String,
    /// Owner, `user@host`.
    pub client: String,
    /// The owner's session with the manager; tunnels are requested in its name.
    pub client_session: String,
    /// Mechanism by which it takes traffic.
    pub mechanism: Mechanism,
    /// A wiretap: its workstation gets copies of matching requests, and what it answers is dropped.
    pub wiretap: bool,
    /// Filters a request has to match; empty for a global intercept.
    pub filters: Filters,
    /// Speak clear text to the workstation although the port has an originating secret.
    pub plaintext: bool,
    /// Address or name the workstation dials, on its own side.
    pub target_host: String,
    /// Port that belongs to [`Self::target_host`].
    pub target_port: u16,
    /// Time allowed for a round trip to the workstation.
    pub roundtrip_latency: Duration,
    /// Time allowed for the workstation's dial; zero if the spec has none.
    pub dial_timeout: Duration,
    /// Key-value pairs that its owner gave along, for the local REST API.
    pub metadata: BTreeMap<String, String>,
    /// Hit and miss counters, kept when the table is rebuilt.
    pub stats: Arc<Stats>,
}

impl Intercept {
    /// Returns the time a request waits for the workstation before the app answers: the dial
    /// timeout plus latency, at most 5 s; 2 s if the intercept names no timeout.
    #[must_use]
    pub fn dial_budget(&self) -> Duration {
        if self.dial_timeout.is_zero() {
            DEFAULT_DIAL_TIMEOUT
        } else {
            self.dial_timeout
                .saturating_add(self.roundtrip_latency)
                .min(MAX_DIAL_TIMEOUT)
        }
    }

    /// Returns true if tunnels of both lead to the same target in the same way, so that one opened
    /// for either serves the other.
    #[must_use]
    pub fn same_target(&self, other: &Self) -> bool {
        self.id == other.id
            && self.client_session == other.client_session
            && self.target_host == other.target_host
            && self.target_port == other.target_port
            && self.plaintext == other.plaintext
    }

    /// Returns true if it takes the whole port, so that any caller may be meant.
    #[must_use]
    pub fn takes_whole_port(&self) -> bool {
        self.filters.is_empty()
    }
}

/// State of an intercept in a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Served: matches go to the workstation.
    Active,
    /// Ended while expired notifications are on: matches are answered with 503.
    Expired,
}

/// An intercept in a table.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The rule.
    pub intercept: Arc<Intercept>,
    /// Serving state.
    pub state: State,
}

/// Target of one request.
#[derive(Clone, Copy, Debug)]
pub enum Decision<'t> {
    /// The app.
    App,
    /// The workstation of this intercept.
    Client(&'t Arc<Intercept>),
    /// A 503 response, because this intercept has expired.
    Expired(&'t Arc<Intercept>),
}

/// A decision, with the wiretaps that get a copy and the caller's wish for an explanation.
#[derive(Clone, Debug)]
pub struct Routed<'t> {
    /// Target of the request.
    pub decision: Decision<'t>,
    /// Wiretaps that match, whatever the target is.
    pub wiretaps: Vec<&'t Arc<Intercept>>,
    /// The request carries a token that entitles it to an explanation.
    pub asks_why: bool,
}

/// Rules of one port: immutable, in order of evaluation.
#[derive(Debug, Default)]
pub struct RouteTable {
    /// Rules that decide.
    entries: Vec<Entry>,
    /// Rules that only get copies.
    wiretaps: Vec<Entry>,
    names: matcher::Names,
    index: Index,
    any_http: bool,
    /// Requests that no rule has matched, which every rule has missed.
    unmatched: AtomicU64,
}

impl Drop for RouteTable {
    /// Leaves the counts to the rules, which may stand in the next table.
    fn drop(&mut self) {
        let unmatched = *self.unmatched.get_mut();
        for entry in &self.entries {
            let misses = &entry.intercept.stats.misses;
            misses.fetch_add(unmatched, Ordering::Relaxed);
        }
    }
}

impl RouteTable {
    /// Builds a table. Order: active before expired; within these, header-filtered before path-only
    /// before global; then by id. Wiretaps stand apart, since they decide nothing.
    #[must_use]
    pub fn new(rules: Vec<Entry>) -> Self {
        let names = matcher::Names::of(rules.iter().map(|e| &e.intercept.filters));
        let any_http = rules.iter().any(|e| !e.intercept.filters.is_empty());
        let (mut wiretaps, mut entries): (Vec<_>, Vec<_>) =
            rules.into_iter().partition(|e| e.intercept.wiretap);
        wiretaps.sort_by(|a, b| a.intercept.id.cmp(&b.intercept.id));
        // Sorted once, so that the first match is the right one. The id makes the order the same on
        // every replica.
        entries.sort_by(|a, b| {
            rank(a)
                .cmp(&rank(b))
                .then_with(|| a.intercept.id.cmp(&b.intercept.id))
        });
        let index = Index::of(entries.iter().map(|e| &e.intercept.filters));
        Self {
            entries,
            wiretaps,
            names,
            index,
            any_http,
            unmatched: AtomicU64::new(0),
        }
    }

    /// Returns true if nothing is intercepted or copied, so that requests need not be parsed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.wiretaps.is_empty()
    }

    /// Returns true if requests have to be told apart, so that HTTP/2 must be terminated.
    #[must_use]
    pub fn needs_requests(&self) -> bool {
        !self.is_empty()
    }

    /// Returns true if a rule has header or path filters.
    #[must_use]
    pub fn has_filters(&self) -> bool {
        self.any_http
    }

    /// Returns the intercept that takes whole connections of this port, if there is an active one
    /// without filters.
    #[must_use]
    pub fn global(&self) -> Option<&Arc<Intercept>> {
        self.entries
            .iter()
            .find(|e| e.state == State::Active && e.intercept.filters.is_empty())
            .map(|e| &e.intercept)
    }

    /// Returns the wiretaps without filters, which get copies of whole connections of this port.
    pub fn global_wiretaps(&self) -> impl Iterator<Item = &Arc<Intercept>> {
        let rules = self.wiretaps.iter().map(|e| &e.intercept);
        rules.filter(|rule| rule.takes_whole_port())
    }

    /// Returns the rules that decide, in order of evaluation.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Returns all rules: those that decide, then the wiretaps.
    pub fn rules(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().chain(&self.wiretaps)
    }

    /// Decides one request. The first matching rule wins; kubelet probes (`user-agent:
    /// kube-probe/…`) stay with the app unless the rule has a filter on `user-agent`.
    pub fn decide<R: Request + ?Sized>(&self, request: &R) -> Decision<'_> {
        self.route_explained(request).decision
    }

    /// Decides like [`Self::decide`] and checks if the request asks for an explanation: it carries
    /// [`matcher::EXPLAIN`] with the id of one of this port's intercepts, or with the session of
    /// its owner.
    pub fn route_explained<R: Request + ?Sized>(&self, request: &R) -> Routed<'_> {
        if self.is_empty() {
            return Routed {
                decision: Decision::App,
                wiretaps: Vec::new(),
                asks_why: false,
            };
        }
        let view = matcher::View::new(request, &self.names);
        // Knowing an id of this port proves that the caller may learn about its rules.
        let asks_why = view.token().is_some_and(|token| self.knows(token));
        Routed {
            decision: self.first_match(&view),
            wiretaps: self.matching_wiretaps(&view),
            asks_why,
        }
    }

    fn knows(&self, token: &[u8]) -> bool {
        !token.is_empty()
            && self.rules().any(|e| {
                let i = &e.intercept;
                token == i.id.as_bytes() || token == i.client_session.as_bytes()
            })
    }

    /// Returns the wiretaps that match, and counts those that do not. Allocates only for a match.
    fn matching_wiretaps(&self, view: &matcher::View<'_>) -> Vec<&Arc<Intercept>> {
        let mut matching = Vec::new();
        for Entry { intercept, .. } in &self.wiretaps {
            if intercept.filters.matches(view) {
                matching.push(intercept);
            } else {
                intercept.stats.misses.fetch_add(1, Ordering::Relaxed);
            }
        }
        matching
    }

    fn first_match(&self, view: &matcher::View<'_>) -> Decision<'_> {
        let matches = |place: usize| {
            let entry = self.entries.get(place);
            entry.is_some_and(|e| e.intercept.filters.matches(view))
        };
        let found = self.index.first(view, matches);
        let Some((entry, place)) = found.and_then(|at| Some((self.entries.get(at)?, at))) else {
            // Statistics only, so relaxed ordering is enough.
            self.unmatched.fetch_add(1, Ordering::Relaxed);
            return Decision::App;
        };
        for earlier in self.entries.iter().take(place) {
            let misses = &earlier.intercept.stats.misses;
            misses.fetch_add(1, Ordering::Relaxed);
        }
        match entry.state {
            State::Active => Decision::Client(&entry.intercept),
            State::Expired => Decision::Expired(&entry.intercept),
        }
    }

    /// Returns how many requests have looked at a rule of this table and went elsewhere.
    #[must_use]
    pub fn misses(&self, entry: &Entry) -> u64 {
        let own = entry.intercept.stats.misses.load(Ordering::Relaxed);
        if entry.intercept.wiretap {
            return own;
        }
        own + self.unmatched.load(Ordering::Relaxed)
    }

    /// Decides like [`Self::decide`] without counting, and returns the first failed clause of each
    /// rule, wiretaps last.
    pub fn explain<R: Request + ?Sized>(&self, request: &R) -> (Decision<'_>, Vec<RuleTrace>) {
        let view = matcher::View::new(request, &self.names);
        let mut considered = Vec::new();
        let mut decision = Decision::App;
        for entry in self.rules() {
            let trace = RuleTrace::of(&entry.intercept, &view);
            let matched = trace.matched;
            considered.push(trace);
            if entry.intercept.wiretap {
                continue;
            }
            // Later rules are evaluated for the explanation only.
            if matched && matches!(decision, Decision::App) {
                decision = match entry.state {
                    State::Active => Decision::Client(&entry.intercept),
                    State::Expired => Decision::Expired(&entry.intercept),
                };
            }
        }
        (decision, considered)
    }
}

/// Evaluation of one rule by [`RouteTable::explain`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleTrace {
    /// Intercept id.
    pub id: String,
    /// Name given by its owner.
    pub name: String,
    /// It gets a copy at most.
    pub wiretap: bool,
    /// All clauses matched.
    pub matched: bool,
    /// First clause that did not match.
    pub failed: Option<String>,
}

impl RuleTrace {
    fn of(rule: &Intercept, view: &matcher::View<'_>) -> Self {
        let failed = rule.filters.first_failure(view);
        Self {
            id: rule.id.clone(),
            name: rule.name.clone(),
            wiretap: rule.wiretap,
            matched: failed.is_none(),
            failed,
        }
    }
}

impl fmt::Display for Decision<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::App => f.write_str("app"),
            Self::Client(i) => write!(f, "client {}", i.id),
            Self::Expired(i) => write!(f, "expired {}", i.id),
        }
    }
}

fn rank(entry: &Entry) -> (bool, u8) {
    let filters = &entry.intercept.filters;
    let kind = match (filters.has_headers(), filters.is_empty()) {
        (true, _) => 0,
        (false, false) => 1,
        (false, true) => 2,
    };
    (entry.state == State::Expired, kind)
}

#[cfg(test)]
mod tests;
