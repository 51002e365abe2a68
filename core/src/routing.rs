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
mod tests {
    mod wiretaps;

    use super::*;
    use crate::routing::matcher::{HeaderFilter, PathFilter};

    struct Sample<'s>(&'s str, Vec<(&'s str, &'s str)>);

    impl Request for Sample<'_> {
        fn method(&self) -> &[u8] {
            b"GET"
        }

        fn target(&self) -> &[u8] {
            self.0.as_bytes()
        }

        fn visit_headers<'a>(&'a self, visit: &mut dyn FnMut(&'a [u8], &'a [u8])) {
            self.1
                .iter()
                .for_each(|(n, v)| visit(n.as_bytes(), v.as_bytes()));
        }
    }

    fn entry(id: &str, headers: &[(&str, &str)], paths: &[&str], state: State) -> Entry {
        let filters = Filters {
            headers: headers
                .iter()
                .map(|(n, v)| HeaderFilter::new(n, v))
                .collect(),
            paths: paths
                .iter()
                .map(|p| PathFilter::parse(p).unwrap())
                .collect(),
            ..Filters::default()
        };
        let intercept = Intercept {
            id: id.to_owned(),
            name: id.to_owned(),
            client: "dev@box".to_owned(),
            client_session: "s".to_owned(),
            mechanism: Mechanism::Http,
            wiretap: false,
            filters,
            plaintext: false,
            target_host: "127.0.0.1".to_owned(),
            target_port: 8080,
            roundtrip_latency: Duration::ZERO,
            dial_timeout: Duration::ZERO,
            metadata: BTreeMap::new(),
            stats: Arc::default(),
        };
        Entry {
            intercept: Arc::new(intercept),
            state,
        }
    }

    fn decided(table: &RouteTable, target: &str, headers: &[(&str, &str)]) -> String {
        let request = Sample(target, headers.to_vec());
        let decision = table.decide(&request).to_string();
        let (explained, considered) = table.explain(&request);
        assert_eq!(
            explained.to_string(),
            decision,
            "explain has to agree with decide"
        );
        assert_eq!(considered.iter().any(|c| c.matched), decision != "app");
        decision
    }

    #[test]
    fn headers_come_before_paths_before_global_before_expired_and_then_the_id_counts() {
        let table = RouteTable::new(vec![
            entry("d", &[], &[], State::Active),
            entry("c", &[], &[":path-prefix:/api"], State::Active),
            entry("b2", &[("x-dev", "a")], &[], State::Active),
            entry("b1", &[("x-dev", "^a")], &[], State::Active),
            entry("a", &[("x-old", "1")], &[], State::Expired),
        ]);
        assert_eq!(decided(&table, "/api", &[("x-dev", "a")]), "client b1");
        assert_eq!(decided(&table, "/api/v1", &[]), "client c");
        assert_eq!(decided(&table, "/", &[]), "client d");
        assert_eq!(
            decided(&table, "/", &[("user-agent", "kube-probe/1.30")]),
            "app"
        );
        let table = RouteTable::new(vec![entry("a", &[("x-old", "1")], &[], State::Expired)]);
        assert_eq!(decided(&table, "/", &[("x-old", "1")]), "expired a");
        assert_eq!(decided(&table, "/", &[]), "app");
        assert!(table.global().is_none() && table.has_filters());
    }

    #[test]
    fn an_empty_table_sends_everything_to_the_app() {
        let table = RouteTable::default();
        assert!(table.is_empty() && !table.needs_requests() && !table.has_filters());
        assert_eq!(decided(&table, "/", &[("x-dev", "a")]), "app");
    }

    #[test]
    fn fifty_intercepts_are_told_apart() {
        let entries = (0..50).map(|i| {
            entry(
                &format!("{i:02}"),
                &[("x-dev", &format!("dev-{i}"))],
                &[],
                State::Active,
            )
        });
        let table = RouteTable::new(entries.collect());
        for i in 0..50 {
            assert_eq!(
                decided(&table, "/", &[("X-Dev", &format!("dev-{i}"))]),
                format!("client {i:02}")
            );
        }
        assert_eq!(decided(&table, "/", &[("x-dev", "dev-50")]), "app");
    }

    proptest::proptest! {
        /// The explanation goes through all rules, one by one.
        #[test]
        fn the_index_finds_what_one_by_one_is_found(
            rules in proptest::collection::vec(
                (
                    proptest::collection::vec((0..3_usize, 0..5_usize), 0..3),
                    proptest::collection::vec(0..3_usize, 0..2),
                    proptest::bool::ANY,
                ),
                0..12,
            ),
            lines in proptest::collection::vec((0..4_usize, 0..5_usize), 0..4),
            path in 0..3_usize,
        ) {
            const NAMES: [&str; 4] = ["x-dev", "x-env", "user-agent", "X-Dev"];
            const VALUES: [&str; 5] = ["a", "b", "a|b", "", "kube-probe/1"];
            const PATHS: [&str; 3] = ["/p", ":path-prefix:/", "/q"];
            let entries = rules.iter().enumerate().map(|(n, (headers, paths, expired))| {
                let headers: Vec<_> = headers.iter().map(|(n, v)| (NAMES[*n], VALUES[*v])).collect();
                let paths: Vec<_> = paths.iter().map(|p| PATHS[*p]).collect();
                let state = if *expired { State::Expired } else { State::Active };
                entry(&n.to_string(), &headers, &paths, state)
            });
            let table = RouteTable::new(entries.collect());
            let lines = lines.iter().map(|(n, v)| (NAMES[*n], VALUES[*v])).collect();
            let request = Sample(["/p", "/q", "/r"][path], lines);
            let one_by_one = table.explain(&request).0.to_string();
            proptest::prop_assert_eq!(table.decide(&request).to_string(), one_by_one);
        }
    }

    #[test]
    fn misses_are_kept_when_a_table_takes_the_place_of_another() {
        let (a, b) = (
            entry("a", &[("x-dev", "a")], &[], State::Active),
            entry("b", &[("x-dev", "b")], &[], State::Active),
        );
        let table = RouteTable::new(vec![a.clone(), b.clone()]);
        for dev in ["a", "b", "c", "d"] {
            decided(&table, "/", &[("x-dev", dev)]);
        }
        let misses = |table: &RouteTable| [table.misses(&a), table.misses(&b)];
        assert_eq!(misses(&table), [3, 2]);
        drop(table);
        let next = RouteTable::new(vec![a.clone(), b.clone()]);
        assert_eq!(misses(&next), [3, 2]);
    }

    #[test]
    fn the_explanation_names_the_first_clause_that_fails() {
        let table = RouteTable::new(vec![
            entry(
                "a",
                &[("x-dev", "a"), ("x-env", "t")],
                &["/p"],
                State::Active,
            ),
            entry("b", &[], &["/q", ":path-regex:z+"], State::Active),
        ]);
        let (_, considered) = table.explain(&Sample("/p", vec![("x-dev", "b")]));
        let failed: Vec<_> = considered
            .iter()
            .map(|c| c.failed.as_deref().unwrap_or("-"))
            .collect();
        assert_eq!(failed, ["header x-dev: a", "path /q or path regex z+"]);
        let (_, considered) = table.explain(&Sample("/x", vec![("x-dev", "a")]));
        assert_eq!(
            considered[0].failed.as_deref(),
            Some("header x-env: t (header absent)")
        );
    }

    #[test]
    fn only_the_owner_of_an_intercept_may_ask_why() {
        let table = RouteTable::new(vec![entry("s:mine", &[("x-dev", "a")], &[], State::Active)]);
        let asks = |token: &str| {
            table
                .route_explained(&Sample("/", vec![("X-Traffic-Agent-Explain", token)]))
                .asks_why
        };
        assert!(asks("s:mine") && asks("s"));
        assert!(!asks("") && !asks("s:") && !asks("mine") && !asks("t"));
        assert!(!table.route_explained(&Sample("/", vec![])).asks_why);
        assert!(
            !RouteTable::default()
                .route_explained(&Sample("/", vec![("x-traffic-agent-explain", "s")]))
                .asks_why
        );
    }

    #[test]
    fn the_budget_for_a_dial_is_bounded() {
        let mut e = Arc::into_inner(entry("a", &[], &[], State::Active).intercept).unwrap();
        assert_eq!(e.dial_budget(), Duration::from_secs(2));
        e.dial_timeout = Duration::from_secs(1);
        e.roundtrip_latency = Duration::from_millis(500);
        assert_eq!(e.dial_budget(), Duration::from_millis(1500));
        e.dial_timeout = Duration::from_secs(30);
        assert_eq!(e.dial_budget(), Duration::from_secs(5));
    }
}
