//! One direction of a stream that does not go to the app: body bytes that wait, and what comes
//! behind them.

use std::collections::VecDeque;

use crate::http2::frames::{END_STREAM, FRAME_SIZE, FrameHeader, kind};
use crate::http2::hpack::FieldList;

/// The part of a message that has come and has not gone on.
#[derive(Debug, Default)]
pub(super) struct Half {
    queue: VecDeque<u8>,
    trailers: Option<Box<FieldList>>,
    ended: bool,
    done: bool,
}

impl Half {
    /// Body bytes that wait.
    pub(super) fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Returns true if the sender has said all.
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Returns true if all of it has gone on.
    pub(super) fn is_done(&self) -> bool {
        self.done
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        let spare = self.queue.capacity() - self.queue.len();
        if spare < bytes.len() {
            // A quarter more, not twice as much: many may wait for a long time.
            let more = bytes.len().max(self.queue.len() / 4);
            self.queue.reserve_exact(more);
        }
        self.queue.extend(bytes);
    }

    /// The sender has said all.
    pub(super) fn end(&mut self) {
        self.ended = true;
    }

    /// The sender has said all, and ends with trailers.
    pub(super) fn end_with(&mut self, trailers: FieldList) {
        self.ended = true;
        self.trailers = Some(Box::new(trailers));
    }

    /// The message ended with its head.
    pub(super) fn end_at_once(&mut self) {
        self.ended = true;
        self.done = true;
    }

    /// The trailers, once everything before them has gone on.
    pub(super) fn take_trailers(&mut self) -> Option<Box<FieldList>> {
        if !self.queue.is_empty() {
            return None;
        }
        let trailers = self.trailers.take()?;
        self.done = true;
        Some(trailers)
    }

    /// Sends what waits, at most `room` bytes; says how many went.
    pub(super) fn send(&mut self, stream: u32, room: usize, out: &mut Vec<u8>) -> usize {
        let mut sent = 0;
        while !self.queue.is_empty() && sent < room {
            let n = self.queue.len().min(room - sent).min(FRAME_SIZE);
            let last = n == self.queue.len() && self.ended && self.trailers.is_none();
            write_head(stream, n, last, out);
            let (front, back) = self.queue.as_slices();
            let front = front.get(..n).unwrap_or(front);
            out.extend_from_slice(front);
            out.extend_from_slice(back.get(..n - front.len()).unwrap_or_default());
            self.queue.drain(..n);
            self.done |= last;
            sent += n;
        }
        if self.queue.is_empty() {
            self.queue = VecDeque::new();
            if self.ended && !self.done && self.trailers.is_none() {
                write_head(stream, 0, true, out);
                self.done = true;
            }
        }
        sent
    }

    /// Sends `bytes` at once where nothing waits and all of them fit into `room`; `false` where
    /// they have to wait.
    pub(super) fn send_now(
        &mut self,
        bytes: &[u8],
        stream: u32,
        room: usize,
        out: &mut Vec<u8>,
    ) -> bool {
        if !self.queue.is_empty() || bytes.len() > room.min(FRAME_SIZE) || bytes.is_empty() {
            return false;
        }
        let last = self.ended && self.trailers.is_none();
        write_head(stream, bytes.len(), last, out);
        out.extend_from_slice(bytes);
        self.done |= last;
        true
    }

    /// Takes everything that waits.
    pub(super) fn take(&mut self) -> VecDeque<u8> {
        std::mem::take(&mut self.queue)
    }
}

fn write_head(stream: u32, length: usize, last: bool, out: &mut Vec<u8>) {
    let head = FrameHeader {
        // At most [`FRAME_SIZE`].
        length: length as u32,
        kind: kind::DATA,
        flags: if last { END_STREAM } else { 0 },
        stream,
    };
    out.extend_from_slice(&head.encode());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(out: &[u8]) -> Vec<(usize, bool)> {
        let (mut rest, mut seen) = (out, Vec::new());
        while let Some(head) = FrameHeader::peek(rest) {
            seen.push((head.length as usize, head.ends_stream()));
            rest = &rest[head.size()..];
        }
        seen
    }

    #[test]
    fn what_waits_goes_in_frames_as_there_is_room_and_the_last_one_ends_the_stream() {
        let (mut half, mut out) = (Half::default(), Vec::new());
        half.push(&[7; 40_000]);
        assert_eq!(half.send(3, 20_000, &mut out), 20_000);
        half.end();
        assert_eq!(half.send(3, 0, &mut out), 0);
        assert!(!half.is_done());
        assert_eq!(half.send(3, 90_000, &mut out), 20_000);
        assert!(half.is_done());
        assert_eq!(
            frames(&out),
            [
                (16_384, false),
                (3_616, false),
                (16_384, false),
                (3_616, true)
            ]
        );
    }

    #[test]
    fn an_end_without_bytes_is_said_once_and_trailers_wait_for_the_body() {
        let (mut half, mut out) = (Half::default(), Vec::new());
        half.end();
        half.send(3, 0, &mut out);
        half.send(3, 0, &mut out);
        assert_eq!(frames(&out), [(0, true)]);
        let (mut half, mut out) = (Half::default(), Vec::new());
        half.push(b"body");
        half.end_with(FieldList::default());
        assert!(half.take_trailers().is_none());
        half.send(3, 10, &mut out);
        assert!(half.take_trailers().is_some() && half.is_done());
        assert_eq!(frames(&out), [(4, false)]);
    }

    #[test]
    fn bytes_go_at_once_where_nothing_waits() {
        let (mut half, mut out) = (Half::default(), Vec::new());
        assert!(half.send_now(b"ab", 3, 2, &mut out) && !half.send_now(b"abc", 3, 2, &mut out));
        half.push(b"x");
        assert!(!half.send_now(b"ab", 3, 9, &mut out));
        half.send(3, 9, &mut out);
        half.end();
        assert!(half.send_now(b"cd", 3, 9, &mut out) && half.is_done());
        assert_eq!(frames(&out), [(2, false), (1, false), (2, true)]);
    }
}
