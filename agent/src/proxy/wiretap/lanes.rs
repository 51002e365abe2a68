//! The data path's side: the lanes of one caller's connection, and the copies under way.

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use crate::proxy::context::ConnContext;
use crate::proxy::wiretap::copy::{self, CopyReader, CopyWriter};
use crate::proxy::wiretap::http2;
use crate::proxy::wiretap::lane::LaneTask;
use crate::proxy::wiretap::slots::LaneSlot;
use crate::proxy::wiretap::speech::Speech;
use crate::telemetry::metrics::CopyEnd;
use crate::upstream::workstation;
use traffic_core::routing::Intercept;
use traffic_proto::clock::now_unix;

/// Copies that wait in one lane; further ones are dropped.
const MAX_WAITING: usize = 64;

/// The lanes of one caller's connection.
#[derive(Debug, Default)]
pub(crate) struct Lanes(Vec<Lane>);

#[derive(Debug)]
struct Lane {
    wiretap: Arc<Intercept>,
    queue: mpsc::Sender<CopyReader>,
}

/// Copies of one request under way.
#[derive(Debug)]
pub(crate) struct Copies(Vec<CopyWriter>);

impl Lanes {
    /// Begins a copy for each of `wiretaps`; none if no lane takes one.
    pub(crate) fn begin(
        &mut self,
        wiretaps: &[Arc<Intercept>],
        speech: &Speech,
        context: &ConnContext,
    ) -> Option<Copies> {
        let begun = wiretaps.iter();
        let begun = begun.filter_map(|wiretap| self.begin_one(wiretap, speech, context));
        let begun: Vec<_> = begun.collect();
        (!begun.is_empty()).then_some(Copies(begun))
    }

    fn begin_one(
        &mut self,
        wiretap: &Arc<Intercept>,
        speech: &Speech,
        context: &ConnContext,
    ) -> Option<CopyWriter> {
        workstation::hit(wiretap);
        let (writer, mut reader) = copy::pair(wiretap, speech.clone(), &context.port);
        if !reader.holds_head() {
            writer.give_up(CopyEnd::Memory);
            return None;
        }
        if wiretap.stats.copy_pause.is_on(now_unix()) {
            writer.give_up(CopyEnd::Slow);
            return None;
        }
        // A lane that has just ended for want of copies is replaced once.
        for _ in 0..2 {
            let Some(queue) = self.queue(wiretap, speech, context) else {
                writer.give_up(CopyEnd::Lanes);
                return None;
            };
            reader = match queue.try_send(reader) {
                Ok(()) => return Some(writer),
                Err(TrySendError::Full(_reader)) => {
                    // Before the reader goes, which would count the copy as lost. No pause: a burst on
                    // one connection says nothing about the workstation.
                    writer.give_up(CopyEnd::Lanes);
                    return None;
                }
                Err(TrySendError::Closed(reader)) => reader,
            };
        }
        writer.give_up(CopyEnd::Lanes);
        None
    }

    /// Finds or starts the lane of a wiretap.
    fn queue(
        &mut self,
        wiretap: &Arc<Intercept>,
        speech: &Speech,
        context: &ConnContext,
    ) -> Option<&mpsc::Sender<CopyReader>> {
        self.0.retain(|lane| !lane.queue.is_closed());
        let found = self.0.iter().position(|l| l.wiretap.same_target(wiretap));
        let at = match found {
            Some(at) => at,
            None => {
                self.0.push(Lane::start(wiretap, speech, context)?);
                self.0.len() - 1
            }
        };
        self.0.get(at).map(|lane| &lane.queue)
    }
}

impl Lane {
    fn start(wiretap: &Arc<Intercept>, speech: &Speech, context: &ConnContext) -> Option<Self> {
        let slot = LaneSlot::take(&wiretap.stats)?;
        let (queue, waiting) = mpsc::channel(MAX_WAITING);
        let task = LaneTask::new(Arc::clone(wiretap), context.clone(), waiting, slot);
        match speech {
            Speech::Http2(_) => context.port.drain.spawn(http2::run(task)),
            Speech::Http1 { .. } | Speech::Unread => context.port.drain.spawn(task.run()),
        }
        Some(Self {
            wiretap: Arc::clone(wiretap),
            queue,
        })
    }
}

impl Copies {
    /// Appends bytes to every copy; false once none of them goes on.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> bool {
        if !bytes.is_empty() {
            let piece = Bytes::copy_from_slice(bytes);
            self.0.retain_mut(|copy| copy.push(piece.clone()));
        }
        !self.0.is_empty()
    }

    /// Completes every copy of an HTTP/2 request by its trailers.
    pub(crate) fn finish_with(self, trailers: &HeaderMap) {
        for copy in self.0 {
            copy.put_trailers(trailers.clone());
            copy.finish();
        }
    }

    /// Completes every copy. Dropping them instead breaks them off.
    pub(crate) fn finish(self) {
        self.0.into_iter().for_each(CopyWriter::finish);
    }
}
