//! A lock by key: opening a tunnel waits while another with the same session and connection id is
//! being opened. One caller may need several at once, because several intercepts of one workstation
//! may lead to the same target, and manager and agent match the two ends of a tunnel only by these
//! keys.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Keys currently locked.
pub(crate) struct KeyedLock<K>(Arc<Inner<K>>);

struct Inner<K> {
    taken: Mutex<HashSet<K>>,
    given_back: Notify,
}

impl<K> Default for KeyedLock<K> {
    fn default() -> Self {
        Self(Arc::new(Inner {
            taken: Mutex::default(),
            given_back: Notify::new(),
        }))
    }
}

impl<K: Clone + Eq + Hash> KeyedLock<K> {
    /// Waits for the lock of `key`, which is released when the guard is dropped.
    pub(crate) async fn take(&self, key: K) -> KeyGuard<K> {
        loop {
            // Created before the look, so that no turn given back in between is missed.
            let given_back = self.0.given_back.notified();
            if self.0.taken().insert(key.clone()) {
                return KeyGuard {
                    key,
                    turns: Arc::clone(&self.0),
                };
            }
            given_back.await;
        }
    }
}

impl<K> Inner<K> {
    fn taken(&self) -> MutexGuard<'_, HashSet<K>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Guard of one locked key.
pub(crate) struct KeyGuard<K: Eq + Hash> {
    key: K,
    turns: Arc<Inner<K>>,
}

impl<K: Eq + Hash> Drop for KeyGuard<K> {
    fn drop(&mut self) {
        self.turns.taken().remove(&self.key);
        self.turns.given_back.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_has_the_turn_for_a_key_and_others_do_not_wait() {
        let turns = KeyedLock::default();
        let first = turns.take(1).await;
        let other = turns.take(2).await;
        let mut next = std::pin::pin!(turns.take(1));
        assert!(futures_util::poll!(&mut next).is_pending());
        drop(other);
        assert!(futures_util::poll!(&mut next).is_pending());
        drop(first);
        drop(next.await);
        assert!(turns.0.taken().is_empty());
    }
}
