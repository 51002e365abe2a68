//! Presence of clients, told by their open watches: a laptop that sleeps or a client that was killed
//! ends its watches long before its session expires. Its intercepts are suspended then, and
//! resumed when it is back.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::time::{Instant, sleep};
use tokio_util::task::TaskTracker;

use crate::registry::{Resumed, Shared};
use crate::watch_body::Messages;

/// Time from the end of a client's last watch until its intercepts are suspended; a client that
/// reconnects is back by then.
const SUSPEND_DELAY: Duration = Duration::from_secs(5);

/// Keepalive interval of connections; detects peers that vanished without closing.
pub(crate) const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// Time for the answer to a keepalive.
pub(crate) const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Time after which a peer that vanished without closing has lost its connection.
pub(crate) const VANISH_TIMEOUT: Duration = KEEPALIVE_INTERVAL
    .saturating_add(KEEPALIVE_TIMEOUT)
    .saturating_add(Duration::from_secs(1));

/// Watches of one client, as long as they are held.
#[derive(Debug)]
pub(crate) struct Presence {
    #[allow(dead_code, reason = "held for its drop")]
    guard: Option<Guard>,
}

#[derive(Debug)]
struct Guard {
    shared: Arc<Shared>,
    tasks: TaskTracker,
    session: String,
    grace: Duration,
}

impl Presence {
    /// Begins a watch of `session`. Only clients are watched: agents send heartbeats often.
    pub(crate) fn begin(
        shared: &Arc<Shared>,
        tasks: &TaskTracker,
        session: &str,
        grace: Duration,
    ) -> Self {
        let attached = shared.change_unseen(|registry| registry.attach(session));
        if attached == Some(Resumed(true)) {
            // Its intercepts are shown differently.
            shared.change(|_| ());
        }
        let guard = attached.map(|_| Guard {
            shared: shared.clone(),
            tasks: tasks.clone(),
            session: session.to_owned(),
            grace,
        });
        Self { guard }
    }

    /// Keeps the presence as long as a stream of messages.
    pub(crate) fn hold<T: Send + 'static>(self, messages: Messages<T>) -> Messages<T> {
        let held = move |message| {
            let _ = &self;
            message
        };
        messages.map(held).boxed()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let left = Instant::now();
        let session = std::mem::take(&mut self.session);
        let was_last = self
            .shared
            .change_unseen(|registry| registry.detach(&session, left));
        if !was_last || self.shared.stop.is_cancelled() {
            return;
        }
        let (shared, grace) = (self.shared.clone(), self.grace);
        let stop = shared.stop.clone();
        let absence = async move {
            sleep(SUSPEND_DELAY).await;
            if shared.change(|registry| registry.suspend_absent(&session, left)) {
                tracing::info!(session, "client is away: its intercepts are suspended");
            }
            sleep(grace.saturating_sub(SUSPEND_DELAY)).await;
            if shared.change(|registry| registry.end_absent(&session, left)) {
                tracing::info!(session, "client did not come back: its session has ended");
            }
        };
        self.tasks
            .spawn(async move { stop.run_until_cancelled(absence).await });
    }
}
