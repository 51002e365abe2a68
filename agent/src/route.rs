//! Which upstream a request goes to. A [`RouteTable`] is built once per snapshot and port and never changes; it
//! knows no sockets, no clock and no gRPC.

pub mod matcher;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use matcher::Filters;

/// How an intercept takes traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mechanism {
    /// The whole port: every connection, or every request where the connection is understood as HTTP.
    Tcp,
    /// Requests that match header and path filters.
    Http,
}

/// One intercept of one port, compiled.
#[derive(Debug)]
pub struct Intercept {
    /// `<client session>:<name>`, unique in the cluster.
    pub id: String,
    /// The name its owner gave it.
    pub name: String,
    /// The owner, `user@host`.
    pub client: String,
    /// The owner's session with the manager; tunnels are asked for in its name.
    pub client_session: String,
    /// How it takes traffic.
    pub mechanism: Mechanism,
    /// What a request must look like; empty for a global intercept.
    pub filters: Filters,
    /// No TLS towards the workstation although the port has an originating secret.
    pub plaintext: bool,
    /// Where the workstation dials: an address or name on the workstation's side.
    pub target_host: String,
    /// The port beside [`Self::target_host`].
    pub target_port: u16,
    /// How long a round trip to the workstation may take.
    pub roundtrip_latency: Duration,
    /// How long the workstation may take to dial; zero when the spec has none.
    pub dial_timeout: Duration,
    /// Hits and misses, kept when the table is rebuilt.
    pub stats: Arc<Stats>,
}

/// What happened to an intercept's rule; shared by successive tables.
#[derive(Debug, Default)]
pub struct Stats {
    /// Requests (or connections) it decided.
    pub hits: AtomicU64,
    /// Requests that looked at it and went elsewhere.
    pub misses: AtomicU64,
    /// Seconds since the Unix epoch of the last hit; 0 for never.
    pub last_match: AtomicU64,
    /// 0 none yet, 1 through the manager, 2 direct: how the last tunnel was opened.
    pub tunnel: AtomicU64,
}

/// Whether an intercept is served or only remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Matches go to the workstation.
    Active,
    /// Ended while expired notifications are on: matches are answered with 503.
    Expired,
}

/// An intercept in a table.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The rule.
    pub intercept: Arc<Intercept>,
    /// What becomes of its matches.
    pub state: State,
}

/// Where one request goes.
#[derive(Clone, Copy, Debug)]
pub enum Decision<'t> {
    /// The app.
    App,
    /// The workstation of this intercept.
    Client(&'t Arc<Intercept>),
    /// A 503: this intercept has expired.
    Expired(&'t Arc<Intercept>),
}

/// What routing reads of a request; implemented over a parsed HTTP/1 head and over an HTTP/2 header map.
pub trait Request {
    /// The request target as received, query included; for absolute-form targets the path and what follows.
    fn target(&self) -> &[u8];
    /// Calls `visit` with name and value of every field line, in any letter case, in order.
    fn visit_headers<'a>(&'a self, visit: &mut dyn FnMut(&'a [u8], &'a [u8]));
}

/// The rules of one port: immutable, in the order in which they are asked.
#[derive(Debug, Default)]
pub struct RouteTable {
    entries: Vec<Entry>,
    names: matcher::Names,
    any_http: bool,
}

impl RouteTable {
    /// Orders `entries`: active before expired; within these, header-filtered before path-only before global; then
    /// by id.
    #[must_use]
    pub fn new(mut entries: Vec<Entry>) -> Self {
        entries.sort_by(|a, b| rank(a).cmp(&rank(b)).then_with(|| a.intercept.id.cmp(&b.intercept.id)));
        let names = matcher::Names::of(entries.iter().map(|e| &e.intercept.filters));
        let any_http = entries.iter().any(|e| !e.intercept.filters.is_empty());
        Self { entries, names, any_http }
    }

    /// Whether nothing is intercepted, so that requests need no look at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether single requests have to be told apart, so that HTTP/2 must be terminated.
    #[must_use]
    pub fn needs_requests(&self) -> bool {
        !self.entries.is_empty()
    }

    /// Whether some rule has header or path filters.
    #[must_use]
    pub fn has_filters(&self) -> bool {
        self.any_http
    }

    /// The intercept that takes whole connections of this port, if there is an active one without filters.
    #[must_use]
    pub fn global(&self) -> Option<&Arc<Intercept>> {
        self.entries.iter().find(|e| e.state == State::Active && e.intercept.filters.is_empty()).map(|e| &e.intercept)
    }

    /// Every rule, in the order in which they are asked.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Decides one request. The first rule that matches wins; kubelet probes (`user-agent: kube-probe/…`) stay with
    /// the app unless the rule has a filter on `user-agent`.
    pub fn decide<R: Request + ?Sized>(&self, request: &R) -> Decision<'_> {
        if self.entries.is_empty() {
            return Decision::App;
        }
        let view = matcher::View::new(request, &self.names);
        for entry in &self.entries {
            if entry.intercept.filters.matches(&view) {
                return match entry.state {
                    State::Active => Decision::Client(&entry.intercept),
                    State::Expired => Decision::Expired(&entry.intercept),
                };
            }
            entry.intercept.stats.misses.fetch_add(1, Ordering::Relaxed);
        }
        Decision::App
    }

    /// Like [`Self::decide`], without counting, and with the first clause that failed for each rule asked.
    pub fn explain<R: Request + ?Sized>(&self, request: &R) -> (Decision<'_>, Vec<Considered>) {
        let view = matcher::View::new(request, &self.names);
        let mut considered = Vec::new();
        let mut decision = Decision::App;
        for entry in &self.entries {
            let failed = entry.intercept.filters.first_failure(&view);
            let matched = failed.is_none();
            considered.push(Considered { id: entry.intercept.id.clone(), matched, failed });
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

/// What [`RouteTable::explain`] says of one rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Considered {
    /// The intercept's id.
    pub id: String,
    /// Whether every clause held.
    pub matched: bool,
    /// The first clause that did not hold.
    pub failed: Option<String>,
}

impl Stats {
    /// Counts a hit at `now_unix` (seconds since the epoch).
    pub fn hit(&self, now_unix: u64) {
        self.hits.fetch_add(1, Ordering::Relaxed);
        self.last_match.store(now_unix, Ordering::Relaxed);
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
