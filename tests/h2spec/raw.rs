//! A caller that says any frame, and what it hears.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use traffic_core::http2::frames::{
    self, END_HEADERS, END_STREAM, FrameHeader, HEAD, PREFACE, kind,
};
use traffic_core::http2::hpack::{Decoder, Encoder, Field, FieldList};
use traffic_core::http2::section::{self, Extent};

/// Silence after which nothing more is expected.
const SILENCE_TIMEOUT: Duration = Duration::from_millis(1_500);

/// Streams of every script: one to begin with, one that stays open beside the script, and those of
/// the script's own.
pub(crate) const FIRST: u32 = 1;
pub(crate) const BESIDE: u32 = 3;
pub(crate) const OWN: u32 = 5;

/// Field lines.
pub(crate) type Lines = Vec<(Vec<u8>, Vec<u8>)>;

/// Judge of what is malformed, once header sections are written anew for the app.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Judge {
    /// The app.
    #[default]
    App,
    /// The agent, which can't read on: the connection ends.
    Agent,
    /// Nobody: the agent can read it, and the app hears it in another form.
    Nobody,
}

/// Frames of a caller.
#[derive(Clone, Debug, Default)]
pub(crate) struct Script {
    pub(crate) name: String,
    pub(crate) out: Vec<u8>,
    /// The last of its streams.
    pub(crate) last: u32,
    /// Who judges it behind a stream that was taken out.
    pub(crate) judge: Judge,
    /// Ends its side of TCP behind all.
    pub(crate) half_closes: bool,
}

impl Script {
    pub(crate) fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let head = FrameHeader {
            length: u32::try_from(payload.len()).unwrap(),
            kind,
            flags,
            stream,
        };
        self.out.extend_from_slice(&head.encode());
        self.out.extend_from_slice(payload);
        if kind == kind::HEADERS {
            self.last = self.last.max(stream);
        }
    }

    pub(crate) fn head(&mut self, stream: u32, lines: &Lines, ends: bool) {
        self.last = self.last.max(stream);
        section::write(stream, ends, &block(lines), &mut self.out);
    }

    pub(crate) fn data(&mut self, stream: u32, bytes: &[u8], ends: bool) {
        let flags = if ends { END_STREAM } else { 0 };
        self.frame(kind::DATA, flags, stream, bytes);
    }
}

/// A request's usual lines with changes: pseudo-header fields take the place of the usual ones, and
/// others stand behind.
pub(crate) fn lines(changes: &[(&str, &[u8])]) -> Lines {
    let usual = [
        (":method", "GET"),
        (":scheme", "http"),
        (":path", "/"),
        (":authority", "app.test"),
    ];
    let mut lines: Lines = usual.map(|(n, v)| (n.into(), v.into())).into();
    for (name, value) in changes {
        match lines.iter_mut().find(|(known, _)| known == name.as_bytes()) {
            Some((_, known)) if name.starts_with(':') => *known = value.to_vec(),
            _ => lines.push((name.as_bytes().to_vec(), value.to_vec())),
        }
    }
    lines
}

pub(crate) fn block(lines: &Lines) -> Vec<u8> {
    let mut block = Vec::new();
    let fields = lines.iter().map(|(name, value)| Field::plain(name, value));
    Encoder::default().encode(fields, &mut block);
    block
}

/// What is heard of one stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Heard {
    sections: Vec<Vec<(String, String)>>,
    body: String,
    ended: bool,
    reset: Option<u32>,
}

impl Heard {
    fn is_over(&self) -> bool {
        self.ended || self.reset.is_some()
    }
}

/// What is heard of a connection behind its first stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Transcript {
    pub(crate) streams: BTreeMap<u32, Heard>,
    pub(crate) goaway: Option<u32>,
    pub(crate) closed: bool,
}

impl Transcript {
    /// Returns true if the connection has ended because of an error.
    pub(crate) fn is_error(&self) -> bool {
        self.closed && self.goaway.is_some_and(|code| code > 0)
    }

    /// Forgets resets without an error behind whole answers. They ask a caller for no more of its
    /// body (RFC 9113, section 8.1); to one that has ended its side they say nothing, and whether a
    /// server sends them before it closes hangs on how soon it sees that end.
    fn forget_late_resets(&mut self) {
        for heard in self.streams.values_mut().filter(|heard| heard.ended) {
            heard.reset.take_if(|code| *code == 0);
        }
    }
}

struct Caller {
    socket: TcpStream,
    input: Vec<u8>,
    decoder: Decoder,
    heard: Transcript,
    /// The last PING has been answered.
    answered: bool,
}

/// Plays a script: `dev` is the first stream's value of `x-dev`.
pub(crate) async fn play(script: &Script, address: SocketAddr, dev: &str) -> Transcript {
    let socket = TcpStream::connect(address).await.unwrap();
    socket.set_nodelay(true).unwrap();
    let mut caller = Caller {
        socket,
        input: Vec::new(),
        decoder: Decoder::default(),
        heard: Transcript::default(),
        answered: false,
    };
    let mut begin = Script::default();
    begin.out.extend_from_slice(PREFACE);
    frames::settings(&[], &mut begin.out);
    begin
        .out
        .extend_from_slice(&frames::window_update(0, 1 << 20));
    begin.head(FIRST, &lines(&[("x-dev", dev.as_bytes())]), true);
    caller.say(&begin.out).await;
    caller.hear(FIRST).await;
    caller.heard.streams.clear();

    let mut all = Script::default();
    all.head(BESIDE, &lines(&[(":method", b"POST")]), false);
    all.out.extend_from_slice(&script.out);
    all.data(BESIDE, b"beside", true);
    caller.say(&all.out).await;
    if script.half_closes {
        let _ = caller.socket.shutdown().await;
    }
    caller.hear(script.last.max(BESIDE)).await;
    caller.come_to_rest().await;
    if script.half_closes {
        caller.heard.forget_late_resets();
    }
    caller.heard
}

impl Caller {
    /// A connection that the other side ends meanwhile is seen when it is read.
    async fn say(&mut self, bytes: &[u8]) {
        let _ = timeout(SILENCE_TIMEOUT, self.socket.write_all(bytes)).await;
    }

    /// Hears until all streams up to `last` are over, or nothing more comes.
    async fn hear(&mut self, last: u32) {
        loop {
            self.take_frames().await;
            let streams = &self.heard.streams;
            let over = |stream| streams.get(&stream).is_some_and(Heard::is_over);
            let first = if last == FIRST { FIRST } else { BESIDE };
            let all = last < u32::MAX && (first..=last).step_by(2).all(over);
            if all && self.heard.goaway.is_none_or(|code| code == 0) {
                return;
            }
            match timeout(SILENCE_TIMEOUT, self.socket.read_buf(&mut self.input)).await {
                Ok(Ok(1..)) => {}
                Err(_) => return,
                Ok(_) => {
                    self.heard.closed = true;
                    return;
                }
            }
        }
    }

    /// Hears until a PING is answered, and with it all that was said before.
    async fn come_to_rest(&mut self) {
        if self.heard.closed {
            return;
        }
        self.say(&frames::ping(*b"the end?", 0)).await;
        while !self.answered && !self.heard.closed {
            match timeout(SILENCE_TIMEOUT, self.socket.read_buf(&mut self.input)).await {
                Ok(Ok(1..)) => self.take_frames().await,
                Err(_) => return,
                Ok(_) => self.heard.closed = true,
            }
        }
        if self.heard.goaway.is_some_and(|code| code != 0) {
            self.hear(u32::MAX).await;
        }
    }

    async fn take_frames(&mut self) {
        while let Some(head) = FrameHeader::peek(&self.input) {
            let size = match head.kind {
                kind::HEADERS => match section::extent(&self.input) {
                    Extent::Whole(size) => size,
                    _ => return,
                },
                _ => head.size(),
            };
            if self.input.len() < size {
                return;
            }
            let frame: Vec<_> = self.input.drain(..size).collect();
            if head.kind == kind::SETTINGS && !head.is_ack() {
                self.say(&frames::SETTINGS_ACK).await;
            }
            self.frame(head, &frame);
        }
    }

    fn frame(&mut self, head: FrameHeader, frame: &[u8]) {
        let payload = &frame[HEAD..];
        if head.kind == kind::GOAWAY {
            self.heard.goaway = frames::number(&payload[4..8]);
            return;
        }
        self.answered |= head.kind == kind::PING && head.is_ack() && payload == b"the end?";
        if head.stream == 0 {
            return;
        }
        let heard = self.heard.streams.entry(head.stream).or_default();
        match head.kind {
            kind::HEADERS => {
                let (mut joined, mut list) = (Vec::new(), FieldList::default());
                let section = section::read(frame, &mut joined).unwrap();
                self.decoder.decode(section.block, &mut list).unwrap();
                let text = |bytes: &[u8]| bytes.escape_ascii().to_string();
                let lines = list.iter().map(|f| (text(f.name), text(f.value)));
                heard
                    .sections
                    .push(lines.filter(|(name, _)| name != "date").collect());
            }
            kind::DATA => {
                let body = section::unpadded(head, payload).unwrap();
                heard.body.push_str(&body.escape_ascii().to_string());
            }
            kind::RST_STREAM => heard.reset = frames::number(payload),
            _ => return,
        }
        heard.ended |= head.ends_stream();
    }
}

/// Flags of a whole header section.
pub(crate) const WHOLE: u8 = END_HEADERS;
