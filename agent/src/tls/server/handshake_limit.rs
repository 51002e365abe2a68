//! Limit on a port's concurrent handshakes. A handshake takes milliseconds, so at the limit the
//! oldest ones are evicted for new ones: slow callers cannot block all others.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use traffic_proto::sync::lock;

/// Minimum age of an evicted handshake: younger ones may be slow because the machine is busy.
const MIN_EVICTION_AGE: Duration = Duration::from_secs(1);
/// Interval at which a waiting handshake looks for an evictable one.
const EVICTION_INTERVAL: Duration = Duration::from_millis(100);

/// Handshakes in progress.
#[derive(Debug)]
pub struct Handshakes {
    places: Arc<Semaphore>,
    running: Arc<Mutex<VecDeque<HandshakeSlot>>>,
}

#[derive(Debug)]
struct HandshakeSlot {
    since: Instant,
    evict: CancellationToken,
}

/// A slot among them; freed when dropped.
#[derive(Debug)]
pub struct Slot {
    evict: CancellationToken,
    running: Arc<Mutex<VecDeque<HandshakeSlot>>>,
    _place: OwnedSemaphorePermit,
}

/// Error: no slot became free in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl Handshakes {
    /// Creates a limit of `limit` concurrent handshakes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            places: Arc::new(Semaphore::new(limit)),
            running: Arc::default(),
        }
    }

    /// Takes a slot; at the limit evicts the oldest handshake and waits until `deadline`.
    ///
    /// # Errors
    /// No slot became free.
    pub async fn slot(&self, deadline: Instant) -> Result<Slot, Full> {
        loop {
            if let Ok(place) = Arc::clone(&self.places).try_acquire_owned() {
                return Ok(self.enter(place));
            }
            self.evict_oldest();
            let until = deadline.min(Instant::now() + EVICTION_INTERVAL);
            match timeout_at(until, Arc::clone(&self.places).acquire_owned()).await {
                Ok(Ok(place)) => return Ok(self.enter(place)),
                _ if Instant::now() >= deadline => return Err(Full),
                _ => {}
            }
        }
    }

    fn enter(&self, place: OwnedSemaphorePermit) -> Slot {
        let evict = CancellationToken::new();
        let mut running = lock(&self.running);
        running.retain(|r| !r.evict.is_cancelled());
        running.push_back(HandshakeSlot {
            since: Instant::now(),
            evict: evict.clone(),
        });
        Slot {
            evict,
            running: Arc::clone(&self.running),
            _place: place,
        }
    }

    fn evict_oldest(&self) {
        let mut running = lock(&self.running);
        if let Some(oldest) =
            running.pop_front_if(|oldest| oldest.since.elapsed() >= MIN_EVICTION_AGE)
        {
            oldest.evict.cancel();
        }
    }
}

impl Slot {
    /// Resolves when this handshake is evicted for a newer one.
    pub async fn evicted(&self) {
        self.evict.cancelled().await;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // The entry is found by its token: the list is short, and handshakes usually end near its
        // front.
        self.evict.cancel();
        lock(&self.running).retain(|r| !r.evict.is_cancelled());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_old_handshake_gives_way_and_a_young_one_does_not() {
        let handshakes = Handshakes::new(1);
        let old = handshakes.slot(Instant::now()).await.unwrap();
        assert_eq!(handshakes.slot(Instant::now()).await.unwrap_err(), Full);
        assert!(!old.evict.is_cancelled(), "a young one stays");
        tokio::time::advance(MIN_EVICTION_AGE).await;
        let newcomer = async {
            handshakes
                .slot(Instant::now() + MIN_EVICTION_AGE)
                .await
                .unwrap()
        };
        let leaving = async {
            old.evicted().await;
            drop(old);
        };
        let (newest, ()) = tokio::join!(newcomer, leaving);
        assert_eq!(handshakes.running.lock().unwrap().len(), 1);
        drop(newest);
        assert!(handshakes.running.lock().unwrap().is_empty());
    }
}
