//! HTTP/2 frame scanner: follows the 9-byte frame headers (RFC 9113 section 4.1) without parsing
//! payloads, to know frame boundaries, places where a frame of ours may be inserted, and open
//! streams. Pure, and no input makes it fail; bytes that are not HTTP/2 only yield meaningless
//! results.

/// Client connection preface (RFC 9113 section 3.4).
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Length of a frame header.
pub const HEAD: usize = 9;

/// The largest stream id, with which a graceful GOAWAY begins (RFC 9113 section 6.8).
pub const MAX_STREAM: u32 = 0x7fff_ffff;

/// Frame types (RFC 9113 section 6).
pub mod kind {
    /// Body bytes.
    pub const DATA: u8 = 0;
    /// A header section, or its beginning.
    pub const HEADERS: u8 = 1;
    /// A deprecated priority hint.
    pub const PRIORITY: u8 = 2;
    /// The end of a stream, with a reason.
    pub const RST_STREAM: u8 = 3;
    /// Parameters of the connection.
    pub const SETTINGS: u8 = 4;
    /// A header section of a stream the server opens.
    pub const PUSH_PROMISE: u8 = 5;
    /// A liveness check.
    pub const PING: u8 = 6;
    /// Announces that no new streams are accepted.
    pub const GOAWAY: u8 = 7;
    /// Flow-control credit.
    pub const WINDOW_UPDATE: u8 = 8;
    /// Continuation of a header section.
    pub const CONTINUATION: u8 = 9;
}

/// On DATA and HEADERS: the sender's last frame of the stream.
pub const END_STREAM: u8 = 0x1;
/// On SETTINGS and PING: an acknowledgement.
pub const ACK: u8 = 0x1;
/// On HEADERS, PUSH_PROMISE and CONTINUATION: the header section is complete.
pub const END_HEADERS: u8 = 0x4;

/// A frame header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Length of the payload; at most 2^24 - 1.
    pub length: u32,
    /// Frame type: a constant of [`kind`], or an unknown one.
    pub kind: u8,
    /// Flags; their meaning depends on the type.
    pub flags: u8,
    /// Stream id without the reserved bit; 0 is the connection.
    pub stream: u32,
}

impl FrameHeader {
    /// Parses a frame header.
    #[must_use]
    pub fn parse(bytes: [u8; HEAD]) -> Self {
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = bytes;
        Self {
            length: u32::from_be_bytes([0, l0, l1, l2]),
            kind,
            flags,
            // The top bit is reserved and has to be ignored (RFC 9113 section 4.1).
            stream: u32::from_be_bytes([s0, s1, s2, s3]) & MAX_STREAM,
        }
    }

    /// Encodes the frame header.
    #[must_use]
    pub fn encode(self) -> [u8; HEAD] {
        let [_, l0, l1, l2] = self.length.to_be_bytes();
        let [s0, s1, s2, s3] = self.stream.to_be_bytes();
        [l0, l1, l2, self.kind, self.flags, s0, s1, s2, s3]
    }

    /// Returns true if this is the sender's last frame on the stream, except for CONTINUATION.
    #[must_use]
    pub fn ends_stream(self) -> bool {
        self.flags & END_STREAM != 0 && matches!(self.kind, kind::DATA | kind::HEADERS)
    }

    /// Returns true if CONTINUATION must follow immediately.
    #[must_use]
    pub fn leaves_section_open(self) -> bool {
        self.flags & END_HEADERS == 0
            && matches!(
                self.kind,
                kind::HEADERS | kind::PUSH_PROMISE | kind::CONTINUATION
            )
    }
}

/// Encodes a GOAWAY without debug data (RFC 9113 section 6.8).
#[must_use]
pub fn goaway(last_stream: u32, reason: u32) -> [u8; 17] {
    let mut frame = [0; 17];
    let head = FrameHeader {
        length: 8,
        kind: kind::GOAWAY,
        flags: 0,
        stream: 0,
    }
    .encode();
    put(&mut frame, 0, &head);
    put(&mut frame, 9, &last_stream.to_be_bytes());
    put(&mut frame, 13, &reason.to_be_bytes());
    frame
}

/// Encodes a PING (RFC 9113 section 6.7).
#[must_use]
pub fn ping(payload: [u8; 8], flags: u8) -> [u8; 17] {
    let mut frame = [0; 17];
    put(
        &mut frame,
        0,
        &FrameHeader {
            length: 8,
            kind: kind::PING,
            flags,
            stream: 0,
        }
        .encode(),
    );
    put(&mut frame, 9, &payload);
    frame
}

/// Encodes a WINDOW_UPDATE (RFC 9113 section 6.9).
#[must_use]
pub fn window_update(stream: u32, credit: u32) -> [u8; 13] {
    let mut frame = [0; 13];
    put(
        &mut frame,
        0,
        &FrameHeader {
            length: 4,
            kind: kind::WINDOW_UPDATE,
            flags: 0,
            stream,
        }
        .encode(),
    );
    put(&mut frame, 9, &credit.to_be_bytes());
    frame
}

fn put(into: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(room) = into.get_mut(at..at + bytes.len()) {
        room.copy_from_slice(bytes);
    }
}

/// Scanner state of one direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameScanner {
    /// Bytes of the preface or of the current payload still to come.
    left: u32,
    /// The first `have` bytes of an incomplete header.
    partial: [u8; HEAD],
    have: u8,
    /// A header section has begun, so CONTINUATION must follow.
    section_open: bool,
    /// A frame header has been seen.
    begun: bool,
}

/// Content at the front of some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Number of bytes that continue a payload or header already begun.
    Rest(usize),
    /// A frame header.
    Frame(FrameHeader),
    /// An incomplete frame header.
    More,
}

impl FrameScanner {
    /// Creates a scanner for a client's bytes, including the preface.
    #[must_use]
    pub fn client() -> Self {
        // The length of the preface fits any integer.
        Self {
            left: PREFACE.len() as u32,
            ..Self::server()
        }
    }

    /// Creates a scanner for a server's bytes.
    #[must_use]
    pub fn server() -> Self {
        Self {
            left: 0,
            partial: [0; HEAD],
            have: 0,
            section_open: false,
            begun: false,
        }
    }

    /// Advances over `bytes` and passes every complete frame header to `seen`.
    pub fn follow(&mut self, mut bytes: &[u8], mut seen: impl FnMut(FrameHeader)) {
        while !bytes.is_empty() {
            let (used, head) = self.step(bytes);
            if let Some(head) = head {
                seen(head);
            }
            bytes = bytes.get(used..).unwrap_or_default();
        }
    }

    /// Returns true if a frame may be inserted here: between two frames, outside a header section,
    /// and after the first frame, which must be the peer's own SETTINGS (RFC 9113 section 3.4).
    #[must_use]
    pub fn at_boundary(&self) -> bool {
        self.begun && self.left == 0 && self.have == 0 && !self.section_open
    }

    /// Returns the number of bytes up to the next such place, if `bytes` reach that far.
    #[must_use]
    pub fn next_boundary(mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        while !self.at_boundary() {
            let rest = bytes.get(at..).filter(|r| !r.is_empty())?;
            at += self.step(rest).0;
        }
        Some(at)
    }

    /// Classifies the front of `bytes`, which are the next to follow.
    #[must_use]
    pub fn peek(&self, bytes: &[u8]) -> Next {
        let begun = if self.left > 0 {
            self.left as usize
        } else {
            // 0 if no header has begun, else the bytes still missing from it.
            (HEAD - usize::from(self.have)) % HEAD
        };
        if begun > 0 {
            return Next::Rest(begun.min(bytes.len()));
        }
        match bytes.first_chunk() {
            Some(head) => Next::Frame(FrameHeader::parse(*head)),
            None => Next::More,
        }
    }

    /// Advances over bytes that belong together, the rest of a payload or of a header; returns
    /// their number and the header they complete.
    pub fn step(&mut self, bytes: &[u8]) -> (usize, Option<FrameHeader>) {
        if self.left > 0 {
            let used = bytes.len().min(self.left as usize);
            // `used` is at most `left`.
            self.left -= used as u32;
            return (used, None);
        }
        if self.have == 0
            && let Some(head) = bytes.first_chunk()
        {
            return (HEAD, Some(self.enter(FrameHeader::parse(*head))));
        }
        let have = usize::from(self.have);
        let used = bytes.len().min(HEAD - have);
        put(
            &mut self.partial,
            have,
            bytes.get(..used).unwrap_or_default(),
        );
        if have + used < HEAD {
            // Less than nine fits a byte.
            self.have = (have + used) as u8;
            return (used, None);
        }
        self.have = 0;
        (used, Some(self.enter(FrameHeader::parse(self.partial))))
    }

    fn enter(&mut self, head: FrameHeader) -> FrameHeader {
        self.left = head.length;
        self.begun = true;
        if matches!(
            head.kind,
            kind::HEADERS | kind::PUSH_PROMISE | kind::CONTINUATION
        ) {
            // Other frame types cannot appear inside a header section (RFC 9113 section 6.10).
            self.section_open = head.leaves_section_open();
        }
        head
    }
}

/// Side whose half of a stream is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The caller's half: the request.
    Caller = 1,
    /// The app's half: the response.
    App = 2,
}

/// Tracks open streams. Closed ones leave a mark that is removed with the next ones, so every
/// operation costs a binary search over the concurrently open streams.
#[derive(Debug, Default)]
pub struct OpenStreams {
    /// Entries in id order, the order in which a client opens them.
    entries: Vec<StreamSlot>,
    closed: usize,
    highest: u32,
    lost: bool,
}

#[derive(Clone, Copy, Debug)]
struct StreamSlot {
    id: u32,
    ended: u8,
}

const BOTH: u8 = Side::Caller as u8 | Side::App as u8;

/// Maximum of concurrently open streams; beyond it tracking stops.
pub const MAX_OPEN: usize = 16 * 1024;

impl OpenStreams {
    /// Highest stream id a client has opened.
    #[must_use]
    pub fn highest(&self) -> u32 {
        self.highest
    }

    /// Returns the number of open streams; `None` if tracking has stopped.
    #[must_use]
    pub fn open(&self) -> Option<usize> {
        (!self.lost).then_some(self.entries.len() - self.closed)
    }

    /// Stops tracking; for streams that are not tracked, such as pushed ones.
    pub fn lose_track(&mut self) {
        *self = Self {
            highest: self.highest,
            lost: true,
            ..Self::default()
        };
    }

    /// Tracks a frame of the client; returns true if it opens a stream.
    pub fn from_caller(&mut self, head: FrameHeader) -> bool {
        // Client stream ids only grow (RFC 9113 section 5.1.1); a lower one is a trailer section.
        let opens = head.kind == kind::HEADERS && head.stream > self.highest;
        if opens {
            self.highest = head.stream;
            self.insert(head.stream);
        }
        self.note(head, Side::Caller);
        opens
    }

    /// Tracks a frame of the server.
    pub fn from_app(&mut self, head: FrameHeader) {
        if head.kind == kind::PUSH_PROMISE {
            self.lose_track();
        }
        self.note(head, Side::App);
    }

    fn note(&mut self, head: FrameHeader, side: Side) {
        if head.ends_stream() {
            self.end(head.stream, side as u8);
        } else if head.kind == kind::RST_STREAM {
            // A reset closes both halves, whichever side sends it.
            self.end(head.stream, BOTH);
        }
    }

    fn insert(&mut self, id: u32) {
        if self.lost {
            return;
        }
        if self.entries.len() - self.closed >= MAX_OPEN {
            self.lose_track();
            return;
        }
        self.entries.push(StreamSlot { id, ended: 0 });
    }

    fn end(&mut self, id: u32, sides: u8) {
        let Ok(at) = self.entries.binary_search_by_key(&id, |e| e.id) else {
            return;
        };
        let Some(entry) = self.entries.get_mut(at) else {
            return;
        };
        let was = entry.ended;
        entry.ended |= sides;
        if was != BOTH && entry.ended == BOTH {
            self.closed += 1;
            self.sweep();
        }
    }

    fn sweep(&mut self) {
        if self.closed == self.entries.len() {
            self.entries.clear();
            self.closed = 0;
            // An idle connection keeps room for a usual number of streams, not for its busiest
            // moment.
            self.entries.shrink_to(64);
        // Amortised: a sweep costs as many steps as there were closes since the last one.
        } else if self.closed >= 32 && self.closed * 2 > self.entries.len() {
            self.entries.retain(|e| e.ended != BOTH);
            self.closed = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: usize) -> Vec<u8> {
        let mut bytes = FrameHeader {
            length: payload as u32,
            kind,
            flags,
            stream,
        }
        .encode()
        .to_vec();
        bytes.resize(HEAD + payload, 0xaa);
        bytes
    }

    fn heads(tracker: &mut FrameScanner, bytes: &[u8]) -> Vec<FrameHeader> {
        let mut seen = Vec::new();
        tracker.follow(bytes, |h| seen.push(h));
        seen
    }

    prop_compose! {
        fn any_frame()(kind in 0u8..12, flags in any::<u8>(), stream in 0u32..50, len in 0usize..40) -> (FrameHeader, Vec<u8>) {
            let bytes = frame(kind, flags, stream, len);
            (FrameHeader { length: len as u32, kind, flags, stream }, bytes)
        }
    }

    proptest! {
        #[test]
        fn frames_are_the_same_wherever_the_bytes_are_cut(
            frames in proptest::collection::vec(any_frame(), 1..20),
            cuts in proptest::collection::vec(1usize..30, 1..200),
        ) {
            let mut wire = PREFACE.to_vec();
            frames.iter().for_each(|(_, bytes)| wire.extend_from_slice(bytes));
            let mut tracker = FrameScanner::client();
            let (mut seen, mut rest, mut cut) = (Vec::new(), &wire[..], cuts.iter().cycle());
            while !rest.is_empty() {
                let (now, later) = rest.split_at((*cut.next().unwrap()).min(rest.len()));
                seen.extend(heads(&mut tracker, now));
                rest = later;
            }
            prop_assert_eq!(seen, frames.iter().map(|(h, _)| *h).collect::<Vec<_>>());
        }

        #[test]
        fn a_boundary_is_never_inside_a_frame_or_a_header_section(
            frames in proptest::collection::vec(any_frame(), 1..20),
            from in 0usize..200,
        ) {
            let mut wire = Vec::new();
            let mut fit = Vec::new();
            let mut open = false;
            for (head, bytes) in &frames {
                wire.extend_from_slice(bytes);
                if matches!(head.kind, kind::HEADERS | kind::PUSH_PROMISE | kind::CONTINUATION) {
                    open = head.flags & END_HEADERS == 0;
                }
                if !open {
                    fit.push(wire.len());
                }
            }
            let from = from.min(wire.len());
            let mut tracker = FrameScanner::server();
            tracker.follow(&wire[..from], |_| {});
            let found = tracker.next_boundary(&wire[from..]).map(|n| from + n);
            prop_assert_eq!(found, fit.into_iter().find(|at| *at >= from));
        }

        #[test]
        fn peek_agrees_with_follow(frames in proptest::collection::vec(any_frame(), 1..20), at in 0usize..300) {
            let wire: Vec<u8> = frames.iter().flat_map(|(_, b)| b.clone()).collect();
            let at = at.min(wire.len());
            let mut tracker = FrameScanner::server();
            tracker.follow(&wire[..at], |_| {});
            match tracker.peek(&wire[at..]) {
                Next::Rest(n) => {
                    prop_assert!(n > 0 || at == wire.len());
                }
                Next::Frame(head) => {
                    let mut seen = Vec::new();
                    tracker.follow(&wire[at..at + HEAD], |h| seen.push(h));
                    prop_assert_eq!(seen, vec![head]);
                }
                Next::More => prop_assert!(wire.len() - at < HEAD),
            }
        }

        #[test]
        fn a_book_counts_like_a_map(steps in proptest::collection::vec((0u8..5, 0u32..40), 0..400)) {
            let mut book = OpenStreams::default();
            let mut map = std::collections::BTreeMap::<u32, u8>::new();
            let mut highest = 0;
            for (what, n) in steps {
                let id = 2 * n + 1;
                let (kind, flags, side) = match what {
                    0 => (kind::HEADERS, END_HEADERS, Side::Caller),
                    1 => (kind::DATA, END_STREAM, Side::Caller),
                    2 => (kind::HEADERS, END_HEADERS | END_STREAM, Side::App),
                    3 => (kind::RST_STREAM, 0, Side::Caller),
                    _ => (kind::RST_STREAM, 0, Side::App),
                };
                let head = FrameHeader { length: 0, kind, flags, stream: id };
                if what == 0 && id > highest {
                    highest = id;
                    map.insert(id, 0);
                }
                let bits = match what { 0 => 0, 1 => 1, 2 => 2, _ => 3 };
                if let Some(ended) = map.get_mut(&id) {
                    *ended |= bits;
                    if *ended == 3 { map.remove(&id); }
                }
                match side {
                    Side::Caller => { book.from_caller(head); }
                    Side::App => book.from_app(head),
                }
                prop_assert_eq!(book.open(), Some(map.len()));
                prop_assert_eq!(book.highest(), highest);
            }
        }

        #[test]
        fn any_bytes_are_followed_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..500)) {
            let mut tracker = FrameScanner::client();
            let mut book = OpenStreams::default();
            tracker.follow(&bytes, |h| { book.from_caller(h); book.from_app(h); });
            let _ = tracker.next_boundary(&bytes);
        }
    }

    #[test]
    fn nothing_may_be_put_before_the_first_frame() {
        let settings = frame(kind::SETTINGS, 0, 0, 6);
        let mut tracker = FrameScanner::server();
        assert!(!tracker.at_boundary());
        assert_eq!(tracker.next_boundary(&settings), Some(settings.len()));
        tracker.follow(&settings, |_| {});
        assert!(tracker.at_boundary());
    }

    #[test]
    fn a_book_gives_up_beyond_its_size_and_keeps_the_highest_id() {
        let mut book = OpenStreams::default();
        for n in 0..=MAX_OPEN as u32 {
            book.from_caller(FrameHeader {
                length: 0,
                kind: kind::HEADERS,
                flags: END_HEADERS,
                stream: 2 * n + 1,
            });
        }
        assert_eq!(
            (book.open(), book.highest()),
            (None, 2 * MAX_OPEN as u32 + 1)
        );
        assert_eq!(book.entries.capacity(), 0);
    }

    #[test]
    fn frames_of_ours_have_the_shape_the_standard_asks_for() {
        assert_eq!(
            goaway(7, 0),
            [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0]
        );
        assert_eq!(
            ping([1, 2, 3, 4, 5, 6, 7, 8], ACK)[..10],
            [0, 0, 8, 6, 1, 0, 0, 0, 0, 1]
        );
        assert_eq!(window_update(3, 5), [0, 0, 4, 8, 0, 0, 0, 0, 3, 0, 0, 0, 5]);
        let head = FrameHeader {
            length: 0x01_02_03,
            kind: 9,
            flags: 4,
            stream: 0x7fff_fff1,
        };
        assert_eq!(FrameHeader::parse(head.encode()), head);
    }
}
