//! Bodies of requests to the webhook, bounded in size, time and memory: anybody in the cluster may
//! send one.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::StatusCode;
use hyper::body::Body;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::limits::{LimitCounters, MAX_WEBHOOK_BYTES, ManagerLimit};

/// Longest body. A pod may be as large as etcd allows, and comes twice in a review at most.
const MAX_BODY: usize = 8 << 20;
/// Part of a body that needs no place in [`MAX_WEBHOOK_BYTES`]: nearly all pods are smaller, so
/// large bodies hold up none of them.
const SMALL_BODY: usize = 64 << 10;
/// Time for a whole body: the API server sends one at once, and waits 30 s for an answer at most.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Memory for bodies.
pub(super) struct Bodies {
    places: Arc<Semaphore>,
    limits: Arc<LimitCounters>,
}

/// A body, and the memory that it takes until it is dropped.
pub(super) struct Held {
    pub(super) bytes: Vec<u8>,
    _places: Option<OwnedSemaphorePermit>,
}

/// The answer to a request whose body is not read.
pub(super) type Refused = (StatusCode, String);

impl Bodies {
    pub(super) fn new(limits: Arc<LimitCounters>) -> Self {
        Self {
            places: Arc::new(Semaphore::new(MAX_WEBHOOK_BYTES)),
            limits,
        }
    }

    /// Reads a body.
    pub(super) async fn read<B>(&self, body: B) -> Result<Held, Refused>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: std::fmt::Display,
    {
        match timeout(BODY_TIMEOUT, self.collect(body)).await {
            Ok(held) => held,
            Err(_) => Err((
                StatusCode::REQUEST_TIMEOUT,
                format!("the body is not here after {BODY_TIMEOUT:?}"),
            )),
        }
    }

    async fn collect<B>(&self, mut body: B) -> Result<Held, Refused>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: std::fmt::Display,
    {
        let (mut bytes, mut places) = (Vec::new(), None);
        while let Some(frame) = body.frame().await {
            let frame = frame
                .map_err(|error| (StatusCode::BAD_REQUEST, format!("the body ends: {error}")))?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            let length = bytes.len() + data.len();
            if length > MAX_BODY {
                let said = format!("the body is longer than {MAX_BODY} bytes");
                return Err((StatusCode::PAYLOAD_TOO_LARGE, said));
            }
            if length > SMALL_BODY {
                self.take(&mut places, length - SMALL_BODY).await;
            }
            bytes.extend_from_slice(&data);
        }
        Ok(Held {
            bytes,
            _places: places,
        })
    }

    /// Makes the places of a body as many as `wanted`, once they are free.
    async fn take(&self, places: &mut Option<OwnedSemaphorePermit>, wanted: usize) {
        let held = places.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let more = u32::try_from(wanted.saturating_sub(held)).unwrap_or(u32::MAX);
        if self.places.available_permits() < more as usize {
            self.limits.reached(ManagerLimit::WebhookBytes, "webhook");
        }
        // The semaphore is never closed.
        let Ok(taken) = self.places.clone().acquire_many_owned(more).await else {
            return;
        };
        match places {
            Some(places) => places.merge(taken),
            None => *places = Some(taken),
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{Full, StreamBody};
    use hyper::body::Frame;
    use tokio::sync::mpsc;
    use tokio_stream::wrappers::ReceiverStream;

    use super::*;

    type Chunk = Result<Frame<Bytes>, String>;

    /// A body that a test feeds.
    fn fed() -> (mpsc::Sender<Chunk>, StreamBody<ReceiverStream<Chunk>>) {
        let (feed, frames) = mpsc::channel(16);
        (feed, StreamBody::new(ReceiverStream::new(frames)))
    }

    fn of(length: usize) -> Full<Bytes> {
        Full::new(Bytes::from(vec![b'x'; length]))
    }

    #[tokio::test(start_paused = true)]
    async fn bodies_are_read_whole_and_longer_ones_are_refused() {
        let bodies = Bodies::new(Arc::default());
        for length in [0, 1, SMALL_BODY, SMALL_BODY + 1, MAX_BODY] {
            let held = bodies.read(of(length)).await.ok().unwrap();
            assert_eq!(held.bytes.len(), length);
        }
        let (status, said) = bodies.read(of(MAX_BODY + 1)).await.err().unwrap();
        assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE, "{said}");
        assert_eq!(bodies.places.available_permits(), MAX_WEBHOOK_BYTES);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_drips_or_breaks_off_ends_in_time_and_gives_its_memory_back() {
        let bodies = Bodies::new(Arc::default());
        let (feed, body) = fed();
        let large = Bytes::from(vec![b'x'; SMALL_BODY * 4]);
        feed.send(Ok(Frame::data(large.clone()))).await.unwrap();
        let (status, said) = bodies.read(body).await.err().unwrap();
        assert_eq!(status, StatusCode::REQUEST_TIMEOUT, "{said}");
        let (feed, body) = fed();
        feed.send(Ok(Frame::data(large))).await.unwrap();
        feed.send(Err("reset".to_owned())).await.unwrap();
        let (status, said) = bodies.read(body).await.err().unwrap();
        assert_eq!(status, StatusCode::BAD_REQUEST, "{said}");
        assert_eq!(bodies.places.available_permits(), MAX_WEBHOOK_BYTES);
    }

    #[tokio::test(start_paused = true)]
    async fn small_bodies_are_read_while_large_ones_take_all_memory() {
        let limits = Arc::<LimitCounters>::default();
        let bodies = Bodies::new(limits.clone());
        let mut held = Vec::new();
        for _ in 0..MAX_WEBHOOK_BYTES / MAX_BODY {
            held.push(bodies.read(of(MAX_BODY)).await.ok().unwrap());
        }
        let reached = || limits.counts().map(|(_, count)| count).sum::<u64>();
        assert_eq!(reached(), 0);
        assert!(bodies.read(of(SMALL_BODY)).await.is_ok());
        let (status, _) = bodies.read(of(MAX_BODY)).await.err().unwrap();
        assert_eq!((status, reached()), (StatusCode::REQUEST_TIMEOUT, 1));
        held.clear();
        assert!(bodies.read(of(MAX_BODY)).await.is_ok());
    }
}
