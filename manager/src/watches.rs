//! Streams that follow the registry: complete snapshots, or changes since the message before.
//!
//! A watch compares after every change and sends only differences to what it sent last. It keeps
//! one state, not a queue: a slow watcher misses intermediate states and delays no other.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, BoxStream, StreamExt};
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::mailbox::Mailbox;
use crate::registry::{Registry, Shared};

/// A server stream of a gRPC call.
pub(crate) type Messages<T> = BoxStream<'static, Result<T, Status>>;

/// Objects of a cluster change in crowds; one message serves for all that come so close together.
const ALSO_DELAY: Duration = Duration::from_millis(50);

type View<T> = BTreeMap<String, T>;

/// Sends a message for every state of a view: `message` builds it from the previous state (none at
/// first) and the new one. The first comes at once, and the stream ends with `end`.
pub(crate) fn follow<T, M>(
    shared: &Arc<Shared>,
    end: CancellationToken,
    view: impl Fn(&Registry) -> View<T> + Send + 'static,
    message: impl Fn(Option<View<T>>, &View<T>) -> M + Send + 'static,
) -> Messages<M>
where
    T: PartialEq + Clone + Send + Sync + 'static,
    M: Send + 'static,
{
    follow_both(shared, None, end, view, message)
}

/// The same for a view that depends on something besides the registry, which has changes of its
/// own.
pub(crate) fn follow_both<T, M>(
    shared: &Arc<Shared>,
    also: Option<watch::Receiver<u64>>,
    end: CancellationToken,
    view: impl Fn(&Registry) -> View<T> + Send + 'static,
    message: impl Fn(Option<View<T>>, &View<T>) -> M + Send + 'static,
) -> Messages<M>
where
    T: PartialEq + Clone + Send + Sync + 'static,
    M: Send + 'static,
{
    let follower = Follower {
        shared: shared.clone(),
        changes: shared.changes(),
        also,
        end,
        view,
        sent: None,
    };
    stream::unfold((follower, message), |(mut follower, message)| async move {
        let (before, state) = follower.next().await?;
        let sent = message(before, &state);
        follower.sent = Some(state);
        Some((Ok(sent), (follower, message)))
    })
    .boxed()
}

/// Builds messages of the whole view, for snapshots.
pub(crate) fn all<T: Clone, M>(wrap: fn(Vec<T>) -> M) -> impl Fn(Option<View<T>>, &View<T>) -> M {
    move |_, state| wrap(state.values().cloned().collect())
}

/// Builds messages of added, changed and removed entries, for deltas.
pub(crate) fn changed<T: Clone + PartialEq, M>(
    wrap: fn(View<T>, Vec<String>) -> M,
) -> impl Fn(Option<View<T>>, &View<T>) -> M {
    move |before, state| {
        let before = before.unwrap_or_default();
        let upserts = state
            .iter()
            .filter(|(key, value)| before.get(*key) != Some(value));
        let upserts = upserts
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        let removals = before
            .into_keys()
            .filter(|key| !state.contains_key(key))
            .collect();
        wrap(upserts, removals)
    }
}

struct Follower<T, V> {
    shared: Arc<Shared>,
    changes: watch::Receiver<u64>,
    also: Option<watch::Receiver<u64>>,
    end: CancellationToken,
    view: V,
    /// View sent last.
    sent: Option<View<T>>,
}

impl<T: PartialEq, V: Fn(&Registry) -> View<T>> Follower<T, V> {
    /// Waits for the next different state and returns it with the one before; `None` at the end.
    async fn next(&mut self) -> Option<(Option<View<T>>, View<T>)> {
        loop {
            self.changes.mark_unchanged();
            if let Some(also) = &mut self.also {
                also.mark_unchanged();
            }
            if self.end.is_cancelled() {
                return None;
            }
            let state = self.shared.read(&self.view);
            if self.sent.as_ref() != Some(&state) {
                return Some((self.sent.take(), state));
            }
            tokio::select! {
                () = self.end.cancelled() => return None,
                changed = self.changes.changed() => changed.ok()?,
                () = changed_too(&mut self.also) => sleep(ALSO_DELAY).await,
            }
        }
    }
}

async fn changed_too(also: &mut Option<watch::Receiver<u64>>) {
    if let Some(also) = also
        && also.changed().await.is_ok()
    {
        return;
    }
    // Without a sender there are no more changes.
    std::future::pending().await
}

/// Sends a value at once and whenever it has changed, until `end`.
pub(crate) fn latest<T: Clone + Send + Sync + 'static>(
    values: watch::Receiver<T>,
    end: CancellationToken,
) -> Messages<T> {
    stream::unfold((values, end, true), |(mut values, end, first)| async move {
        if !first {
            tokio::select! {
                () = end.cancelled() => return None,
                changed = values.changed() => changed.ok()?,
            }
        }
        let value = values.borrow_and_update().clone();
        Some((Ok(value), (values, end, false)))
    })
    .boxed()
}

/// Delivers items posted into a mailbox, until `end` or until another reader takes over.
pub(crate) fn deliver<T: Send + 'static>(
    mailbox: Arc<Mailbox<T>>,
    end: CancellationToken,
) -> Messages<T> {
    let reader = mailbox.open();
    stream::unfold((mailbox, end), move |(mailbox, end)| async move {
        let item = tokio::select! {
            () = end.cancelled() => return None,
            item = mailbox.take(reader) => item?,
        };
        Some((Ok(item), (mailbox, end)))
    })
    .boxed()
}
