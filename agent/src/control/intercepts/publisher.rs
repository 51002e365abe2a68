//! Publishes rules: holds the last snapshot, keeps it for a grace time when the manager is lost,
//! and expires remembered intercepts.

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::control::intercepts::translate::{Readability, Review, Rules, Snapshot};
use crate::routes::{CurrentRoutes, UnreadTls};
use traffic_core::routing::{Intercept, RouteTable};
use traffic_proto::sync::lock;

/// Resolves once a port's protocol is known well enough to review an intercept.
pub type ProbeFuture = BoxFuture<'static, ()>;

/// Handle on one port for publishing its rules.
pub struct PortHandle {
    /// Target of the port's table.
    pub routes: Arc<CurrentRoutes>,
    /// Returns if single requests can be told apart on it, as far as that is known.
    pub readability: Box<dyn Fn() -> Readability + Send + Sync>,
    /// Probes the app's protocol if it is undeclared, before an owner is told that requests can be
    /// told apart; bounded in time.
    pub ask: Box<dyn Fn() -> ProbeFuture + Send + Sync>,
    /// Returns what callers said that no filter could see.
    pub unread: Box<dyn Fn() -> Option<UnreadTls> + Send + Sync>,
}

/// What is left to do after a snapshot was applied.
#[derive(Debug)]
pub(crate) struct Published {
    /// Reviews to send.
    pub(crate) reviews: Vec<Review>,
    /// Ports to probe for the reviews that are missing.
    pub(crate) probes: BTreeSet<usize>,
    /// Time at which to apply the snapshot again.
    pub(crate) look_again: Option<Instant>,
}

pub(crate) struct RoutePublisher {
    ports: Vec<PortHandle>,
    grace: Duration,
    state: Mutex<PublishedState>,
    /// Signals that a deadline has changed.
    changed: Notify,
}

struct PublishedState {
    rules: Rules,
    /// End of the grace; none while a session backs the tables.
    grace_ends: Option<Instant>,
}

impl RoutePublisher {
    pub(crate) fn new(ports: Vec<PortHandle>, rules: Rules, grace: Duration) -> Self {
        let state = Mutex::new(PublishedState {
            rules,
            grace_ends: None,
        });
        Self {
            ports,
            grace,
            state,
            changed: Notify::new(),
        }
    }

    /// Probes one port's app as a review requires.
    pub(crate) fn probe(&self, port: usize) -> ProbeFuture {
        match self.ports.get(port) {
            Some(port) => (port.ask)(),
            None => Box::pin(std::future::ready(())),
        }
    }

    /// Applies a snapshot at once. Ports in `probed` need no further probe: what they have not
    /// answered stays unknown.
    pub(crate) fn snapshot(&self, snapshot: &Snapshot, probed: &HashSet<usize>) -> Published {
        let readability: Vec<_> = self
            .ports
            .iter()
            .enumerate()
            .map(|(index, port)| match (port.readability)() {
                Readability::Unknown if probed.contains(&index) => Readability::Readable,
                known => known,
            })
            .collect();
        let mut state = self.lock();
        // A session backs the tables again.
        state.grace_ends = None;
        let outcome = state.rules.apply(
            snapshot,
            &readability,
            (Instant::now().into_std(), SystemTime::now()),
        );
        self.publish(outcome.tables);
        drop(state);
        for change in &outcome.changes {
            tracing::info!("{change}");
        }
        // Wakes the deadline task, which may now have an earlier or no deadline.
        self.changed.notify_one();
        Published {
            reviews: outcome.reviews,
            probes: outcome.probes,
            look_again: outcome.look_again.map(Instant::from_std),
        }
    }

    /// Returns the intercepts in force, for reports about them, with what was unread on their ports.
    pub(crate) fn routed(&self) -> Vec<(Arc<Intercept>, Option<UnreadTls>)> {
        let mut routed = Vec::new();
        for port in &self.ports {
            let table = port.routes.load_full();
            if !table.is_empty() {
                let unread = (port.unread)();
                let rules = table.rules();
                routed.extend(rules.map(|e| (Arc::clone(&e.intercept), unread.clone())));
            }
        }
        routed
    }

    /// Begins a session with a manager; `is_known` if that one still knew this agent.
    pub(crate) fn arrived(&self, is_known: bool) {
        let now = Instant::now().into_std();
        self.lock().rules.arrive(is_known, now);
    }

    /// Returns the client sessions of the intercepts that a lost session left in force.
    pub(crate) fn carried_sessions(&self) -> Vec<String> {
        let state = self.lock();
        state.rules.carried_sessions().map(str::to_owned).collect()
    }

    /// Starts the grace time after the session was lost, counted from the first loss.
    pub(crate) fn lost(&self) {
        let mut state = self.lock();
        state.rules.drop_promises();
        // Repeated losses while reconnecting do not extend the grace.
        if state.grace_ends.is_none() {
            state.grace_ends = Some(Instant::now() + self.grace);
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Sends all traffic to the app.
    pub(crate) fn clear(&self) {
        let mut state = self.lock();
        let tables = state.rules.clear();
        self.publish(tables);
    }

    /// Watches the deadlines; never returns.
    pub(crate) async fn watch_deadlines(&self) {
        loop {
            let next = self.pass(Instant::now());
            let sleep = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = sleep => {}
                () = self.changed.notified() => {}
            }
        }
    }

    /// Performs what is due and returns the next deadline.
    fn pass(&self, now: Instant) -> Option<Instant> {
        let mut state = self.lock();
        if state.grace_ends.is_some_and(|at| at <= now) {
            state.grace_ends = None;
            let tables = state.rules.clear();
            // No line if nothing was intercepted.
            if !tables.is_empty() {
                tracing::warn!(
                    "no manager for {:?}: intercepts are suspended, all traffic goes to the app",
                    self.grace
                );
            }
            self.publish(tables);
        }
        let tables = state.rules.expire(now.into_std());
        self.publish(tables);
        let expiry = state.rules.next_expiry().map(Instant::from_std);
        // The earlier of both deadlines, or none.
        state.grace_ends.into_iter().chain(expiry).min()
    }

    fn publish(&self, tables: Vec<(usize, RouteTable)>) {
        for (index, table) in tables {
            if let Some(port) = self.ports.get(index) {
                port.routes.store(table);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, PublishedState> {
        lock(&self.state)
    }
}

impl fmt::Debug for PortHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PortHandle").finish_non_exhaustive()
    }
}
