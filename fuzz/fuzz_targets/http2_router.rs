#![no_main]
//! The router between a caller, an app and workstations that say anything, in any order: it does not
//! panic, holds no more than it may, and passes everything on where nothing is looked at.
use std::time::{Duration, Instant};

use libfuzzer_sys::{arbitrary, fuzz_target};
use traffic_core::http2::frames::PREFACE;
use traffic_core::http2::request::RequestHead;
use traffic_core::http2::router::{Explained, Host, LocalAnswer, StreamRoute, Router, StreamEnd, TunnelId, Way};
use traffic_core::http2::streams::Side;

#[derive(Debug, arbitrary::Arbitrary)]
enum Step<'a> {
    Caller(&'a [u8]),
    App(&'a [u8]),
    Tunnel(u8, &'a [u8]),
    /// A frame of the caller, or of the app, with a sensible header.
    Frame(bool, u8, u8, u8, &'a [u8]),
    Opened(u8),
    Failed(u8),
    Closed(u8),
    Rules(bool),
    AppEnds,
    Leave,
    Later(u16),
}

#[derive(Default)]
struct Rules {
    active: bool,
    asked: u32,
}

impl Host for Rules {
    fn reads_requests(&mut self) -> bool {
        self.active
    }
    fn relayed(&mut self) {}
    fn route(&mut self, stream: u32, head: &RequestHead<'_>, sound: bool) -> StreamRoute {
        self.asked += 1;
        let way = match (sound, head.method().first().copied().unwrap_or(0) % 4 + (stream % 3) as u8) {
            (false, _) | (_, 0..=1) => Way::App,
            (_, 2) => Way::Answer(LocalAnswer { body: b"no".to_vec(), ..LocalAnswer::default() }),
            (_, n) => Way::Tunnel(TunnelId(n.into())),
        };
        StreamRoute {
            way,
            explains: self.asked.is_multiple_of(2),
            copied: self.asked.is_multiple_of(3),
        }
    }
    fn forwarded(&mut self, _: u32, _: Duration) {}
    fn failed_open(&mut self, _: u32) {}
    fn answered(&mut self, _: u32, _: u16, _: Duration) -> Option<Explained> {
        Some(Explained { name: "x-explained", value: "v".to_owned() })
    }
    fn moved(&mut self, _: u32, _: Side, _: usize) {}
    fn ended(&mut self, _: u32, _: StreamEnd) {}
    fn limited(&mut self) {}
}

struct Wire {
    sent: Vec<u8>,
    kept: Vec<u8>,
    out: Vec<u8>,
    heard: Vec<u8>,
}

impl Wire {
    fn new(first: &[u8]) -> Self {
        Self { sent: Vec::new(), kept: first.to_vec(), out: Vec::new(), heard: Vec::new() }
    }
}

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
}

fuzz_target!(|steps: Vec<Step<'_>>| {
    let mut now = Instant::now();
    let (mut router, mut rules) = (Router::new(None, now), Rules::default());
    let (mut up, mut back) = (Wire::new(PREFACE), Wire::new(&frame(4, 0, 0, b"")));
    let mut tunnels: [Vec<u8>; 8] = Default::default();
    let mut untouched = true;
    for step in steps {
        router.set_now(now);
        let (to_app, bytes) = match step {
            Step::Caller(bytes) => (true, bytes.to_vec()),
            Step::App(bytes) => (false, bytes.to_vec()),
            Step::Frame(to_app, kind, flags, stream, payload) => (to_app, frame(kind % 12, flags, stream, payload)),
            other => {
                untouched = false;
                let id = |n: u8| TunnelId(u32::from(n % 8));
                match other {
                    Step::Tunnel(n, bytes) => {
                        let kept = &mut tunnels[usize::from(n % 8)];
                        kept.extend_from_slice(bytes);
                        match router.tunnel_sent(id(n), kept, &mut rules) {
                            Ok(used) => drop(kept.drain(..used)),
                            Err(_) => {
                                kept.clear();
                                router.tunnel_closed(id(n), &mut rules);
                            }
                        }
                        if let Some(out) = router.tunnel_output(id(n)) {
                            out.clear();
                        }
                        router.tunnel_writable(id(n), &mut rules);
                    }
                    Step::Opened(n) => router.tunnel_opened(id(n), &mut rules),
                    Step::Failed(n) => router.tunnel_failed(id(n), &mut rules),
                    Step::Closed(n) => router.tunnel_closed(id(n), &mut rules),
                    Step::Rules(active) => rules.active = active,
                    Step::AppEnds => drop(router.app_ended(&mut rules)),
                    Step::Leave => router.leave(),
                    Step::Later(ms) => now += Duration::from_millis(ms.into()),
                    _ => {}
                }
                router.advance();
                continue;
            }
        };
        let wire = if to_app { &mut up } else { &mut back };
        wire.sent.extend_from_slice(&bytes);
        wire.kept.extend_from_slice(&bytes);
        let sorted = if to_app {
            router.caller_sent(&wire.kept, &mut wire.out, &mut rules)
        } else {
            router.app_sent(&wire.kept, &mut wire.out, &mut rules)
        };
        assert!(sorted.pass <= sorted.used && sorted.used <= wire.kept.len());
        wire.heard.extend(wire.kept.drain(..sorted.used).take(sorted.pass));
        wire.heard.append(&mut wire.out);
        router.put_to_caller(&mut back.out);
        router.put_to_app(&mut up.out);
        assert!(router.heap() < 16 << 20);
    }
    if untouched {
        assert_eq!([up.heard, up.kept].concat(), [&PREFACE[..], &up.sent].concat());
        assert_eq!([back.heard, back.kept].concat(), [frame(4, 0, 0, b""), back.sent].concat());
    }
});
