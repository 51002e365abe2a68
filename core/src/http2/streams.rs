//! The streams of a connection that are open between the caller and the app. Closed ones leave a
//! mark that is swept away with the next ones, so every operation costs a binary search over the
//! streams that are open at a time.

use crate::http2::frames::{FrameHeader, kind};

/// One half of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The caller's: the request.
    Caller = 1,
    /// The app's: the answer.
    App = 2,
}

const BOTH: u8 = Side::Caller as u8 | Side::App as u8;

/// Streams open at a time that are known; beyond that nothing is known of any.
pub const MAX_OPEN: usize = 16 * 1024;

/// A stream that is open, or was until just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamSlot {
    /// The caller's id of it.
    pub id: u32,
    /// Microseconds of its connection's life when it began.
    pub began: u32,
    ended: u8,
    /// Its request was looked at, so that its answer is too.
    pub watched: bool,
    /// Its answer's final head has come.
    pub answered: bool,
    /// Its answer has to say why it went where it went.
    pub explains: bool,
}

impl StreamSlot {
    /// A stream that begins.
    #[must_use]
    pub fn new(id: u32, began: u32) -> Self {
        Self {
            id,
            began,
            ended: 0,
            watched: false,
            answered: false,
            explains: false,
        }
    }
}

/// The streams that are open.
#[derive(Debug, Default)]
pub struct OpenStreams {
    /// In the order of their ids, which is the order in which a client opens them.
    slots: Vec<StreamSlot>,
    closed: usize,
    lost: bool,
}

impl OpenStreams {
    /// Returns the number of open streams; `None` when there were too many to know.
    #[must_use]
    pub fn open(&self) -> Option<usize> {
        (!self.lost).then_some(self.slots.len() - self.closed)
    }

    /// Gives up knowing what is open; for streams of which nothing is known here, such as pushed
    /// ones.
    pub fn lose_track(&mut self) {
        *self = Self {
            lost: true,
            ..Self::default()
        };
    }

    /// Takes a stream in.
    pub fn insert(&mut self, slot: StreamSlot) {
        if self.lost {
            return;
        }
        if self.slots.len() - self.closed >= MAX_OPEN {
            self.lose_track();
            return;
        }
        match self.slots.last() {
            Some(last) if last.id >= slot.id => {
                let at = self.slots.partition_point(|s| s.id < slot.id);
                self.slots.insert(at, slot);
            }
            _ => self.slots.push(slot),
        }
    }

    /// A stream that is open.
    pub fn get_mut(&mut self, id: u32) -> Option<&mut StreamSlot> {
        let at = self.slots.binary_search_by_key(&id, |s| s.id).ok()?;
        self.slots.get_mut(at).filter(|slot| slot.ended != BOTH)
    }

    /// The streams that are open.
    pub fn iter(&self) -> impl Iterator<Item = &StreamSlot> {
        self.slots.iter().filter(|slot| slot.ended != BOTH)
    }

    /// Takes note of a frame on stream `id`; answers the stream if that was its end.
    pub fn note(&mut self, id: u32, head: FrameHeader, side: Side) -> Option<StreamSlot> {
        if head.kind == kind::RST_STREAM {
            return self.end(id, BOTH);
        }
        if head.ends_stream() {
            return self.end(id, side as u8);
        }
        None
    }

    /// The caller has said all on a stream.
    pub fn end_request(&mut self, id: u32) -> Option<StreamSlot> {
        self.end(id, Side::Caller as u8)
    }

    /// Takes a stream out.
    pub fn remove(&mut self, id: u32) -> Option<StreamSlot> {
        self.end(id, BOTH)
    }

    fn end(&mut self, id: u32, sides: u8) -> Option<StreamSlot> {
        let slot = self.get_mut(id)?;
        slot.ended |= sides;
        if slot.ended != BOTH {
            return None;
        }
        let slot = *slot;
        self.closed += 1;
        self.sweep();
        Some(slot)
    }

    fn sweep(&mut self) {
        if self.closed == self.slots.len() {
            self.slots.clear();
            self.closed = 0;
            // An idle connection keeps room for a usual number of streams, not for its busiest
            // moment.
            self.slots.shrink_to(32);
        } else if self.closed >= 32 && self.closed * 2 > self.slots.len() {
            self.slots.retain(|slot| slot.ended != BOTH);
            self.closed = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http2::frames::{END_HEADERS, END_STREAM};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn head(kind: u8, flags: u8, stream: u32) -> FrameHeader {
        FrameHeader {
            length: 0,
            kind,
            flags,
            stream,
        }
    }

    proptest! {
        #[test]
        fn streams_are_counted_like_a_map(steps in proptest::collection::vec((0u8..6, 0u32..40), 0..400)) {
            let mut streams = OpenStreams::default();
            let mut map = BTreeMap::<u32, u8>::new();
            let mut seen = std::collections::BTreeSet::new();
            for (what, n) in steps {
                let id = 2 * n + 1;
                let (head, side, bits) = match what {
                    0 => (head(kind::HEADERS, END_HEADERS, id), Side::Caller, 0),
                    1 => (head(kind::DATA, END_STREAM, id), Side::Caller, 1),
                    2 => (head(kind::HEADERS, END_HEADERS | END_STREAM, id), Side::App, 2),
                    3 => (head(kind::RST_STREAM, 0, id), Side::Caller, 3),
                    4 => (head(kind::RST_STREAM, 0, id), Side::App, 3),
                    _ => (head(kind::PING, 0, id), Side::App, 0),
                };
                if what == 0 && seen.insert(id) {
                    map.insert(id, 0);
                    streams.insert(StreamSlot::new(id, 7));
                }
                let ends = map.get(&id).is_some_and(|ended| ended | bits == 3);
                if let Some(ended) = map.get_mut(&id) {
                    *ended |= bits;
                    if ends { map.remove(&id); }
                }
                prop_assert_eq!(streams.note(id, head, side).is_some(), ends);
                prop_assert_eq!(streams.open(), Some(map.len()));
                prop_assert_eq!(streams.get_mut(id).is_some(), map.contains_key(&id));
                let ids: Vec<_> = streams.iter().map(|slot| slot.id).collect();
                prop_assert_eq!(ids, map.keys().copied().collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn beyond_a_number_nothing_is_known() {
        let mut streams = OpenStreams::default();
        for n in 0..=MAX_OPEN as u32 {
            streams.insert(StreamSlot::new(2 * n + 1, 0));
        }
        assert_eq!(streams.open(), None);
        assert_eq!(streams.slots.capacity(), 0);
    }
}
