//! Frames of the app for which the caller has no room at the moment, because a workstation used it:
//! DATA, and what must not overtake it.

use std::collections::{BTreeMap, VecDeque};

use crate::http2::frames::{END_STREAM, FrameHeader, HEAD, PADDED, kind};
use crate::http2::hpack::FieldList;

/// A frame, or a header section, that is held.
#[derive(Debug)]
enum Item {
    Frame(u32, Vec<u8>),
    /// Of this stream; and whether it ends the stream.
    Section(u32, FieldList, bool),
}

impl Item {
    fn stream(&self) -> u32 {
        match self {
            Self::Frame(stream, _) | Self::Section(stream, ..) => *stream,
        }
    }

    /// The header of a DATA frame.
    fn data(&self) -> Option<FrameHeader> {
        match self {
            Self::Frame(_, bytes) => FrameHeader::peek(bytes).filter(|h| h.kind == kind::DATA),
            Self::Section(..) => None,
        }
    }

    fn size(&self) -> usize {
        match self {
            Self::Frame(_, bytes) => bytes.len(),
            Self::Section(_, fields, _) => fields.size(),
        }
    }
}

/// A header section that is held no longer.
#[derive(Debug)]
pub(super) struct HeldSection {
    pub(super) stream: u32,
    pub(super) fields: FieldList,
    pub(super) ends: bool,
}

/// Result of sending held items.
#[derive(Debug)]
pub(super) enum Sent {
    /// A frame, or a part of it, that takes so much of the window.
    Frame(usize),
    /// A section, which is yet to be written.
    Section(HeldSection),
}

/// All that is held, in the order in which it came.
#[derive(Debug, Default)]
pub(super) struct HeldFrames {
    items: VecDeque<Item>,
    /// Number of items of each stream.
    streams: BTreeMap<u32, usize>,
    bytes: usize,
}

impl HeldFrames {
    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Bytes that are held.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns true if something of this stream is held.
    pub(super) fn has(&self, stream: u32) -> bool {
        self.streams.contains_key(&stream)
    }

    /// Returns true if the end of this stream is held.
    pub(super) fn has_end(&self, stream: u32) -> bool {
        let ends = |item: &Item| match item {
            Item::Section(_, _, ends) => *ends,
            Item::Frame(..) => item.data().is_some_and(FrameHeader::ends_stream),
        };
        self.has(stream) && self.items.iter().any(|i| i.stream() == stream && ends(i))
    }

    fn hold(&mut self, item: Item) {
        *self.streams.entry(item.stream()).or_default() += 1;
        self.bytes += item.size();
        self.items.push_back(item);
    }

    /// Holds a frame of `stream`, or its beginning.
    pub(super) fn push(&mut self, stream: u32, bytes: &[u8]) {
        self.hold(Item::Frame(stream, bytes.to_vec()));
    }

    /// Holds a header section of `stream`.
    pub(super) fn push_section(&mut self, stream: u32, fields: FieldList, ends: bool) {
        self.hold(Item::Section(stream, fields, ends));
    }

    /// Adds to the frame that was held last.
    pub(super) fn extend(&mut self, bytes: &[u8]) {
        if let Some(Item::Frame(_, last)) = self.items.back_mut() {
            last.extend_from_slice(bytes);
            self.bytes += bytes.len();
        }
    }

    /// Drops what is held of a stream, and says how much of the window that would have taken.
    pub(super) fn drop_stream(&mut self, stream: u32) -> usize {
        if self.streams.remove(&stream).is_none() {
            return 0;
        }
        let (mut dropped, bytes) = (0, &mut self.bytes);
        self.items.retain(|item| {
            if item.stream() != stream {
                return true;
            }
            *bytes -= item.size();
            dropped += item.data().map_or(0, |head| head.length as usize);
            false
        });
        dropped
    }

    /// Takes the first item, or a part of it, where `room` allows.
    pub(super) fn send(&mut self, room: usize, out: &mut Vec<u8>) -> Option<Sent> {
        let data = self.items.front()?.data();
        let length = data.map_or(0, |head| head.length as usize);
        if let Some(head) = data {
            // It may not be all there yet.
            if self.items.front()?.size() < head.size() {
                return None;
            }
            if length > room {
                return self.send_part(head, room, out);
            }
        }
        let item = self.items.pop_front()?;
        self.bytes -= item.size();
        if let Some(count) = self.streams.get_mut(&item.stream()) {
            *count -= 1;
            if *count == 0 {
                self.streams.remove(&item.stream());
            }
        }
        Some(match item {
            Item::Frame(_, bytes) => {
                out.extend_from_slice(&bytes);
                Sent::Frame(length)
            }
            Item::Section(stream, fields, ends) => Sent::Section(HeldSection {
                stream,
                fields,
                ends,
            }),
        })
    }

    /// Sends so many bytes of the first frame, which is DATA without padding.
    fn send_part(&mut self, head: FrameHeader, room: usize, out: &mut Vec<u8>) -> Option<Sent> {
        let Item::Frame(_, frame) = self.items.front_mut()? else {
            return None;
        };
        if room == 0 || head.flags & PADDED != 0 {
            return None;
        }
        let part = FrameHeader {
            // Less than the frame's length.
            length: room as u32,
            flags: head.flags & !END_STREAM,
            ..head
        };
        let rest = FrameHeader {
            length: head.length - part.length,
            ..head
        };
        out.extend_from_slice(&part.encode());
        out.extend(frame.drain(HEAD..HEAD + room));
        if let Some(place) = frame.first_chunk_mut() {
            *place = rest.encode();
        }
        self.bytes -= room;
        Some(Sent::Frame(room))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let head = FrameHeader {
            length: payload.len() as u32,
            kind,
            flags,
            stream,
        };
        [&head.encode()[..], payload].concat()
    }

    #[test]
    fn frames_go_in_order_and_data_in_parts_where_there_is_little_room() {
        let (mut held, mut out) = (HeldFrames::default(), Vec::new());
        held.push(1, &frame(kind::DATA, END_STREAM, 1, b"abcdef")[..12]);
        let mut sent = |held: &mut HeldFrames, room| match held.send(room, &mut out) {
            None => "-".to_owned(),
            Some(Sent::Frame(n)) => n.to_string(),
            Some(Sent::Section(section)) => format!("section {}", section.stream),
        };
        assert_eq!(sent(&mut held, 9), "-");
        held.extend(b"def");
        held.push(3, &frame(kind::DATA, 0, 3, b"xyz"));
        held.push_section(3, FieldList::default(), true);
        held.push(3, &frame(kind::RST_STREAM, 0, 3, b"code"));
        assert!(held.has(1) && held.has(3) && !held.has(5));
        assert!(held.has_end(1) && held.has_end(3) && !held.has_end(5));
        let all = [0, 2, 9, 9, 0, 0, 9].map(|room| sent(&mut held, room));
        assert_eq!(all, ["-", "2", "4", "3", "section 3", "0", "-"]);
        assert!(held.is_empty() && held.bytes() == 0 && !held.has(3));
        let expected = [
            frame(kind::DATA, 0, 1, b"ab"),
            frame(kind::DATA, END_STREAM, 1, b"cdef"),
            frame(kind::DATA, 0, 3, b"xyz"),
            frame(kind::RST_STREAM, 0, 3, b"code"),
        ];
        assert_eq!(out, expected.concat());
    }

    #[test]
    fn a_stream_that_is_reset_leaves_the_others() {
        let (mut held, mut out) = (HeldFrames::default(), Vec::new());
        held.push(1, &frame(kind::DATA, 0, 1, b"abc"));
        held.push(3, &frame(kind::DATA, 0, 3, b"xyz"));
        held.push_section(1, FieldList::default(), false);
        assert_eq!((held.drop_stream(1), held.drop_stream(1)), (3, 0));
        assert!(matches!(held.send(9, &mut out), Some(Sent::Frame(3))));
        assert!(held.is_empty() && held.bytes() == 0);
    }
}
