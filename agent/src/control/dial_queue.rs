//! The queue of dial requests for one workstation. There is one for each developer and it is empty
//! nearly always; a channel of the runtime keeps 800 bytes for that, most of them room for messages
//! and padding between threads that would both be busy.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use futures_util::Stream;
use tokio::sync::Notify;
use traffic_proto::manager::DialRequest;
use traffic_proto::sync::lock;

/// Dial requests queued for one workstation.
pub(crate) const MAX_QUEUED_DIALS: usize = 256;

/// The end that asks.
pub(crate) struct DialSender(Arc<QueueState>);

/// The workstation's end; it ends when nobody can ask any more.
pub(crate) struct DialReceiver(Arc<QueueState>);

struct QueueState {
    state: Mutex<State>,
    /// Signals to senders that there is room again, or nobody who reads.
    changed: Notify,
}

struct State {
    requests: VecDeque<DialRequest>,
    waiting: Option<Waker>,
    senders: usize,
    is_read: bool,
}

/// Creates a queue.
pub(crate) fn dial_queue() -> (DialSender, DialReceiver) {
    let shared = Arc::new(QueueState {
        state: Mutex::new(State {
            requests: VecDeque::new(),
            waiting: None,
            senders: 1,
            is_read: true,
        }),
        changed: Notify::new(),
    });
    (DialSender(Arc::clone(&shared)), DialReceiver(shared))
}

impl QueueState {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl DialSender {
    /// Queues a request, waits for room if there is none. Returns false if nobody reads any more.
    pub(crate) async fn send(&self, request: DialRequest) -> bool {
        loop {
            // Before the look, so that no change between it and the wait is missed.
            let changed = self.0.changed.notified();
            {
                let mut state = self.0.state();
                if !state.is_read {
                    return false;
                }
                if state.requests.len() < MAX_QUEUED_DIALS {
                    state.requests.push_back(request);
                    state.waiting.take().into_iter().for_each(Waker::wake);
                    return true;
                }
            }
            changed.await;
        }
    }

    /// Resolves when nobody reads any more.
    pub(crate) async fn closed(&self) {
        loop {
            let changed = self.0.changed.notified();
            if !self.0.state().is_read {
                return;
            }
            changed.await;
        }
    }
}

impl Clone for DialSender {
    fn clone(&self) -> Self {
        self.0.state().senders += 1;
        Self(Arc::clone(&self.0))
    }
}

impl Drop for DialSender {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.senders -= 1;
        if state.senders == 0 {
            state.waiting.take().into_iter().for_each(Waker::wake);
        }
    }
}

impl Stream for DialReceiver {
    type Item = DialRequest;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<DialRequest>> {
        let mut state = self.0.state();
        if let Some(request) = state.requests.pop_front() {
            if state.requests.is_empty() {
                state.requests = VecDeque::new();
            }
            self.0.changed.notify_waiters();
            return Poll::Ready(Some(request));
        }
        if state.senders == 0 {
            return Poll::Ready(None);
        }
        state.waiting = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for DialReceiver {
    fn drop(&mut self) {
        self.0.state().is_read = false;
        self.0.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt as _, StreamExt as _};

    use super::*;

    fn request(number: i64) -> DialRequest {
        DialRequest {
            dial_timeout: number,
            ..DialRequest::default()
        }
    }

    #[tokio::test]
    async fn requests_arrive_in_order_and_the_queue_ends_with_its_last_sender() {
        let (sender, mut receiver) = dial_queue();
        let reading = tokio::spawn(async move {
            let mut read = Vec::new();
            while let Some(request) = receiver.next().await {
                read.push(request.dial_timeout);
            }
            read
        });
        let other = sender.clone();
        for n in 0..1000 {
            assert!(sender.send(request(n)).await);
        }
        drop(sender);
        assert!(other.send(request(1000)).await);
        drop(other);
        assert_eq!(reading.await.unwrap(), (0..=1000).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_full_queue_makes_its_sender_wait_for_room() {
        let (sender, mut receiver) = dial_queue();
        for n in 0..MAX_QUEUED_DIALS {
            assert!(sender.send(request(n as i64)).await);
        }
        let mut late = std::pin::pin!(sender.send(request(-1)));
        assert!(late.as_mut().now_or_never().is_none());
        assert_eq!(receiver.next().await.unwrap().dial_timeout, 0);
        assert!(late.await);
    }

    #[tokio::test]
    async fn senders_learn_that_nobody_reads() {
        let (sender, receiver) = dial_queue();
        let mut closed = std::pin::pin!(sender.closed());
        assert!(closed.as_mut().now_or_never().is_none());
        drop(receiver);
        closed.await;
        assert!(!sender.send(request(0)).await);
        assert!(sender.closed().now_or_never().is_some());
    }

    #[test]
    fn an_empty_queue_is_small() {
        assert!(
            size_of::<QueueState>() <= 160,
            "{}",
            size_of::<QueueState>()
        );
    }
}
