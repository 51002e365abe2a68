//! Workstations that watch this agent for dials: at most one watch for each session.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use futures_util::{Stream, StreamExt};
use traffic_proto::manager::DialRequest;
use traffic_proto::sync::lock;

use crate::control::dial_queue::{DialReceiver, DialSender, dial_queue};
use crate::control::keepalive::SignsOfLife;
use crate::telemetry::metrics::ControlMetrics;

/// The watches by session.
pub(crate) struct Watchers {
    by_session: Mutex<HashMap<String, Watcher>>,
    /// Watches begun and ended. Written after the map, so that who reads it first misses no change.
    changes: AtomicU64,
    metrics: Arc<ControlMetrics>,
}

struct Watcher {
    /// Tells a watch from a later one of the same session.
    number: u64,
    dials: DialSender,
    /// Signs of life of the connection that the watch came by.
    signs: SignsOfLife,
}

impl Watchers {
    /// Creates an instance without watches.
    pub(crate) fn new(metrics: Arc<ControlMetrics>) -> Self {
        Self {
            by_session: Mutex::default(),
            changes: AtomicU64::new(0),
            metrics,
        }
    }

    /// Starts a workstation's watch; replaces an earlier watch of the same session.
    pub(crate) fn begin(self: &Arc<Self>, session: &str, signs: SignsOfLife) -> DialStream {
        let (dials, queue) = dial_queue();
        let mut watchers = lock(&self.by_session);
        let number = self.changes.fetch_add(1, Ordering::Relaxed);
        let watcher = Watcher {
            number,
            dials,
            signs,
        };
        watchers.insert(session.to_owned(), watcher);
        // A second time, since who has read the first one may have looked before the insertion.
        self.changes.fetch_add(1, Ordering::Release);
        self.metrics.workstations.add(1);
        DialStream {
            queue,
            number,
            session: session.to_owned(),
            watchers: Arc::clone(self),
        }
    }

    /// Returns the number of a session's watch.
    pub(crate) fn number(&self, session: &str) -> Option<u64> {
        lock(&self.by_session).get(session).map(|it| it.number)
    }

    /// Returns the queue of a session's watch.
    pub(crate) fn dials(&self, session: &str) -> Option<DialSender> {
        lock(&self.by_session)
            .get(session)
            .map(|it| it.dials.clone())
    }

    /// Asks the connection that a session's watch came by for a sign of life.
    pub(crate) fn doubt(&self, session: &str) {
        if let Some(watcher) = lock(&self.by_session).get(session) {
            watcher.signs.doubt();
        }
    }

    /// Counts up whenever a watch begins or ends.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }
}

/// Dial requests for one workstation; dropping it ends the watch, unless a later one has replaced
/// it.
pub(crate) struct DialStream {
    queue: DialReceiver,
    number: u64,
    session: String,
    watchers: Arc<Watchers>,
}

impl Stream for DialStream {
    type Item = DialRequest;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.queue.poll_next_unpin(cx)
    }
}

impl Drop for DialStream {
    fn drop(&mut self) {
        self.watchers.metrics.workstations.add(-1);
        let mut watchers = lock(&self.watchers.by_session);
        let present = watchers.get(&self.session);
        if present.is_some_and(|it| it.number == self.number) {
            watchers.remove(&self.session);
            self.watchers.changes.fetch_add(1, Ordering::Release);
        }
    }
}
