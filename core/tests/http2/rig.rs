//! A router with a caller, an app and workstations around it, and wires that deliver bytes in
//! pieces.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use traffic_core::http2::hpack::FieldList;
use traffic_core::http2::request::RequestHead;
use traffic_core::http2::router::{
    Explained, Host, LocalAnswer, Router, Sorted, StreamEnd, StreamRoute, TunnelId, VouchedField,
    Way,
};
use traffic_core::http2::streams::Side;
use traffic_core::routing::Request as _;

use crate::peer::{Peer, Rng};

/// A request as it was copied.
#[derive(Debug, Default)]
pub struct Copy {
    pub body: Vec<u8>,
    pub trailers: usize,
    pub ended: bool,
}

/// Decides by the field `x-dev`: `a` and `b` are workstations, `here` is answered by the agent.
#[derive(Debug, Default)]
pub struct Rules {
    pub active: bool,
    pub relayed: usize,
    pub routed: Vec<(u32, &'static str)>,
    pub answered: BTreeMap<u32, u16>,
    pub ended: Vec<(u32, StreamEnd)>,
    pub moved: BTreeMap<(u32, bool), usize>,
    pub limited: usize,
    pub failed_open: Vec<u32>,
    pub copies: BTreeMap<u32, Copy>,
    /// The connection that each workstation has at the moment, and those that were asked for.
    pub open: BTreeMap<&'static str, TunnelId>,
    pub asked: Vec<(TunnelId, &'static str)>,
    next: u32,
}

impl Rules {
    fn tunnel(&mut self, to: &'static str) -> TunnelId {
        if let Some(id) = self.open.get(to) {
            return *id;
        }
        self.next += 1;
        let id = TunnelId(self.next);
        self.open.insert(to, id);
        self.asked.push((id, to));
        id
    }
}

impl Host for Rules {
    fn reads_requests(&mut self) -> bool {
        self.active
    }

    fn relayed(&mut self) {
        self.relayed += 1;
    }

    fn route(&mut self, stream: u32, head: &RequestHead<'_>, sound: bool) -> StreamRoute {
        let (mut to, mut explains, mut copied) = ("app", false, false);
        head.visit_headers(&mut |name, value| match (name, value) {
            (b"x-dev", b"a") => to = "a",
            (b"x-dev", b"b") => to = "b",
            (b"x-dev", b"here") => to = "here",
            (b"x-why", _) => explains = true,
            (b"x-copy", _) => copied = true,
            _ => {}
        });
        if !sound {
            to = "app";
        }
        self.routed.push((stream, to));
        let way = match to {
            "app" => Way::App,
            "here" => {
                let mut answer = LocalAnswer::default();
                let field = traffic_core::http2::hpack::Field::plain(b":status", b"503");
                answer.fields.push(field);
                answer.body = b"expired".to_vec();
                Way::Answer(answer)
            }
            to => Way::Tunnel(self.tunnel(to)),
        };
        StreamRoute {
            way,
            explains,
            copied,
        }
    }

    fn forwarded(&mut self, _stream: u32, _after: Duration) {}

    fn failed_open(&mut self, stream: u32) {
        self.failed_open.push(stream);
    }

    fn answered(&mut self, stream: u32, status: u16, _after: Duration) -> Option<Explained> {
        assert_eq!(self.answered.insert(stream, status), None);
        Some(Explained {
            name: "x-explained",
            value: "because".to_owned(),
        })
    }

    fn moved(&mut self, stream: u32, from: Side, bytes: usize) {
        *self.moved.entry((stream, from == Side::App)).or_default() += bytes;
    }

    fn copied(&mut self, stream: u32, body: &[u8], ends: bool) {
        let copy = self.copies.entry(stream).or_default();
        copy.body.extend_from_slice(body);
        assert!(!copy.ended, "nothing comes behind an end");
        copy.ended = ends;
    }

    fn copied_trailers(&mut self, stream: u32, trailers: &FieldList) {
        let copy = self.copies.entry(stream).or_default();
        copy.trailers = trailers.len();
        copy.ended = true;
    }

    fn ended(&mut self, stream: u32, end: StreamEnd) {
        self.ended.push((stream, end));
    }

    fn limited(&mut self) {
        self.limited += 1;
    }
}

/// Bytes of one direction that the router has not used, as a driver keeps them.
#[derive(Debug, Default)]
struct Wire {
    input: Vec<u8>,
    out: Vec<u8>,
}

impl Wire {
    /// The bytes that go on after the router has sorted.
    fn sorted(&mut self, sorted: Sorted) -> Vec<u8> {
        let mut on: Vec<u8> = self.input.drain(..sorted.used).take(sorted.pass).collect();
        on.append(&mut self.out);
        on
    }
}

pub struct Rig {
    pub router: Router,
    pub rules: Rules,
    pub caller: Peer,
    pub app: Peer,
    pub stations: BTreeMap<TunnelId, Peer>,
    pub names: BTreeMap<TunnelId, &'static str>,
    up: Wire,
    back: Wire,
    in_tunnels: BTreeMap<TunnelId, Vec<u8>>,
    pub now: Instant,
    pub rng: Rng,
    /// Initial windows of workstations: of streams, and more of the connection.
    pub station_windows: (u32, u32),
    /// Tunnels fail instead of opening, one in so many; 0 is never.
    pub failing: u64,
    /// Tunnels open at once.
    pub prompt: bool,
}

impl Rig {
    pub fn new(caller: Peer, app: Peer, seed: u64) -> Self {
        Self::with(caller, app, seed, None)
    }

    pub fn with(caller: Peer, app: Peer, seed: u64, vouched: Option<VouchedField>) -> Self {
        let now = Instant::now();
        Self {
            router: Router::new(vouched, now),
            rules: Rules::default(),
            caller,
            app,
            stations: BTreeMap::new(),
            names: BTreeMap::new(),
            up: Wire::default(),
            back: Wire::default(),
            in_tunnels: BTreeMap::new(),
            now,
            rng: Rng(seed | 1),
            station_windows: (65_535, 0),
            failing: 0,
            prompt: false,
        }
    }

    /// Some bytes at the front of `from`.
    fn piece(rng: &mut Rng, from: &mut Vec<u8>) -> Vec<u8> {
        let most = match rng.below(4) {
            0 => 1 + rng.below(20),
            1 => 1 + rng.below(2_000),
            _ => 20_000,
        };
        let n = from.len().min(most as usize);
        from.drain(..n).collect()
    }

    pub fn deliver_up(&mut self) -> bool {
        if self.caller.out.is_empty() || !self.router.reads_caller() {
            return false;
        }
        let piece = Self::piece(&mut self.rng, &mut self.caller.out);
        self.up.input.extend(piece);
        let sorted = self
            .router
            .caller_sent(&self.up.input, &mut self.up.out, &mut self.rules);
        let on = self.up.sorted(sorted);
        self.app.hear(&on);
        self.flush();
        true
    }

    pub fn deliver_back(&mut self) -> bool {
        if self.app.out.is_empty() || !self.router.reads_app() {
            return false;
        }
        let piece = Self::piece(&mut self.rng, &mut self.app.out);
        self.back.input.extend(piece);
        let sorted = self
            .router
            .app_sent(&self.back.input, &mut self.back.out, &mut self.rules);
        let on = self.back.sorted(sorted);
        self.caller.hear(&on);
        self.flush();
        true
    }

    pub fn deliver_tunnels(&mut self) -> bool {
        let mut moved = self.open_tunnels();
        let ids: Vec<_> = self.stations.keys().copied().collect();
        for id in ids {
            let station = self.stations.get_mut(&id).unwrap();
            if let Some(out) = self.router.tunnel_output(id)
                && !out.is_empty()
            {
                let piece = Self::piece(&mut self.rng, out);
                station.hear(&piece);
                self.router.tunnel_writable(id, &mut self.rules);
                moved = true;
            }
            if !station.out.is_empty() && self.router.reads_tunnel(id) {
                let piece = Self::piece(&mut self.rng, &mut station.out);
                let input = self.in_tunnels.entry(id).or_default();
                input.extend(piece);
                let used = self.router.tunnel_sent(id, input, &mut self.rules);
                input.drain(..used.unwrap());
                moved = true;
            }
        }
        self.flush();
        moved
    }

    fn open_tunnels(&mut self) -> bool {
        if self.rules.asked.is_empty() || !(self.prompt || self.rng.one_in(8)) {
            return !self.rules.asked.is_empty();
        }
        let (id, name) = self.rules.asked.remove(0);
        if self.failing > 0 && self.rng.one_in(self.failing) {
            self.rules.open.remove(name);
            self.router.tunnel_failed(id, &mut self.rules);
            return true;
        }
        let (initial, more) = self.station_windows;
        let station = Peer::server(name, self.rng.next(), initial, more);
        self.stations.insert(id, station);
        self.names.insert(id, name);
        self.router.tunnel_opened(id, &mut self.rules);
        true
    }

    /// Frames of the router's own, where a gap allows them.
    pub fn flush(&mut self) {
        self.router.set_now(self.now);
        self.router.advance();
        self.router.put_to_caller(&mut self.back.out);
        let out = std::mem::take(&mut self.back.out);
        self.caller.hear(&out);
        self.router.put_to_app(&mut self.up.out);
        let out = std::mem::take(&mut self.up.out);
        self.app.hear(&out);
        self.check();
    }

    pub fn check(&self) {
        let all = [&self.caller, &self.app].into_iter();
        for peer in all.chain(self.stations.values()) {
            assert_eq!(peer.complaint, None);
        }
    }

    /// Lets everybody speak, take and credit until nothing moves any more.
    pub fn settle(&mut self) {
        let mut still = 0;
        while still < 4 {
            let mut moved = self.caller.speak() | self.app.speak();
            for station in self.stations.values_mut() {
                moved |= station.speak();
                station.credit();
            }
            self.caller.credit();
            self.app.credit();
            moved |= self.deliver_up() | self.deliver_back() | self.deliver_tunnels();
            still = if moved { 0 } else { still + 1 };
        }
    }
}
