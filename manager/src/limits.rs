//! Limits of the manager in one table: what, how much, the label of the counter and the message.
//! `docs/limits.md` is compared with it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit};

use crate::error::RequestError;

/// Open watches of one session, or of one connection for watches that name none; clients and agents
/// have fewer than ten.
pub(crate) const MAX_WATCHES_OF_SESSION: usize = 32;
/// Open watches of all sessions.
pub(crate) const MAX_WATCHES: usize = 16 * 1024;
/// Bytes of watches' messages that their readers have not taken.
pub(crate) const MAX_PENDING_BYTES: usize = 8 << 20;
/// Part of those that each connection has at least.
pub(crate) const MAX_PENDING_OF_CONNECTION: usize = 64 << 10;
/// Sessions of clients.
pub(crate) const MAX_CLIENTS: usize = 4096;
/// Bytes of what a client says about itself.
pub(crate) const MAX_CLIENT_BYTES: usize = 4 << 10;
/// Sessions of agents.
pub(crate) const MAX_AGENTS: usize = 8192;
/// Bytes of what all agents say about themselves.
pub(crate) const MAX_AGENT_BYTES: usize = 256 << 20;
/// Intercepts of one client.
pub(crate) const MAX_INTERCEPTS_OF_CLIENT: usize = 250;
/// Intercepts of one workload.
pub(crate) const MAX_INTERCEPTS_OF_WORKLOAD: usize = 1000;
/// Intercepts of one port of a workload.
pub(crate) const MAX_INTERCEPTS_OF_PORT: usize = 250;
/// Intercepts of all clients.
pub(crate) const MAX_INTERCEPTS: usize = 8192;
/// Bytes of one intercept as its client describes it.
pub(crate) const MAX_SPEC_BYTES: usize = 128 << 10;
/// Bytes of all intercepts with what agents answered.
pub(crate) const MAX_INTERCEPT_BYTES: usize = 32 << 20;
/// Connections dialled by the manager itself.
pub(crate) const MAX_DIALLED: usize = 1024;
/// Bytes of a name to resolve; DNS has at most 255.
pub(crate) const MAX_NAME_BYTES: usize = 512;
/// Names that are being resolved.
pub(crate) const MAX_LOOKUPS: usize = 256;

/// Connections of the API: an agent and a client have one each, and a few more for a moment.
pub(crate) const MAX_CONNECTIONS: usize = 16 * 1024;
/// Connections of the webhook.
pub(crate) const MAX_WEBHOOK_CONNECTIONS: usize = 1024;
/// Bytes of large bodies that the webhook holds.
pub(crate) const MAX_WEBHOOK_BYTES: usize = 16 << 20;

/// Returns a limit of connections: one part in so many of all descriptors, and `most` at most. The
/// rest is for others.
pub(crate) fn of_descriptors(parts: usize, most: usize) -> usize {
    let limit = getrlimit(Resource::Nofile).current;
    let descriptors = limit.and_then(|limit| usize::try_from(limit).ok());
    descriptors.map_or(most, |all| (all / parts).clamp(1, most))
}

/// Interval in which a limit that is reached again is only counted.
const SAY_INTERVAL: Duration = Duration::from_secs(10);

macro_rules! limits {
    ($($limit:ident = $label:literal, $what:literal, $value:expr, $message:literal;)+) => {
        /// A limit of the manager.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum ManagerLimit {
            $(#[doc = $what] $limit,)+
        }

        impl ManagerLimit {
            /// All of them, in the order of the table.
            pub(crate) const ALL: &'static [Self] = &[$(Self::$limit),+];

            /// Value of the label `limit` of the counter.
            pub(crate) fn label(self) -> &'static str {
                match self { $(Self::$limit => $label),+ }
            }

            /// Message when it is reached.
            pub(crate) fn message(self) -> &'static str {
                match self { $(Self::$limit => $message),+ }
            }

            #[cfg(test)]
            fn row(self) -> (&'static str, String) {
                match self { $(Self::$limit => ($what, $value)),+ }
            }
        }
    };
}

limits! {
    SessionWatches = "session_watches", "Open watches of one session; more are refused",
        MAX_WATCHES_OF_SESSION.to_string(), "watch refused: this session has too many open watches";
    Watches = "watches", "Open watches in all; more are refused",
        MAX_WATCHES.to_string(), "watch refused: too many watches are open";
    PendingBytes = "pending_bytes",
        "Messages of watches that their readers have not taken; beyond, the connection whose reader stalls longest is closed",
        format!("{}, and as much for {} of each connection", bytes(MAX_PENDING_BYTES), bytes(MAX_PENDING_OF_CONNECTION)),
        "connection closed: its watches are not read, and others wait";
    Clients = "clients", "Sessions of clients; the one that is away longest gives way",
        MAX_CLIENTS.to_string(), "too many clients: the one that is away longest gives way";
    ClientBytes = "client_bytes", "What a client says about itself",
        bytes(MAX_CLIENT_BYTES), "client refused: its description is too long";
    Agents = "agents", "Sessions of agents; more are refused",
        MAX_AGENTS.to_string(), "agent refused: too many agents are connected";
    AgentBytes = "agent_bytes", "What all agents say about themselves; more are refused",
        bytes(MAX_AGENT_BYTES), "agent refused: the agents' environments are too large";
    ClientIntercepts = "client_intercepts", "Intercepts of one client; more are refused",
        MAX_INTERCEPTS_OF_CLIENT.to_string(), "intercept refused: this client has too many; leave one that is not needed";
    WorkloadIntercepts = "workload_intercepts", "Intercepts of one workload; more are refused",
        MAX_INTERCEPTS_OF_WORKLOAD.to_string(), "intercept refused: this workload has too many";
    PortIntercepts = "port_intercepts", "Intercepts of one port of a workload; more are refused",
        MAX_INTERCEPTS_OF_PORT.to_string(), "intercept refused: this port has too many";
    Intercepts = "intercepts", "Intercepts in all; more are refused",
        MAX_INTERCEPTS.to_string(), "intercept refused: there are too many in all";
    SpecBytes = "spec_bytes", "Filters and settings of one intercept",
        bytes(MAX_SPEC_BYTES), "intercept refused: its filters are too long";
    InterceptBytes = "intercept_bytes", "All intercepts with the environments that agents sent; new ones are refused, environments left out",
        bytes(MAX_INTERCEPT_BYTES), "the intercepts take too much memory";
    Dialled = "dialled_connections", "Connections dialled by the manager itself, at most a quarter of all descriptors; more are refused",
        MAX_DIALLED.to_string(), "dial refused: the manager has too many connections for workstations";
    DialOwnPort = "dial_own_port", "Dials to a port of the manager itself (API, metrics, webhook)",
        "refused".to_owned(), "dial refused: the destination is a port of this manager";
    DialLinkLocal = "dial_link_local", "Dials to link-local and metadata addresses, but for those of `DIAL_ALLOW`",
        "refused".to_owned(), "dial refused: the destination is a link-local or metadata address; DIAL_ALLOW permits it";
    NameBytes = "name_bytes", "A name to resolve",
        bytes(MAX_NAME_BYTES), "name refused: it is too long";
    Lookups = "lookups", "Names that are being resolved; more are answered with a server failure",
        MAX_LOOKUPS.to_string(), "name refused: too many are being resolved";
    Connections = "connections",
        "Connections of the API, at most half of all descriptors; beyond, the peer with the most loses the one that serves no call for longest",
        MAX_CONNECTIONS.to_string(), "too many connections: an idle one is closed";
    WebhookConnections = "webhook_connections",
        "Connections of the webhook; beyond, the peer with the most loses the one that is idle longest",
        MAX_WEBHOOK_CONNECTIONS.to_string(), "webhook: too many connections: an idle one is closed";
    WebhookBytes = "webhook_bytes", "Bodies at the webhook, what exceeds 64KiB of each; more wait up to ten seconds",
        bytes(MAX_WEBHOOK_BYTES), "webhook: too many large reviews at a time: one waits";
}

/// Counts of limits that were reached.
#[derive(Debug)]
pub(crate) struct LimitCounters {
    counts: Vec<AtomicU64>,
    said: Mutex<Vec<Option<Instant>>>,
}

impl Default for LimitCounters {
    fn default() -> Self {
        let all = ManagerLimit::ALL;
        Self {
            counts: all.iter().map(|_| AtomicU64::new(0)).collect(),
            said: Mutex::new(vec![None; all.len()]),
        }
    }
}

impl LimitCounters {
    /// Counts that a limit was reached, and says so unless it was said just now. `by` names who
    /// reached it.
    pub(crate) fn reached(&self, limit: ManagerLimit, by: &str) {
        if let Some(count) = self.counts.get(limit as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let now = Instant::now();
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = said.get_mut(limit as usize)
            && last.is_none_or(|last| now.duration_since(last) >= SAY_INTERVAL)
        {
            *last = Some(now);
            tracing::warn!(by, limit = limit.label(), "{}", limit.message());
        }
    }

    /// Counts a refusal, says so, and makes it an error.
    pub(crate) fn refuse(&self, limit: ManagerLimit, by: &str, most: usize) -> RequestError {
        self.reached(limit, by);
        RequestError::TooMany(format!("{} (at most {most})", limit.message()))
    }

    /// Label and count of each limit.
    pub(crate) fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let all = ManagerLimit::ALL.iter().zip(&self.counts);
        all.map(|(limit, count)| (limit.label(), count.load(Ordering::Relaxed)))
    }
}

#[cfg(test)]
fn bytes(n: usize) -> String {
    match n {
        n if n >= 1 << 20 => format!("{}MiB", n >> 20),
        n if n >= 1 << 10 => format!("{}KiB", n >> 10),
        n => format!("{n} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn table() -> String {
        let head = "| what | limit | metric | message |\n| --- | --- | --- | --- |\n";
        let row = |limit: &ManagerLimit| {
            let (what, value) = limit.row();
            let (label, message) = (limit.label(), limit.message());
            format!(
                "| {what} | {value} | `traffic_manager_limits_total{{limit=\"{label}\"}}` | {message} |\n"
            )
        };
        let rows = ManagerLimit::ALL.iter().map(row);
        rows.fold(head.to_owned(), |table, row| table + &row)
    }

    #[test]
    fn the_page_says_what_the_code_does() {
        let page = include_str!("../../docs/limits.md");
        let table = table();
        assert!(
            page.contains(&table),
            "docs/limits.md has to contain:\n{table}"
        );
    }

    #[test]
    fn every_limit_of_the_table_is_used() {
        let mut code = String::new();
        let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if !path.ends_with("limits.rs") {
                    code += &std::fs::read_to_string(path).unwrap();
                }
            }
        }
        for limit in ManagerLimit::ALL {
            let used = format!("ManagerLimit::{limit:?}");
            assert!(code.contains(&used), "nobody uses {used}");
        }
    }

    #[test]
    fn what_is_reached_is_counted() {
        let counters = LimitCounters::default();
        let error = counters.refuse(ManagerLimit::Watches, "test", 3);
        assert!(error.to_string().ends_with("(at most 3)"), "{error}");
        let counted: Vec<_> = counters.counts().filter(|(_, count)| *count > 0).collect();
        assert_eq!(counted, [("watches", 1)]);
    }
}
