//! Streams that follow the registry: complete snapshots, or changes since the message before.
//!
//! A watch compares after every change and sends only differences to what it sent last. It keeps
//! one state, not a queue: a slow watcher misses intermediate states and delays no other. What it
//! keeps of values are fingerprints, and messages are made when there is room for them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use prost::Message;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::mailbox::Mailbox;
use crate::open_watches::WatchEnd;
use crate::pending::PendingPlace;
use crate::registry::{Registry, Shared};
use crate::viewed::{Viewed, Watched};
use crate::watch_body;
use crate::watch_body::Messages;

/// Objects of a cluster change in crowds; one message serves for all that come so close together.
const ALSO_DELAY: Duration = Duration::from_millis(50);

type View<T> = BTreeMap<String, T>;

/// Sends a message, framed, for every state of a view: `message` builds it from the previous state (none at
/// first) and the new one. The first comes at once, and the stream ends with `end`.
pub(crate) fn follow<T, M>(
    shared: &Arc<Shared>,
    end: WatchEnd,
    view: impl Fn(&Registry) -> View<T> + Send + 'static,
    message: impl Fn(Option<View<T::Kept>>, &View<T>) -> M + Send + 'static,
) -> Messages<Bytes>
where
    T: Watched,
    M: Message,
{
    follow_both(shared, None, end, view, message)
}

/// The same for a view that depends on something besides the registry, which has changes of its
/// own.
pub(crate) fn follow_both<T, M>(
    shared: &Arc<Shared>,
    also: Option<watch::Receiver<u64>>,
    end: WatchEnd,
    view: impl Fn(&Registry) -> View<T> + Send + 'static,
    message: impl Fn(Option<View<T::Kept>>, &View<T>) -> M + Send + 'static,
) -> Messages<Bytes>
where
    T: Watched,
    M: Message,
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
        let (before, state, place) = follower.next().await?;
        let frame = watch_body::frame(&message(before, &state), place);
        let kept = state.into_iter().map(|(key, value)| (key, value.kept()));
        follower.sent = Some(kept.collect());
        Some((Ok(frame), (follower, message)))
    })
    .boxed()
}

/// Builds messages of the whole view, for snapshots.
pub(crate) fn all<T: Clone, M>(
    wrap: fn(Vec<T>) -> M,
) -> impl Fn(Option<View<u64>>, &View<Viewed<T>>) -> M {
    move |_, state| wrap(state.values().map(|it| it.value().clone()).collect())
}

/// Builds messages of added, changed and removed entries, for deltas.
pub(crate) fn changed<T: Clone, M>(
    wrap: fn(View<T>, Vec<String>) -> M,
) -> impl Fn(Option<View<u64>>, &View<Viewed<T>>) -> M {
    move |before, state| {
        let before = before.unwrap_or_default();
        let upserts = state
            .iter()
            .filter(|(key, value)| before.get(*key) != Some(&value.fingerprint));
        let upserts = upserts
            .map(|(key, value)| (key.clone(), value.value().clone()))
            .collect();
        let removals = before
            .into_keys()
            .filter(|key| !state.contains_key(key))
            .collect();
        wrap(upserts, removals)
    }
}

struct Follower<T: Watched, V> {
    shared: Arc<Shared>,
    changes: watch::Receiver<u64>,
    also: Option<watch::Receiver<u64>>,
    end: WatchEnd,
    view: V,
    /// Snapshot that was sent last.
    sent: Option<View<T::Kept>>,
}

impl<T: Watched, V: Fn(&Registry) -> View<T>> Follower<T, V> {
    /// Waits for the next different state and for room for its message; returns it with the one
    /// before, `None` at the end.
    async fn next(&mut self) -> Option<(Option<View<T::Kept>>, View<T>, PendingPlace)> {
        loop {
            self.changes.mark_unchanged();
            if let Some(also) = &mut self.also {
                also.mark_unchanged();
            }
            if self.end.is_cancelled() {
                return None;
            }
            let mut different = self.different(&self.shared.read(&self.view));
            while let Some(size) = different {
                // Nothing of the state is kept while this waits.
                let place = self.shared.pending.place(size, &self.end.connection);
                let place = tokio::select! {
                    () = self.end.cancelled() => return None,
                    place = place => place,
                };
                let state = self.shared.read(&self.view);
                different = self.different(&state);
                // It may have grown meanwhile, and then needs another place.
                if different.is_some_and(|now| now <= size) {
                    return Some((self.sent.take(), state, place));
                }
            }
            tokio::select! {
                () = self.end.cancelled() => return None,
                changed = self.changes.changed() => changed.ok()?,
                () = changed_too(&mut self.also) => sleep(ALSO_DELAY).await,
            }
        }
    }

    /// Returns the size of a state that is not the one that was sent.
    fn different(&self, state: &View<T>) -> Option<usize> {
        let is_same = self.sent.as_ref().is_some_and(|sent| {
            let kept = |(key, value): (&String, &T)| sent.get(key) == Some(&value.kept());
            sent.len() == state.len() && state.iter().all(kept)
        });
        (!is_same).then(|| state.values().map(Watched::size).sum())
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
    end: WatchEnd,
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
pub(crate) fn deliver<T: Send + 'static>(mailbox: Arc<Mailbox<T>>, end: WatchEnd) -> Messages<T> {
    let reader = MailboxReader {
        number: mailbox.open(),
        mailbox,
    };
    stream::unfold((reader, end), move |(reader, end)| async move {
        let item = tokio::select! {
            () = end.cancelled() => return None,
            item = reader.mailbox.take(reader.number) => item?,
        };
        Some((Ok(item), (reader, end)))
    })
    .boxed()
}

/// A reader of a mailbox, until it is dropped.
struct MailboxReader<T> {
    mailbox: Arc<Mailbox<T>>,
    number: u64,
}

impl<T> Drop for MailboxReader<T> {
    fn drop(&mut self) {
        self.mailbox.leave(self.number);
    }
}
