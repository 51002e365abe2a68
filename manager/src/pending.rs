//! Bytes of watches' messages that their readers have not taken: the transport holds a message until
//! its stream has room, however large it is. There is one budget for all. While it is used up, no
//! message is made, and the connections whose readers stall longest are closed. What each connection
//! is allowed at least has a budget of its own, so that ordinary readers do not wait for large
//! messages that nobody reads.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use traffic_proto::sync::lock;

use crate::connection::ConnectionEnd;
use crate::limits::{LimitCounters, MAX_PENDING_BYTES, MAX_PENDING_OF_CONNECTION, ManagerLimit};

/// Time a reader may take for a message while others wait for memory.
const STALL_TIMEOUT: Duration = Duration::from_secs(2);

/// The budgets.
#[derive(Debug)]
pub(crate) struct PendingMessages {
    most: usize,
    allowance: usize,
    /// Within the allowances of their connections.
    small: Mutex<HeldMessages>,
    large: Mutex<HeldMessages>,
    freed: Notify,
    limits: Arc<LimitCounters>,
}

#[derive(Debug, Default)]
struct HeldMessages {
    total: usize,
    last: u64,
    /// In the order in which they were made.
    messages: BTreeMap<u64, HeldMessage>,
    /// Bytes by the number of the connection.
    by_connection: HashMap<u64, usize>,
}

#[derive(Debug)]
struct HeldMessage {
    bytes: usize,
    since: Instant,
    connection: ConnectionEnd,
}

/// A message's part of the budget, given back when dropped.
#[derive(Debug)]
pub(crate) struct PendingPlace {
    all: Arc<PendingMessages>,
    is_small: bool,
    number: u64,
}

impl PendingMessages {
    pub(crate) fn new(limits: Arc<LimitCounters>) -> Arc<Self> {
        Self::with(MAX_PENDING_BYTES, MAX_PENDING_OF_CONNECTION, limits)
    }

    fn with(most: usize, allowance: usize, limits: Arc<LimitCounters>) -> Arc<Self> {
        Arc::new(Self {
            most,
            allowance,
            small: Mutex::default(),
            large: Mutex::default(),
            freed: Notify::new(),
            limits,
        })
    }

    /// Waits until a message of so many bytes may be made for `connection`. One alone may be larger
    /// than the budget.
    pub(crate) async fn place(
        self: &Arc<Self>,
        bytes: usize,
        connection: &ConnectionEnd,
    ) -> PendingPlace {
        loop {
            if connection.is_closed() {
                // It ends; nothing more is made for it.
                std::future::pending::<()>().await;
            }
            let mut freed = std::pin::pin!(self.freed.notified());
            // Registered before the check, so that what is freed in between is not missed.
            freed.as_mut().enable();
            let next = match self.try_place(bytes, connection) {
                Ok(place) => return place,
                Err(next) => next,
            };
            tokio::select! {
                () = freed => {}
                () = sleep_until(next + STALL_TIMEOUT) => {}
                () = connection.closed() => {}
            }
        }
    }

    /// Takes a place, or returns the time of the oldest message that may still be taken.
    fn try_place(
        self: &Arc<Self>,
        bytes: usize,
        connection: &ConnectionEnd,
    ) -> Result<PendingPlace, Instant> {
        let is_small = {
            let small = lock(&self.small);
            let own = small.by_connection.get(&connection.number());
            own.copied().unwrap_or_default() + bytes <= self.allowance
        };
        let mut held = self.pool(is_small);
        let now = Instant::now();
        let excess = (held.total + bytes).saturating_sub(self.most);
        if held.total > 0 && excess > 0 {
            for stalled in held.stalled(now, excess) {
                stalled.close();
                let by = format!("connection {}", stalled.number());
                self.limits.reached(ManagerLimit::PendingBytes, &by);
            }
            let mut waiting = held.messages.values().map(|it| it.since);
            let next = waiting.find(|since| now.duration_since(*since) < STALL_TIMEOUT);
            return Err(next.unwrap_or(now));
        }
        Ok(PendingPlace {
            number: held.add(bytes, connection),
            is_small,
            all: Arc::clone(self),
        })
    }

    fn pool(&self, is_small: bool) -> MutexGuard<'_, HeldMessages> {
        lock(if is_small { &self.small } else { &self.large })
    }
}

impl HeldMessages {
    fn add(&mut self, bytes: usize, connection: &ConnectionEnd) -> u64 {
        self.last += 1;
        self.total += bytes;
        *self.by_connection.entry(connection.number()).or_default() += bytes;
        let message = HeldMessage {
            bytes,
            since: Instant::now(),
            connection: connection.clone(),
        };
        self.messages.insert(self.last, message);
        self.last
    }

    fn remove(&mut self, number: u64) {
        let Some(message) = self.messages.remove(&number) else {
            return;
        };
        self.total -= message.bytes;
        let connection = message.connection.number();
        if let Some(own) = self.by_connection.get_mut(&connection) {
            *own -= message.bytes;
            if *own == 0 {
                self.by_connection.remove(&connection);
            }
        }
    }

    /// Returns the open connections whose messages have waited too long, the longest first, as many
    /// as free `excess`. The messages are counted until they are gone.
    fn stalled(&self, now: Instant, excess: usize) -> Vec<ConnectionEnd> {
        let mut stalled = Vec::new();
        let mut freed = 0;
        for message in self.messages.values() {
            if freed >= excess || now.duration_since(message.since) < STALL_TIMEOUT {
                break;
            }
            freed += message.bytes;
            if !message.connection.is_closed() {
                stalled.push(message.connection.clone());
            }
        }
        stalled
    }
}

impl Drop for PendingPlace {
    fn drop(&mut self) {
        self.all.pool(self.is_small).remove(self.number);
        self.all.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stalled_reader_gives_way_and_one_that_reads_does_not() {
        let pending = PendingMessages::with(100, 10, Arc::default());
        let (stalled, reads) = (ConnectionEnd::default(), ConnectionEnd::default());
        let unread = pending.place(60, &stalled).await;
        tokio::spawn({
            let stalled = stalled.clone();
            async move {
                stalled.closed().await;
                drop(unread);
            }
        });
        tokio::time::advance(STALL_TIMEOUT / 2).await;
        let read = pending.place(40, &reads).await;
        let started = Instant::now();
        let more = pending.place(50, &reads).await;
        assert!(started.elapsed() < STALL_TIMEOUT / 2 + Duration::from_millis(10));
        assert!(stalled.is_closed() && !reads.is_closed());
        drop((read, more));
        assert_eq!(lock(&pending.large).total, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_too_large_goes_alone() {
        let pending = PendingMessages::with(100, 10, Arc::default());
        let one = ConnectionEnd::default();
        let large = pending.place(1000, &one).await;
        let second = timeout(STALL_TIMEOUT / 2, pending.place(11, &one));
        assert!(second.await.is_err(), "it waits");
        drop(large);
        pending.place(11, &one).await;
        assert!(!one.is_closed());
    }

    #[tokio::test(start_paused = true)]
    async fn an_ordinary_reader_does_not_wait_for_large_messages() {
        let pending = PendingMessages::with(100, 10, Arc::default());
        let (stalled, reads) = (ConnectionEnd::default(), ConnectionEnd::default());
        let _unread = pending.place(100, &stalled).await;
        let started = Instant::now();
        drop(pending.place(10, &reads).await);
        assert_eq!(started.elapsed(), Duration::ZERO);
        assert!(lock(&pending.small).by_connection.is_empty());
    }
}
