//! A lock by key: opening a tunnel waits while another with the same session and connection id is
//! being opened. One caller may need several at once, because several intercepts of one workstation
//! may lead to the same target, and manager and agent match the two ends of a tunnel only by these
//! keys.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::Notify;
use traffic_proto::sync::lock;

/// Keys currently locked.
pub(crate) struct KeyedLock<K>(Arc<Inner<K>>);

struct Inner<K> {
    locked: Mutex<HashSet<K>>,
    released: Notify,
}

impl<K> Default for KeyedLock<K> {
    fn default() -> Self {
        Self(Arc::new(Inner {
            locked: Mutex::default(),
            released: Notify::new(),
        }))
    }
}

impl<K: Clone + Eq + Hash> KeyedLock<K> {
    /// Waits for the lock of `key`, which is released when the guard is dropped.
    pub(crate) async fn take(&self, key: K) -> KeyGuard<K> {
        loop {
            // Created before the check, so that a release in between is not missed.
            let released = self.0.released.notified();
            if self.0.locked().insert(key.clone()) {
                return KeyGuard {
                    key,
                    lock: Arc::clone(&self.0),
                };
            }
            released.await;
        }
    }
}

impl<K> Inner<K> {
    fn locked(&self) -> MutexGuard<'_, HashSet<K>> {
        lock(&self.locked)
    }
}

/// Guard of one locked key.
pub(crate) struct KeyGuard<K: Eq + Hash> {
    key: K,
    lock: Arc<Inner<K>>,
}

impl<K: Eq + Hash> Drop for KeyGuard<K> {
    fn drop(&mut self) {
        self.lock.locked().remove(&self.key);
        // All waiters check again, because the notification does not carry the key.
        self.lock.released.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_has_the_turn_for_a_key_and_others_do_not_wait() {
        let lock = KeyedLock::default();
        let first = lock.take(1).await;
        let other = lock.take(2).await;
        let mut next = std::pin::pin!(lock.take(1));
        assert!(futures_util::poll!(&mut next).is_pending());
        drop(other);
        assert!(futures_util::poll!(&mut next).is_pending());
        drop(first);
        drop(next.await);
        assert!(lock.0.locked().is_empty());
    }
}
