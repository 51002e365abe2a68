//! Readiness as a set of guards: the agent is ready once every task that must happen first has
//! dropped its guard.

use std::sync::{Arc, Mutex};

use tokio::sync::watch;
use traffic_proto::sync::lock;

/// Handle on what is still awaited; cheap to clone.
#[derive(Clone, Debug)]
pub struct Ready {
    pending: Arc<Mutex<Vec<&'static str>>>,
    changed: watch::Sender<bool>,
    failed: watch::Sender<bool>,
}

/// Holds readiness back until dropped.
#[derive(Debug)]
pub struct Blocker {
    what: &'static str,
    ready: Ready,
}

impl Default for Ready {
    fn default() -> Self {
        Self {
            pending: Arc::default(),
            changed: watch::Sender::new(false),
            failed: watch::Sender::new(false),
        }
    }
}

impl Ready {
    /// Registers a task that must finish before the agent is ready.
    #[must_use]
    pub fn block(&self, what: &'static str) -> Blocker {
        self.lock().push(what);
        self.changed.send_replace(false);
        Blocker {
            what,
            ready: self.clone(),
        }
    }

    /// Returns true if nothing is awaited and the agent was not marked unhealthy (drain,
    /// `/healthcheck/fail`).
    #[must_use]
    pub fn is_ready(&self) -> bool {
        !*self.failed.borrow() && self.lock().is_empty()
    }

    /// Names of the tasks still awaited, for messages.
    #[must_use]
    pub fn pending(&self) -> Vec<&'static str> {
        self.lock().clone()
    }

    /// Marks the agent unhealthy (`true`) or healthy again; used by the drain and the admin's
    /// health switch.
    pub fn fail(&self, failed: bool) {
        self.failed.send_replace(failed);
    }

    /// Returns true if the agent was marked unhealthy.
    #[must_use]
    pub fn is_failed(&self) -> bool {
        *self.failed.borrow()
    }

    /// Returns once nothing is awaited.
    pub async fn wait(&self) {
        let mut changed = self.changed.subscribe();
        while !self.lock().is_empty() {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<&'static str>> {
        lock(&self.pending)
    }
}

impl Drop for Blocker {
    fn drop(&mut self) {
        let mut pending = self.ready.lock();
        if let Some(at) = pending.iter().position(|w| *w == self.what) {
            pending.swap_remove(at);
        }
        let empty = pending.is_empty();
        drop(pending);
        self.ready.changed.send_replace(empty);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ready_waits_for_every_guard() {
        let ready = Ready::default();
        let first = ready.block("ports");
        let second = ready.block("session");
        drop(first);
        assert_eq!(ready.pending(), ["session"]);
        assert!(!ready.is_ready());
        drop(second);
        ready.wait().await;
        assert!(ready.is_ready());
        ready.fail(true);
        assert!(!ready.is_ready());
    }
}
