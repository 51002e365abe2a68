//! Signs of life of a tunnel: answers to keep-alives, and the time since something moved.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::Broken;
use crate::manager::TunnelMessage;
use crate::sync::lock;
use crate::tunnel::Message;

/// Answers keep-alives.
pub(super) struct Pulse<T> {
    tx: Option<mpsc::WeakSender<T>>,
    wrap: fn(TunnelMessage) -> T,
    asked: AtomicBool,
}

impl<T> Pulse<T> {
    pub(super) fn new(tx: Option<mpsc::WeakSender<T>>, wrap: fn(TunnelMessage) -> T) -> Self {
        Self {
            tx,
            wrap,
            asked: AtomicBool::new(false),
        }
    }

    /// Answers a keep-alive of the peer.
    pub(super) fn answer(&self) {
        self.asked.store(true, Ordering::Relaxed);
        self.beat();
    }

    /// Returns true if the peer has sent a keep-alive.
    pub(super) fn was_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// A full queue is on its way to the peer, and says as much as an answer.
    pub(super) fn beat(&self) {
        if let Some(tx) = self.tx.as_ref().and_then(mpsc::WeakSender::upgrade) {
            let payload = Message::KeepAlive.encode();
            let _ = tx.try_send((self.wrap)(TunnelMessage { payload }));
        }
    }
}

/// Time of the last activity in either direction.
pub(super) struct Activity {
    idle: Duration,
    last: Mutex<Instant>,
}

impl Activity {
    pub(super) fn new(idle: Duration) -> Self {
        Self {
            idle,
            last: Mutex::new(Instant::now()),
        }
    }

    pub(super) fn touch(&self) {
        *self.last() = Instant::now();
    }

    fn last(&self) -> MutexGuard<'_, Instant> {
        lock(&self.last)
    }

    /// Resolves when nothing has moved for the idle time.
    pub(super) async fn stale(&self) -> Result<std::convert::Infallible, Broken> {
        loop {
            let deadline = *self.last() + self.idle;
            // Read again after each sleep, because activity moves the deadline.
            if deadline <= Instant::now() {
                return Err(Broken::Idle);
            }
            sleep_until(deadline).await;
        }
    }
}
