//! One end of an HTTP/2 connection, strict in what it takes: frames, ids, windows, header
//! compression.

use std::collections::{BTreeMap, VecDeque};

use traffic_core::http2::frames::{
    self, ACK, END_HEADERS, END_STREAM, FrameHeader, HEAD, PADDED, PREFACE, PRIORITY, kind,
};
use traffic_core::http2::hpack::{Decoder, Encoder, Field, FieldList, Form};
use traffic_core::http2::section::{self, Extent};
use traffic_core::http2::settings;

/// A small generator of numbers that look random.
#[derive(Clone, Debug)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

pub type Line = (Vec<u8>, Vec<u8>, Form);

/// One step of a stream's script.
#[derive(Clone, Debug)]
pub enum Say {
    /// Header fields, and whether the stream ends with them.
    Fields(Vec<Line>, bool),
    /// Body bytes, padding, and whether the stream ends with them.
    Data(Vec<u8>, u8, bool),
    Reset(u32),
    /// An unknown frame.
    Unknown(u8, Vec<u8>),
}

/// Everything received on a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    pub sections: Vec<Vec<Line>>,
    pub body: Vec<u8>,
    pub ended: bool,
    pub reset: Option<u32>,
    pub unknown: Vec<(u8, Vec<u8>)>,
}

#[derive(Debug, Default)]
pub struct Stream {
    pub say: VecDeque<Say>,
    pub said: Vec<Say>,
    pub heard: Heard,
    send_window: i64,
    recv_window: i64,
    /// Received and not credited.
    owed: u32,
    pub done_saying: bool,
}

/// What SETTINGS ask of the other side: a window for streams, a size of the table.
#[derive(Clone, Copy, Debug)]
enum Asked {
    Initial(i64),
    Table(usize),
    Streams,
}

/// The table of this side's decoder, as its encoder has to treat it (RFC 7541 section 4.2).
#[derive(Debug)]
struct TableSize {
    /// The most that it may be.
    allowed: usize,
    now: usize,
    /// The next section has to begin with a size no larger than this.
    due: Option<usize>,
}

impl Default for TableSize {
    fn default() -> Self {
        Self {
            allowed: 4096,
            now: 4096,
            due: None,
        }
    }
}

impl TableSize {
    /// The other side has agreed to a size.
    fn agreed(&mut self, size: usize) {
        self.allowed = size;
        if size < self.now {
            self.due = Some(self.due.map_or(size, |due| due.min(size)));
        }
    }

    /// Looks at the beginning of a section; what is wrong with it.
    fn look(&mut self, mut block: &[u8]) -> Option<String> {
        let mut smallest = None;
        while let [first @ 0x20..0x40, rest @ ..] = block {
            let (mut size, mut shift, mut rest) = (usize::from(first & 31), 0, rest);
            while size >= 31 {
                let (byte, after) = rest.split_first()?;
                size += usize::from(byte & 127) << shift;
                (rest, shift) = (after, shift + 7);
                if byte & 128 == 0 {
                    break;
                }
            }
            if size > self.allowed {
                return Some(format!("a table of {size}, {} is allowed", self.allowed));
            }
            smallest = Some(smallest.map_or(size, |s: usize| s.min(size)));
            (self.now, block) = (size, rest);
        }
        match (self.due.take(), smallest) {
            (Some(due), smallest) if smallest.is_none_or(|s| s > due) => {
                Some(format!("a table of {smallest:?}, {due} is due"))
            }
            _ => None,
        }
    }
}

#[derive(Debug)]
pub struct Peer {
    pub name: &'static str,
    is_client: bool,
    encoder: Encoder,
    decoder: Decoder,
    input: Vec<u8>,
    pub out: Vec<u8>,
    send_window: i64,
    recv_window: i64,
    owed: u32,
    /// The window that the other side gives new streams, and that this side does.
    peer_initial: i64,
    pub own_initial: i64,
    /// The window of new streams until the other side has answered SETTINGS.
    effective: i64,
    unanswered: VecDeque<Asked>,
    table: TableSize,
    pub streams: BTreeMap<u32, Stream>,
    pub next_id: u32,
    highest_heard: u32,
    pub goaways: Vec<(u32, u32)>,
    pub settings_acks: usize,
    pub pongs: Vec<[u8; 8]>,
    greeted: bool,
    preface: usize,
    pub rng: Rng,
    /// Streams of which a head was heard, in order.
    pub fresh: Vec<u32>,
    /// Gives no credit at all.
    pub stingy: bool,
    /// The other side's first mistake.
    pub complaint: Option<String>,
}

impl Peer {
    pub fn client(seed: u64, initial: u32, connection: u32) -> Self {
        let mut peer = Self::new("caller", true, seed, initial);
        peer.out.extend_from_slice(PREFACE);
        peer.greet(initial, connection);
        peer
    }

    pub fn server(name: &'static str, seed: u64, initial: u32, connection: u32) -> Self {
        let mut peer = Self::new(name, false, seed, initial);
        peer.preface = PREFACE.len();
        peer.greet(initial, connection);
        peer
    }

    fn new(name: &'static str, is_client: bool, seed: u64, initial: u32) -> Self {
        Self {
            name,
            is_client,
            encoder: Encoder::default(),
            decoder: Decoder::default(),
            input: Vec::new(),
            out: Vec::new(),
            send_window: 65_535,
            recv_window: 65_535,
            owed: 0,
            peer_initial: 65_535,
            own_initial: initial.into(),
            effective: 65_535,
            unanswered: VecDeque::new(),
            table: TableSize::default(),
            streams: BTreeMap::new(),
            next_id: 1,
            highest_heard: 0,
            goaways: Vec::new(),
            settings_acks: 0,
            pongs: Vec::new(),
            greeted: false,
            preface: 0,
            rng: Rng(seed | 1),
            fresh: Vec::new(),
            stingy: false,
            complaint: None,
        }
    }

    fn greet(&mut self, initial: u32, connection: u32) {
        let push = self.is_client.then_some((settings::ENABLE_PUSH, 0));
        let mut entries = vec![(settings::INITIAL_WINDOW_SIZE, initial)];
        entries.extend(push);
        frames::settings(&entries, &mut self.out);
        self.promise(initial.into());
        if connection > 0 {
            self.recv_window += i64::from(connection);
            self.out
                .extend_from_slice(&frames::window_update(0, connection));
        }
    }

    /// Changes the window of streams.
    pub fn set_initial(&mut self, initial: u32) {
        frames::settings(&[(settings::INITIAL_WINDOW_SIZE, initial)], &mut self.out);
        self.own_initial = initial.into();
        self.promise(initial.into());
    }

    /// Changes the size of the table for header sections.
    pub fn set_table(&mut self, size: u32) {
        frames::settings(&[(settings::HEADER_TABLE_SIZE, size)], &mut self.out);
        self.unanswered.push_back(Asked::Table(size as usize));
    }

    /// Changes the number of streams that are served at a time.
    pub fn set_streams(&mut self, most: u32) {
        let entry = (settings::MAX_CONCURRENT_STREAMS, most);
        frames::settings(&[entry], &mut self.out);
        self.unanswered.push_back(Asked::Streams);
    }

    /// More room holds at once, less from the answer on.
    fn promise(&mut self, initial: i64) {
        self.unanswered.push_back(Asked::Initial(initial));
        self.apply(initial.max(self.effective));
    }

    fn apply(&mut self, initial: i64) {
        let change = initial - self.effective;
        self.effective = initial;
        self.streams
            .values_mut()
            .for_each(|s| s.recv_window += change);
    }

    /// Opens a stream with what is to be said on it.
    pub fn open(&mut self, say: impl IntoIterator<Item = Say>) -> u32 {
        let id = self.next_id;
        self.next_id += 2;
        self.stream(id).say.extend(say);
        id
    }

    pub fn stream(&mut self, id: u32) -> &mut Stream {
        let (send, recv) = (self.peer_initial, self.effective);
        self.streams.entry(id).or_insert_with(|| Stream {
            send_window: send,
            recv_window: recv,
            ..Stream::default()
        })
    }

    pub fn ping(&mut self, payload: [u8; 8]) {
        self.out.extend_from_slice(&frames::ping(payload, 0));
    }

    /// Says what is next on some stream, as windows allow; `false` where nothing can be said.
    pub fn speak(&mut self) -> bool {
        let (conn, can) = (self.send_window, self.is_client || self.greeted);
        let ready = |s: &Stream| match s.say.front() {
            Some(Say::Data(body, pad, _)) => {
                let least =
                    i64::from(!body.is_empty()) + if *pad > 0 { 1 + i64::from(*pad) } else { 0 };
                conn.min(s.send_window) >= least || (body.is_empty() && *pad == 0)
            }
            Some(_) => true,
            None => false,
        };
        let opens_before = |id: u32| {
            let mut earlier = self.streams.range(..id);
            self.is_client
                && id % 2 == 1
                && self.streams[&id].said.is_empty()
                && earlier.any(|(_, s)| s.said.is_empty() && !s.say.is_empty())
        };
        let ids: Vec<u32> = self
            .streams
            .iter()
            .filter(|(id, s)| can && ready(s) && !opens_before(**id))
            .map(|(id, _)| *id)
            .collect();
        if ids.is_empty() {
            return false;
        }
        let id = ids[self.rng.below(ids.len() as u64) as usize];
        self.speak_on(id);
        true
    }

    fn speak_on(&mut self, id: u32) {
        let conn = self.send_window;
        let stream = self.streams.get_mut(&id).unwrap();
        let mut say = stream.say.pop_front().unwrap();
        if let Say::Data(body, pad, ends) = &mut say {
            let overhead = if *pad > 0 { 1 + usize::from(*pad) } else { 0 };
            let room = conn.min(stream.send_window) as usize;
            let most = room.saturating_sub(overhead).min(16_384 - overhead);
            if body.len() > most {
                let rest = body.split_off(most);
                stream.say.push_front(Say::Data(rest, *pad, *ends));
                *ends = false;
            }
            let flow = (body.len() + overhead) as i64;
            self.send_window -= flow;
            stream.send_window -= flow;
        }
        stream.said.push(say.clone());
        match say {
            Say::Fields(lines, ends) => {
                stream.done_saying |= ends;
                self.write_fields(id, &lines, ends);
            }
            Say::Data(body, pad, ends) => {
                stream.done_saying |= ends;
                let mut payload = Vec::new();
                if pad > 0 {
                    payload.push(pad);
                }
                payload.extend_from_slice(&body);
                payload.resize(payload.len() + usize::from(pad), 0);
                let flags = if ends { END_STREAM } else { 0 } | if pad > 0 { PADDED } else { 0 };
                self.write(kind::DATA, flags, id, &payload);
            }
            Say::Reset(code) => {
                stream.done_saying = true;
                stream.say.clear();
                self.out.extend_from_slice(&frames::reset(id, code));
            }
            Say::Unknown(kind, payload) => self.write(kind, 0, id, &payload),
        }
    }

    pub fn write(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let head = FrameHeader {
            length: payload.len() as u32,
            kind,
            flags,
            stream,
        };
        self.out.extend_from_slice(&head.encode());
        self.out.extend_from_slice(payload);
    }

    /// A header section in as many frames as chance wants, with padding and a priority now and
    /// then.
    fn write_fields(&mut self, id: u32, lines: &[Line], ends: bool) {
        let mut block = Vec::new();
        let fields = lines.iter().map(|(name, value, form)| Field {
            form: *form,
            ..Field::plain(name, value)
        });
        self.encoder.encode(fields, &mut block);
        let (mut payload, mut flags) = (Vec::new(), u8::from(ends));
        let pad = if self.rng.one_in(4) {
            self.rng.below(20) as u8 + 1
        } else {
            0
        };
        if pad > 0 {
            flags |= PADDED;
            payload.push(pad);
        }
        if self.is_client && self.rng.one_in(5) {
            flags |= PRIORITY;
            payload.extend_from_slice(&[0, 0, 0, 0, 9]);
        }
        let first = if self.rng.one_in(3) {
            self.rng.below(block.len() as u64 + 1) as usize
        } else {
            block.len()
        };
        let (now, mut later) = block.split_at(first.min(15_000));
        payload.extend_from_slice(now);
        payload.resize(payload.len() + usize::from(pad), 0);
        if later.is_empty() {
            flags |= END_HEADERS;
        }
        self.write(kind::HEADERS, flags, id, &payload);
        while !later.is_empty() {
            let n = (self.rng.below(later.len() as u64) as usize + 1).min(16_384);
            let (now, rest) = later.split_at(n);
            later = rest;
            let flags = if later.is_empty() { END_HEADERS } else { 0 };
            self.write(kind::CONTINUATION, flags, id, now);
        }
    }

    /// Gives credit for some of what was received.
    pub fn credit(&mut self) {
        if self.stingy {
            return;
        }
        if self.owed > 0 {
            self.recv_window += i64::from(self.owed);
            self.out
                .extend_from_slice(&frames::window_update(0, self.owed));
            self.owed = 0;
        }
        for (id, stream) in &mut self.streams {
            if stream.owed > 0 && !stream.heard.ended && stream.heard.reset.is_none() {
                stream.recv_window += i64::from(stream.owed);
                let frame = frames::window_update(*id, stream.owed);
                self.out.extend_from_slice(&frame);
                stream.owed = 0;
            }
        }
    }

    /// Takes bytes.
    pub fn hear(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
        if self.preface > 0 {
            if self.input.len() < self.preface {
                return;
            }
            assert_eq!(&self.input[..self.preface], PREFACE, "{}", self.name);
            self.input.drain(..self.preface);
            self.preface = 0;
        }
        let input = std::mem::take(&mut self.input);
        let mut rest = &input[..];
        while self.complaint.is_none() {
            let Some(head) = FrameHeader::peek(rest) else {
                break;
            };
            let whole = match head.kind {
                kind::HEADERS => match section::extent(rest) {
                    Extent::Whole(n) => n,
                    Extent::More => break,
                    bad => return self.complain(format!("a section is {bad:?}")),
                },
                _ if rest.len() < head.size() => break,
                _ => head.size(),
            };
            let (frame, after) = rest.split_at(whole);
            rest = after;
            self.frame(head, frame);
        }
        self.input = rest.to_vec();
    }

    fn complain(&mut self, what: String) {
        self.complaint
            .get_or_insert(format!("{}: {what}", self.name));
    }

    fn frame(&mut self, head: FrameHeader, frame: &[u8]) {
        let payload = &frame[HEAD..];
        if !self.greeted {
            if head.kind != kind::SETTINGS || head.flags & ACK != 0 {
                return self.complain(format!("begins with {head:?}"));
            }
            self.greeted = true;
        }
        if head.length > 16_384 {
            return self.complain(format!("too large {head:?}"));
        }
        match head.kind {
            kind::SETTINGS if head.is_ack() => {
                self.settings_acks += 1;
                match self.unanswered.pop_front() {
                    Some(Asked::Initial(initial)) => self.apply(initial),
                    Some(Asked::Table(size)) => self.table.agreed(size),
                    Some(Asked::Streams) => {}
                    None => self.complain("an answer to no SETTINGS".to_owned()),
                }
            }
            kind::SETTINGS => {
                for (id, value) in settings::entries(payload) {
                    if id == settings::HEADER_TABLE_SIZE {
                        self.encoder.allow(value as usize);
                    }
                    if id == settings::INITIAL_WINDOW_SIZE {
                        let change = i64::from(value) - self.peer_initial;
                        self.peer_initial = value.into();
                        self.streams
                            .values_mut()
                            .for_each(|s| s.send_window += change);
                    }
                }
                self.out.extend_from_slice(&frames::SETTINGS_ACK);
            }
            kind::PING if head.is_ack() => self.pongs.push(payload.try_into().unwrap()),
            kind::PING => {
                let payload = payload.try_into().unwrap();
                self.out.extend_from_slice(&frames::ping(payload, ACK));
            }
            kind::GOAWAY => {
                let last = frames::number(payload).unwrap();
                let code = frames::number(&payload[4..]).unwrap();
                if self
                    .goaways
                    .last()
                    .is_some_and(|(before, _)| last > *before)
                {
                    return self.complain(format!("GOAWAY grows to {last}"));
                }
                self.goaways.push((last, code));
            }
            kind::WINDOW_UPDATE => {
                let credit = i64::from(frames::number(payload).unwrap());
                if credit == 0 {
                    return self.complain("credit of nothing".to_owned());
                }
                if head.stream == 0 {
                    self.send_window += credit;
                } else if let Some(stream) = self.streams.get_mut(&head.stream) {
                    stream.send_window += credit;
                } else {
                    self.complain(format!("credit for idle stream {}", head.stream));
                }
                if self.send_window > i64::from(frames::MAX_STREAM) {
                    self.complain("the window overflows".to_owned());
                }
            }
            kind::HEADERS => self.heard_fields(head, frame),
            kind::DATA => self.heard_data(head, payload),
            kind::RST_STREAM => match self.streams.get_mut(&head.stream) {
                Some(stream) => {
                    stream.heard.reset = frames::number(payload);
                    stream.say.clear();
                    stream.done_saying = true;
                }
                None => self.complain(format!("RST of idle stream {}", head.stream)),
            },
            kind::PRIORITY => {}
            kind if head.stream > 0 => {
                self.stream(head.stream)
                    .heard
                    .unknown
                    .push((kind, payload.to_vec()));
            }
            _ => {}
        }
    }

    fn heard_fields(&mut self, head: FrameHeader, frame: &[u8]) {
        let mut joined = Vec::new();
        let section = section::read(frame, &mut joined).unwrap();
        let mut list = FieldList::default();
        if let Some(wrong) = self.table.look(section.block) {
            return self.complain(wrong);
        }
        if let Err(error) = self.decoder.decode(section.block, &mut list) {
            return self.complain(format!("undecodable: {error}"));
        }
        let lines = list
            .iter()
            .map(|f| (f.name.to_vec(), f.value.to_vec(), f.form))
            .collect();
        let id = head.stream;
        if !self.streams.contains_key(&id) {
            if self.is_client {
                return self.complain(format!("an answer on idle stream {id}"));
            }
            if id <= self.highest_heard || id.is_multiple_of(2) {
                return self.complain(format!("stream {id} after {}", self.highest_heard));
            }
            self.highest_heard = id;
            self.fresh.push(id);
        }
        let heard = &mut self.stream(id).heard;
        if heard.ended {
            return self.complain(format!("fields behind the end of {id}"));
        }
        heard.sections.push(lines);
        heard.ended |= head.ends_stream();
    }

    fn heard_data(&mut self, head: FrameHeader, payload: &[u8]) {
        self.recv_window -= i64::from(head.length);
        self.owed += head.length;
        if self.recv_window < 0 && head.length > 0 {
            return self.complain(format!("{head:?} overruns the connection's window"));
        }
        let Some(stream) = self.streams.get_mut(&head.stream) else {
            return self.complain(format!("DATA on idle stream {}", head.stream));
        };
        stream.recv_window -= i64::from(head.length);
        stream.owed += head.length;
        if stream.recv_window < 0 && head.length > 0 {
            let window = stream.recv_window;
            return self.complain(format!("{head:?} overruns its window: {window}"));
        }
        if stream.heard.ended {
            return self.complain(format!("DATA behind the end: {head:?}"));
        }
        let body = section::unpadded(head, payload).unwrap();
        stream.heard.body.extend_from_slice(body);
        stream.heard.ended |= head.ends_stream();
    }

    /// Both windows of the connection, as this side sees them.
    pub fn windows(&self) -> (i64, i64) {
        (self.send_window, self.recv_window)
    }
}
