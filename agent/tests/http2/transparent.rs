//! Generated exchanges through a port of the agent, between a caller and an app that say what they
//! like: odd fields, padding, CONTINUATION, priorities, unknown frames, trailers, resets. While
//! nothing is diverted, every byte arrives as it was sent; beside streams of a workstation, every
//! field and every byte of a body, at both and from both.

use std::collections::BTreeMap;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use agent_testkit::WAIT_TIMEOUT;
use agent_testkit::app::ScriptedApp;
use agent_testkit::port::PortFixture;
use agent_testkit::tunnels::Behaviour;
use traffic_agent::proxy::context::AppProtocol;
use traffic_core::http2::frames::{
    self, END_HEADERS, END_STREAM, FrameHeader, HEAD, PADDED, PREFACE, PRIORITY, kind,
};
use traffic_core::http2::hpack::{Decoder, Encoder, Field, FieldList, Form};
use traffic_core::http2::section::{self, Extent};

/// Exchanges on one connection.
const ON_A_CONNECTION: u32 = 40;

/// Exchanges in each mode.
fn exchanges() -> u32 {
    let told = std::env::var("HTTP2_EXCHANGES").ok();
    told.and_then(|n| n.parse().ok()).unwrap_or(10_000)
}

/// Fields that types of libraries or eager checks would refuse, cut or put in another form.
const ODD: &[(&str, &str)] = &[
    (":path", "/search?q=a>1|<`[{^\\\"#x"),
    (":path", "/a b"),
    (":path", "/a#fragment"),
    (":path", "*"),
    (":path", "no-slash"),
    (":path", ""),
    (":authority", "extension/ns/auth-server"),
    (":authority", "%2Frun%2Fx.sock"),
    (":authority", "/run/x.sock"),
    (":authority", ""),
    (":authority", "a b"),
    ("te", "gzip"),
    ("te", "trailers"),
    ("keep-alive", "timeout=5"),
    ("connection", "close"),
    ("proxy-connection", "x"),
    ("transfer-encoding", "chunked"),
    ("upgrade", "h2c"),
    ("content-length", "77"),
    ("content-length", "x"),
    ("X-Upper", "1"),
    ("x name", "v"),
    ("", "no name"),
    ("x-control", "a\u{1}b\r\n"),
    ("cookie", "a=1"),
    ("cookie", "b=2; c=3"),
    (":protocol", "websocket"),
    (":odd", "1"),
    ("host", "other.test"),
];

/// Fields with which a request may go to a workstation.
const SOUND: &[(&str, &str)] = &[
    ("te", "trailers"),
    ("cookie", "a=1"),
    ("cookie", "b=2; c=3"),
    ("x-empty", ""),
    ("x-tab", "a\tb"),
    ("x-latin", "caf\u{e9}"),
    ("host", "app.test"),
];

/// A random source that can be repeated.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) as usize % n
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// One side that says generated things.
struct Speaker {
    rng: Rng,
    encoder: Encoder,
    is_client: bool,
    /// Fields that are said beside those that have to be.
    extra: &'static [(&'static str, &'static str)],
    out: Vec<u8>,
}

impl Speaker {
    fn new(seed: u64, is_client: bool) -> Self {
        Self {
            rng: Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            encoder: Encoder::default(),
            is_client,
            extra: ODD,
            out: Vec::new(),
        }
    }

    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = payload.len() as u32;
        let head = FrameHeader {
            length,
            kind,
            flags,
            stream,
        };
        self.out.extend_from_slice(&head.encode());
        self.out.extend_from_slice(payload);
    }

    /// A header section of `first` and odd fields, in pieces now and then.
    fn fields(&mut self, stream: u32, first: &[(&str, &str)], ends: bool) {
        let mut lines = first.to_vec();
        for _ in 0..self.rng.below(5) {
            let extra = self.extra[self.rng.below(self.extra.len())];
            // Sound ones have their place behind the pseudo-header fields.
            let before = if self.extra == ODD { 0 } else { first.len() };
            let at = before + self.rng.below(lines.len() + 1 - before);
            lines.insert(at, extra);
        }
        let long = "v".repeat(self.rng.below(300));
        lines.push(("x-long", &long));
        let forms: Vec<_> = lines.iter().map(|_| self.rng.below(4)).collect();
        let fields = lines.iter().zip(forms).map(|((name, value), form)| Field {
            form: [
                Form::Plain,
                Form::Never,
                Form::Incremental,
                Form::Incremental,
            ][form],
            ..Field::plain(name.as_bytes(), value.as_bytes())
        });
        let mut block = Vec::new();
        self.encoder.encode(fields, &mut block);
        let (mut flags, mut payload) = (if ends { END_STREAM } else { 0 }, Vec::new());
        let pad = if self.rng.one_in(4) {
            self.rng.below(256)
        } else {
            0
        };
        if pad > 0 {
            flags |= PADDED;
            payload.push(pad as u8);
        }
        if self.is_client && self.rng.one_in(4) {
            flags |= PRIORITY;
            payload.extend_from_slice(&[0, 0, 0, 0, 7]);
        }
        let cut = if self.rng.one_in(3) {
            self.rng.below(block.len())
        } else {
            block.len()
        };
        let (now, mut later) = block.split_at(cut);
        payload.extend_from_slice(now);
        payload.resize(payload.len() + pad, 0);
        flags |= if later.is_empty() { END_HEADERS } else { 0 };
        self.frame(kind::HEADERS, flags, stream, &payload);
        while !later.is_empty() {
            let (now, rest) = later.split_at(1 + self.rng.below(later.len()));
            later = rest;
            let flags = if later.is_empty() { END_HEADERS } else { 0 };
            self.frame(kind::CONTINUATION, flags, stream, now);
        }
    }

    fn body(&mut self, stream: u32) {
        for _ in 0..self.rng.below(4) {
            match self.rng.below(10) {
                8 => {
                    let id = [6, 9, 0xabcd][self.rng.below(3)];
                    let value = self.rng.below(1 << 20) as u32;
                    frames::settings(&[(id, value)], &mut self.out);
                }
                9 => {
                    let credit = frames::window_update(stream, 1 + self.rng.below(999) as u32);
                    self.out.extend_from_slice(&credit);
                }
                0 => self.frame(0x77, 0xff, stream, b"unknown"),
                1 => self.frame(kind::PING, 0, 0, b"whatever"),
                2 if self.is_client => self.frame(kind::PRIORITY, 0, stream, &[0, 0, 0, 0, 3]),
                3 => {
                    let pad = self.rng.below(200);
                    let payload = [&[pad as u8][..], b"padded", &vec![0; pad]].concat();
                    self.frame(kind::DATA, PADDED, stream, &payload);
                }
                _ => {
                    let n = self.rng.below(3_000);
                    self.frame(kind::DATA, 0, stream, &vec![stream as u8; n]);
                }
            }
        }
        match self.rng.below(6) {
            0 => self.frame(kind::RST_STREAM, 0, stream, &[0, 0, 0, 8]),
            1 => self.fields(stream, &[("x-end", "1")], true),
            _ => self.frame(kind::DATA, END_STREAM, stream, b"end"),
        }
    }

    fn request(&mut self, stream: u32) {
        let number = stream.to_string();
        let ends = self.rng.one_in(3);
        let first = [
            (
                ":method",
                ["GET", "POST", "PURGE", "A B"][self.rng.below(4)],
            ),
            (":scheme", "http"),
            (":path", "/x"),
            (":authority", "app.test"),
            ("x-number", &number),
        ];
        self.fields(stream, &first, ends);
        if !ends {
            self.body(stream);
        }
    }

    /// A request that a workstation takes. The first has no body, so that it is not given up before
    /// its tunnel is open.
    fn sound_request(&mut self, stream: u32, is_first: bool) {
        self.extra = SOUND;
        let ends = is_first || self.rng.one_in(3);
        let first = [
            (":method", ["GET", "POST"][self.rng.below(2)]),
            (":scheme", "http"),
            (":path", "/x"),
            (":authority", "app.test"),
            ("x-dev", "a"),
        ];
        self.fields(stream, &first, ends);
        if !ends {
            self.body(stream);
        }
        self.extra = ODD;
    }

    fn answer(&mut self, stream: u32) {
        while self.rng.one_in(5) {
            self.fields(stream, &[(":status", "103")], false);
        }
        let status = ["200", "204", "404", "503"][self.rng.below(4)];
        let ends = self.rng.one_in(3);
        self.fields(stream, &[(":status", status)], ends);
        if !ends {
            self.body(stream);
        }
    }

    /// What there is to say, in pieces of any size.
    async fn say(&mut self, to: &mut TcpStream) -> Vec<u8> {
        let said = std::mem::take(&mut self.out);
        let mut rest = &said[..];
        while !rest.is_empty() {
            let most = [5, 60, 5_000, 70_000][self.rng.below(4)];
            let (now, later) = rest.split_at((1 + self.rng.below(most)).min(rest.len()));
            to.write_all(now).await.unwrap();
            rest = later;
        }
        said
    }
}

/// Says everything on one end while the other hears as many bytes, and compares them.
async fn pass(speaker: &mut Speaker, from: &mut TcpStream, to: &mut TcpStream) {
    let length = speaker.out.len();
    let mut heard = vec![0; length];
    let hear = timeout(WAIT_TIMEOUT, to.read_exact(&mut heard));
    let (said, read) = tokio::join!(speaker.say(from), hear);
    read.expect("all bytes arrive").unwrap();
    let differs = said.iter().zip(&heard).position(|(a, b)| a != b);
    assert_eq!(differs, None, "of {length} bytes");
}

#[tokio::test]
async fn every_byte_passes_with_no_rule_and_with_one_that_does_not_match() {
    let app = ScriptedApp::listen().await;
    for ruled in [false, true] {
        let fixture = PortFixture::with(app.addr(), AppProtocol::Unknown, Behaviour::Away);
        if ruled {
            fixture.intercept();
        }
        for seed in 0..exchanges().div_ceil(ON_A_CONNECTION) {
            let mut caller = fixture.connect().await;
            let mut at_app = app.accept().await;
            let mut client = Speaker::new(2 * u64::from(seed) + 1, true);
            let mut server = Speaker::new(2 * u64::from(seed) + 2, false);
            client.out.extend_from_slice(PREFACE);
            frames::settings(&[(4, seed), (6, 99)], &mut client.out);
            frames::settings(&[(3, 100), (9, 9)], &mut server.out);
            pass(&mut client, &mut caller, &mut at_app).await;
            pass(&mut server, &mut at_app, &mut caller).await;
            let mut next = 1;
            while next < 2 * ON_A_CONNECTION {
                let together = 1 + client.rng.below(5) as u32;
                let streams: Vec<_> = (0..together).map(|n| next + 2 * n).collect();
                next += 2 * together;
                streams.iter().for_each(|stream| client.request(*stream));
                streams.iter().for_each(|stream| server.answer(*stream));
                pass(&mut client, &mut caller, &mut at_app).await;
                pass(&mut server, &mut at_app, &mut caller).await;
            }
        }
    }
}

/// Name, value, and if it must never be indexed.
type Line = (Vec<u8>, Vec<u8>, bool);

/// What is heard of one stream, frame borders of bodies and sections aside.
#[derive(Debug, Default, PartialEq, Eq)]
struct Heard {
    sections: Vec<Vec<Line>>,
    body: Vec<u8>,
    unknown: usize,
    ended: bool,
    reset: Option<u32>,
}

/// One side that listens.
#[derive(Default)]
struct Listener {
    decoder: Decoder,
    streams: BTreeMap<u32, Heard>,
    /// Bytes that have come and are no whole frame yet.
    input: Vec<u8>,
}

impl Listener {
    fn hear(&mut self, mut bytes: &[u8]) -> usize {
        let all = bytes.len();
        if PREFACE.starts_with(bytes) {
            return 0;
        }
        bytes = bytes.strip_prefix(&PREFACE[..]).unwrap_or(bytes);
        while let Some(head) = FrameHeader::peek(bytes) {
            let size = match head.kind {
                kind::HEADERS => match section::extent(bytes) {
                    Extent::Whole(n) => n,
                    _ => break,
                },
                _ if bytes.len() < head.size() => break,
                _ => head.size(),
            };
            let (frame, rest) = bytes.split_at(size);
            bytes = rest;
            self.frame(head, frame);
        }
        all - bytes.len()
    }

    fn frame(&mut self, head: FrameHeader, frame: &[u8]) {
        if head.stream == 0 {
            return;
        }
        let heard = self.streams.entry(head.stream).or_default();
        match head.kind {
            kind::HEADERS => {
                let (mut joined, mut list) = (Vec::new(), FieldList::default());
                let section = section::read(frame, &mut joined).unwrap();
                self.decoder.decode(section.block, &mut list).unwrap();
                let lines = list.iter();
                let lines = lines.map(|f| (f.name.into(), f.value.into(), f.form == Form::Never));
                heard.sections.push(lines.collect());
            }
            kind::DATA => {
                let body = section::unpadded(head, &frame[HEAD..]).unwrap();
                heard.body.extend_from_slice(body);
            }
            kind::RST_STREAM => heard.reset = frames::number(&frame[HEAD..]),
            0x77 => heard.unknown += 1,
            _ => {}
        }
        heard.ended |= head.ends_stream();
    }
}

/// Hears until every stream of `expected` has been heard as it was said.
async fn hears(listener: &mut Listener, from: &mut TcpStream, expected: &Listener) {
    loop {
        let missing = expected
            .streams
            .iter()
            .find(|(stream, said)| listener.streams.get(stream) != Some(said));
        let Some((stream, said)) = missing else {
            return;
        };
        let read = timeout(WAIT_TIMEOUT, from.read_buf(&mut listener.input)).await;
        let heard = listener.streams.get(stream);
        assert!(
            matches!(read, Ok(Ok(1..))),
            "stream {stream}: {heard:?} is not {said:?}"
        );
        let input = std::mem::take(&mut listener.input);
        let used = listener.hear(&input);
        listener.input = input[used..].to_vec();
    }
}

/// A workstation's end of a tunnel.
struct Desk {
    socket: TcpStream,
    speaker: Speaker,
    /// Its streams as it should hear them, as it has heard them, and as it has answered them.
    asked: Listener,
    heard: Listener,
    said: Listener,
    newest: u32,
}

impl Desk {
    /// Takes a tunnel.
    async fn accept(from: &ScriptedApp, seed: u64) -> Self {
        let mut desk = Self {
            socket: from.accept().await,
            speaker: Speaker::new(seed, false),
            asked: Listener::default(),
            heard: Listener::default(),
            said: Listener::default(),
            newest: 0,
        };
        frames::settings(&[], &mut desk.speaker.out);
        desk.speaker.say(&mut desk.socket).await;
        desk
    }

    /// Hears a request, and says what is heard of its answer; nothing of one that was given up.
    async fn serve(&mut self, asked: Heard) -> Option<Heard> {
        // Streams have ids of their own in a tunnel.
        let stream = self.newest + 1;
        self.newest += 2;
        let given_up = asked.reset.is_some();
        self.asked.streams.insert(stream, asked);
        hears(&mut self.heard, &mut self.socket, &self.asked).await;
        if given_up {
            return None;
        }
        self.speaker.answer(stream);
        let said = self.speaker.say(&mut self.socket).await;
        self.said.hear(&said);
        self.said.streams.remove(&stream)
    }
}

#[tokio::test]
async fn every_field_passes_to_the_app_and_to_a_workstation_beside_it() {
    let app = ScriptedApp::listen().await;
    let workstation = ScriptedApp::listen().await;
    let behaviour = Behaviour::Dials(workstation.addr());
    let fixture = PortFixture::with(app.addr(), AppProtocol::Unknown, behaviour);
    fixture.intercept();
    for seed in 0..exchanges().div_ceil(ON_A_CONNECTION) {
        let seed = u64::from(seed);
        let mut caller = fixture.connect().await;
        let mut at_app = app.accept().await;
        let mut client = Speaker::new(3 * seed + 1, true);
        let mut server = Speaker::new(3 * seed + 2, false);
        let mut desk = None;
        let (mut to_app, mut to_caller) = (Listener::default(), Listener::default());
        let (mut asked, mut answered) = (Listener::default(), Listener::default());
        client.out.extend_from_slice(PREFACE);
        frames::settings(&[], &mut client.out);
        client
            .out
            .extend_from_slice(&frames::window_update(0, 1 << 30));
        frames::settings(&[(3, 100)], &mut server.out);
        pass(&mut client, &mut caller, &mut at_app).await;
        pass(&mut server, &mut at_app, &mut caller).await;
        for next in (1..2 * ON_A_CONNECTION).step_by(2) {
            if client.rng.one_in(3) {
                client.sound_request(next, desk.is_none());
                // Its sender's table is followed here as well.
                asked.hear(&client.say(&mut caller).await);
                let request = asked.streams.remove(&next).unwrap();
                if desk.is_none() {
                    desk = Some(Desk::accept(&workstation, 3 * seed + 3).await);
                }
                let answer = desk.as_mut().unwrap().serve(request).await;
                if let Some(answer) = answer {
                    answered.streams.insert(next, answer);
                    hears(&mut to_caller, &mut caller, &answered).await;
                }
                continue;
            }
            client.request(next);
            server.answer(next);
            asked.hear(&client.say(&mut caller).await);
            hears(&mut to_app, &mut at_app, &asked).await;
            assert!(to_app.streams.keys().eq(asked.streams.keys()));
            answered.hear(&server.say(&mut at_app).await);
            hears(&mut to_caller, &mut caller, &answered).await;
        }
    }
}
