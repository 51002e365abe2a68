//! Queue of items for one session to fetch: dial requests, names to resolve.
//!
//! Posting never waits and never grows without bound, so a session that does not read has no effect
//! on others. Items past their deadline are not delivered.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};

use tokio::sync::Notify;
use tokio::time::Instant;
use traffic_proto::sync::lock;

/// Maximum of queued items: more than a busy workstation ever has open between two wake-ups of its
/// reader.
const QUEUE_CAPACITY: usize = 1024;

/// A bounded queue with one reader at a time, the last one that opened it.
#[derive(Debug)]
pub(crate) struct Mailbox<T> {
    inner: Mutex<Inner<T>>,
    changed: Notify,
}

#[derive(Debug)]
struct Inner<T> {
    items: VecDeque<(Instant, T)>,
    reader: u64,
    /// The last reader has gone.
    is_left: bool,
}

impl<T> Mailbox<T> {
    pub(crate) fn new() -> Self {
        Self {
            inner: Mutex::new(Inner {
                items: VecDeque::new(),
                reader: 0,
                is_left: false,
            }),
            changed: Notify::new(),
        }
    }

    /// Posts an item, valid until `deadline`. False if the queue is full of valid items.
    pub(crate) fn post(&self, item: T, deadline: Instant) -> bool {
        let mut inner = self.inner();
        if inner.items.len() >= QUEUE_CAPACITY {
            let now = Instant::now();
            inner.items.retain(|(deadline, _)| *deadline > now);
            if inner.items.len() >= QUEUE_CAPACITY {
                return false;
            }
        }
        inner.items.push_back((deadline, item));
        drop(inner);
        self.changed.notify_waiters();
        true
    }

    /// Becomes the reader; an earlier reader gets no more items.
    pub(crate) fn open(&self) -> u64 {
        let mut inner = self.inner();
        inner.reader += 1;
        inner.is_left = false;
        let reader = inner.reader;
        drop(inner);
        self.changed.notify_waiters();
        reader
    }

    /// Ends a reader; items wait for the next one.
    pub(crate) fn leave(&self, reader: u64) {
        let mut inner = self.inner();
        inner.is_left |= inner.reader == reader;
        drop(inner);
        self.changed.notify_waiters();
    }

    /// Resolves when the reader has gone and no other one has come.
    pub(crate) async fn left(&self) {
        let mut changed = std::pin::pin!(self.changed.notified());
        loop {
            changed.as_mut().enable();
            if self.inner().is_left {
                return;
            }
            changed.as_mut().await;
            changed.set(self.changed.notified());
        }
    }

    /// Returns the next item, or `None` once another reader has taken over.
    pub(crate) async fn take(&self, reader: u64) -> Option<T> {
        let mut changed = std::pin::pin!(self.changed.notified());
        loop {
            // Registered before the check, so that an item posted in between is not missed.
            changed.as_mut().enable();
            {
                let mut inner = self.inner();
                if inner.reader != reader {
                    return None;
                }
                let now = Instant::now();
                while let Some((deadline, item)) = inner.items.pop_front() {
                    if deadline > now {
                        return Some(item);
                    }
                }
            }
            changed.as_mut().await;
            changed.set(self.changed.notified());
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner<T>> {
        lock(&self.inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    #[tokio::test]
    async fn items_come_in_order_and_stale_ones_do_not_come() {
        let mailbox = Mailbox::new();
        mailbox.post("gone", Instant::now());
        mailbox.post("first", soon());
        mailbox.post("second", soon());
        let reader = mailbox.open();
        assert_eq!(mailbox.take(reader).await, Some("first"));
        assert_eq!(mailbox.take(reader).await, Some("second"));
    }

    #[tokio::test]
    async fn a_second_reader_takes_over() {
        let mailbox = std::sync::Arc::new(Mailbox::new());
        let first = mailbox.open();
        let waiting = tokio::spawn({
            let mailbox = mailbox.clone();
            async move { mailbox.take(first).await }
        });
        tokio::task::yield_now().await;
        let second = mailbox.open();
        assert_eq!(waiting.await.unwrap(), None);
        mailbox.post(7, soon());
        assert_eq!(mailbox.take(second).await, Some(7));
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_box_refuses_until_items_are_stale() {
        let mailbox = Mailbox::new();
        for n in 0..QUEUE_CAPACITY {
            assert!(mailbox.post(n, soon()));
        }
        assert!(!mailbox.post(0, soon()));
        tokio::time::advance(Duration::from_secs(6)).await;
        assert!(mailbox.post(0, soon()));
    }
}
