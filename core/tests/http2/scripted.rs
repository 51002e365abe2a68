//! Single promises of the router, each with a script of its own.

use std::time::Duration;

use traffic_core::http2::frames::{self, FrameHeader, PREFACE, code, kind};
use traffic_core::http2::hpack::Form;
use traffic_core::http2::router::{GOAWAY_TIMEOUT, StreamEnd, VouchedField};

use crate::peer::{Line, Peer, Say};
use crate::rig::Rig;

pub fn line(name: &str, value: &str) -> Line {
    (
        name.as_bytes().to_vec(),
        value.as_bytes().to_vec(),
        Form::Incremental,
    )
}

pub fn get(path: &str, dev: &str) -> Vec<Line> {
    let mut lines = vec![
        line(":method", "GET"),
        line(":scheme", "http"),
        line(":path", path),
        line(":authority", "app.test"),
    ];
    if !dev.is_empty() {
        lines.push(line("x-dev", dev));
    }
    lines
}

fn ok() -> Vec<Line> {
    vec![line(":status", "200"), line("x-server", "me")]
}

fn whole(body: &[u8]) -> Vec<Say> {
    vec![Say::Fields(ok(), false), Say::Data(body.to_vec(), 0, true)]
}

fn rig() -> Rig {
    let caller = Peer::client(3, 65_535, 0);
    let app = Peer::server("app", 5, 65_535, 0);
    let mut rig = Rig::new(caller, app, 7);
    (rig.rules.active, rig.prompt) = (true, true);
    rig
}

impl Rig {
    fn ask(&mut self, path: &str, dev: &str) -> u32 {
        let id = self.caller.open([Say::Fields(get(path, dev), true)]);
        self.settle();
        id
    }

    /// Answers every stream that a server has heard of and not answered.
    fn answer_all(&mut self, body: &[u8]) {
        for server in std::iter::once(&mut self.app).chain(self.stations.values_mut()) {
            for id in std::mem::take(&mut server.fresh) {
                server.stream(id).say.extend(whole(body));
            }
        }
        self.settle();
    }

    fn station(&mut self) -> &mut Peer {
        self.stations.values_mut().next_back().unwrap()
    }
}

#[test]
fn streams_go_where_rules_say_and_the_others_keep_their_ids() {
    let mut rig = rig();
    let ids: Vec<_> = ["", "a", "", "b", "a", ""]
        .map(|dev| rig.ask("/", dev))
        .to_vec();
    assert_eq!(ids, [1, 3, 5, 7, 9, 11]);
    rig.answer_all(b"body");
    assert_eq!(
        rig.app.streams.keys().copied().collect::<Vec<_>>(),
        [1, 5, 11]
    );
    let stations: Vec<_> = rig.stations.values().map(|s| s.streams.len()).collect();
    assert_eq!(stations, [2, 1]);
    for id in ids {
        let heard = &rig.caller.streams[&id].heard;
        assert_eq!((&heard.body[..], heard.ended), (&b"body"[..], true));
        assert_eq!(rig.rules.answered[&id], 200);
    }
    assert_eq!(rig.rules.ended.len(), 6);
    assert!(
        rig.rules
            .ended
            .iter()
            .all(|(_, end)| *end == StreamEnd::Complete)
    );
}

#[test]
fn a_rule_that_comes_holds_for_the_next_stream_without_a_word_to_the_caller() {
    let mut rig = rig();
    rig.rules.active = false;
    for _ in 0..50 {
        rig.ask("/with/a/long/path", "a");
    }
    rig.answer_all(b"");
    let open = rig.caller.open([Say::Fields(get("/open", "a"), false)]);
    rig.settle();
    assert_eq!(rig.rules.relayed, 51);
    rig.rules.active = true;
    let next = rig.ask("/with/a/long/path", "a");
    rig.rules.active = false;
    let later = rig.ask("/with/a/long/path", "a");
    rig.caller
        .stream(open)
        .say
        .push_back(Say::Data(b"x".to_vec(), 0, true));
    rig.settle();
    rig.answer_all(b"");
    assert!(!rig.app.streams.contains_key(&next));
    assert_eq!(rig.app.streams[&open].heard.body, b"x");
    for id in [open, next, later] {
        assert!(rig.caller.streams[&id].heard.ended);
    }
    assert!(rig.caller.goaways.is_empty());
    assert_eq!(rig.stations.len(), 1);
}

#[test]
fn bytes_pass_as_they_are_whatever_they_are_while_nothing_is_looked_at() {
    let frame = |kind, flags, stream, payload: &[u8]| {
        let head = FrameHeader {
            length: payload.len() as u32,
            kind,
            flags,
            stream,
        };
        [&head.encode()[..], payload].concat()
    };
    let odd = [
        frame(77, 255, 9, b"odd"),
        frame(kind::GOAWAY, 0, 5, b"on a stream"),
        frame(kind::GOAWAY, 0, 0, b"\x80\0\0\x01a lower one"),
        frame(kind::GOAWAY, 0, 0, b"\x80\0\0\x09one that grows"),
        frame(kind::HEADERS, 4, 1, b"\x80"),
        frame(kind::HEADERS, 0, 3, b"\x82"),
        frame(kind::PING, 0, 7, b"within a section"),
        vec![0xee; 3000],
    ]
    .concat();
    for step in [1, 10, 5000] {
        let caller = Peer::client(3, 65_535, 0);
        let mut rig = Rig::new(caller, Peer::server("app", 5, 65_535, 0), 7);
        let (mut up, mut back) = (Vec::new(), Vec::new());
        let wire = [&PREFACE[..], &odd].concat();
        let (mut kept, mut out) = (Vec::new(), Vec::new());
        for piece in wire.chunks(step) {
            kept.extend_from_slice(piece);
            let sorted = rig.router.caller_sent(&kept, &mut out, &mut rig.rules);
            up.extend(kept.drain(..sorted.used).take(sorted.pass));
            up.append(&mut out);
        }
        up.extend_from_slice(&kept);
        assert!(up == wire, "{step}");
        let (mut kept, mut out) = (Vec::new(), Vec::new());
        for piece in odd.chunks(step) {
            kept.extend_from_slice(piece);
            let sorted = rig.router.app_sent(&kept, &mut out, &mut rig.rules);
            back.extend(kept.drain(..sorted.used).take(sorted.pass));
            back.append(&mut out);
        }
        back.extend_from_slice(&kept);
        assert!(back == odd, "{step}");
    }
}

#[test]
fn what_is_malformed_goes_to_the_app_as_it_is_and_spoils_no_other_stream() {
    let mut rig = rig();
    let slow = rig.caller.open([Say::Fields(get("/slow", "a"), false)]);
    rig.settle();
    let odd = ["X-Upper", "x name", ":odd", "connection"];
    let bad: Vec<_> = odd
        .map(|name| {
            let mut lines = get("/", "a");
            lines.push(line(name, "v"));
            rig.caller.open([Say::Fields(lines, true)])
        })
        .to_vec();
    rig.settle();
    let last = rig.ask("/", "a");
    rig.caller
        .stream(slow)
        .say
        .push_back(Say::Data(b"end".to_vec(), 0, true));
    rig.settle();
    rig.answer_all(b"ok");
    for (id, name) in bad.iter().zip(odd) {
        let sections = &rig.app.streams[id].heard.sections;
        assert_eq!(sections[0].last().unwrap().0, name.as_bytes());
    }
    assert_eq!(rig.station().streams.len(), 2);
    for id in [slow, last] {
        assert_eq!(rig.caller.streams[&id].heard.body, b"ok");
    }
}

#[test]
fn a_reset_passes_data_that_has_no_window_but_not_a_complete_answer() {
    for dev in ["", "a"] {
        let caller = Peer::client(3, 1000, 0);
        let mut rig = Rig::new(caller, Peer::server("app", 5, 65_535, 0), 7);
        (rig.rules.active, rig.prompt) = (true, true);
        rig.caller.stingy = true;
        let id = rig.ask("/", dev);
        let server = if dev.is_empty() {
            &mut rig.app
        } else {
            rig.station()
        };
        let stream = server.fresh.remove(0);
        let say = [Say::Fields(ok(), false), Say::Data(vec![7; 900], 0, false)];
        server.stream(stream).say.extend(say);
        server
            .stream(stream)
            .say
            .push_back(Say::Reset(code::INTERNAL_ERROR));
        rig.settle();
        let heard = &rig.caller.streams[&id].heard;
        assert_eq!((heard.reset, heard.ended), (Some(2), false), "{dev}");
        // A complete answer, then the hint that the rest of the request is not needed.
        let id = rig.caller.open([Say::Fields(get("/", dev), false)]);
        rig.settle();
        let server = if dev.is_empty() {
            &mut rig.app
        } else {
            rig.station()
        };
        let stream = server.fresh.remove(0);
        server.stream(stream).say.extend(whole(&[7; 900]));
        server
            .stream(stream)
            .say
            .push_back(Say::Reset(code::NO_ERROR));
        rig.settle();
        let heard = &rig.caller.streams[&id].heard;
        assert_eq!(
            (heard.reset, heard.ended, heard.body.len()),
            (Some(0), true, 900)
        );
    }
}

#[test]
fn a_workstation_uses_the_callers_window_and_the_app_is_held_to_what_is_left() {
    let caller = Peer::client(3, 1 << 20, 0);
    let mut rig = Rig::new(caller, Peer::server("app", 5, 65_535, 0), 7);
    (rig.rules.active, rig.prompt) = (true, true);
    rig.caller.stingy = true;
    let (theirs, ours) = (rig.ask("/", "a"), rig.ask("/", ""));
    rig.station().fresh.clear();
    rig.station().stream(1).say.extend(whole(&[1; 40_000]));
    rig.settle();
    rig.app.fresh.clear();
    rig.app.stream(ours).say.extend(whole(&[2; 60_000]));
    rig.settle();
    let got = |rig: &Rig, id: u32| rig.caller.streams[&id].heard.body.len();
    assert_eq!((got(&rig, theirs), got(&rig, ours)), (40_000, 25_535));
    // Another stream's reset, and its head, are not held up.
    let other = rig.ask("/", "");
    rig.app
        .stream(other)
        .say
        .push_back(Say::Fields(ok(), false));
    rig.app.stream(other).say.push_back(Say::Reset(8));
    rig.settle();
    assert_eq!(rig.caller.streams[&other].heard.reset, Some(8));
    rig.caller.stingy = false;
    rig.settle();
    assert_eq!(got(&rig, ours), 60_000);
    assert!(rig.caller.streams[&ours].heard.ended);
    // All debts are paid: the app may send as much as at first.
    rig.settle();
    assert_eq!(rig.app.windows().0, 65_535);
}

#[test]
fn what_is_held_of_a_stream_is_dropped_with_it_and_the_app_gets_its_credit_back() {
    let caller = Peer::client(3, 1 << 20, 0);
    let mut rig = Rig::new(caller, Peer::server("app", 5, 65_535, 0), 7);
    (rig.rules.active, rig.prompt) = (true, true);
    rig.caller.stingy = true;
    rig.ask("/", "a");
    let first = rig.ask("/", "");
    rig.station().stream(1).say.extend(whole(&[1; 60_000]));
    rig.settle();
    rig.app.stream(first).say.extend([
        Say::Fields(ok(), false),
        Say::Data(vec![2; 40_000], 0, false),
    ]);
    rig.settle();
    assert_eq!(rig.caller.streams[&first].heard.body.len(), 5_535);
    rig.app.stream(first).say.push_back(Say::Reset(2));
    rig.settle();
    assert_eq!(rig.caller.streams[&first].heard.reset, Some(2));
    rig.caller.stingy = false;
    rig.settle();
    assert_eq!(rig.app.windows().0, 65_535);
}

#[test]
fn a_stream_whose_tunnel_fails_goes_to_the_app_with_all_that_was_said_on_it() {
    let mut rig = rig();
    rig.prompt = false;
    let mut lines = get("/upload", "a");
    lines[0] = line(":method", "POST");
    let trailers = vec![line("x-end", "yes")];
    let late = rig.caller.open([
        Say::Fields(lines, false),
        Say::Data(vec![5; 3000], 9, false),
        Say::Fields(trailers.clone(), true),
    ]);
    // Streams that come later go to the app meanwhile.
    let others = [0, 1].map(|_| rig.caller.open([Say::Fields(get("/", ""), true)]));
    while rig.caller.speak() {}
    while rig.deliver_up() {}
    assert_eq!(rig.app.fresh, others);
    rig.failing = 1;
    rig.settle();
    assert_eq!(rig.rules.failed_open, [late]);
    let last = rig.ask("/", "");
    assert_eq!(rig.app.fresh, [3, 5, 7, 9], "ids grow");
    let heard = &rig.app.streams[&7].heard;
    assert_eq!((heard.body.len(), heard.ended), (3000, true));
    assert_eq!(heard.sections[1][0].0, trailers[0].0);
    rig.answer_all(b"by the app");
    for id in [late, others[0], others[1], last] {
        assert_eq!(rig.caller.streams[&id].heard.body, b"by the app");
    }
    rig.app.stream(9);
    assert_eq!(rig.rules.ended.len(), 4);
}

#[test]
fn goaway_of_the_app_is_passed_on_and_diverted_streams_are_not_given_up() {
    let mut rig = rig();
    let ours = rig.ask("/", "");
    let refused = rig.ask("/", "");
    let theirs = rig.caller.open([Say::Fields(get("/", "a"), false)]);
    rig.settle();
    rig.app
        .out
        .extend_from_slice(&frames::goaway(frames::MAX_STREAM, 0));
    rig.settle();
    assert_eq!(rig.caller.goaways, [(frames::MAX_STREAM, 0)]);
    let crossed = rig.ask("/", "a");
    rig.app.out.extend_from_slice(&frames::goaway(ours, 0));
    rig.settle();
    assert_eq!(rig.caller.goaways[1], (crossed, 0));
    assert_eq!(
        rig.caller.streams[&refused].heard.reset,
        Some(code::REFUSED_STREAM)
    );
    rig.caller
        .stream(theirs)
        .say
        .push_back(Say::Data(b"x".to_vec(), 0, true));
    rig.app.fresh.retain(|id| *id == ours);
    rig.settle();
    rig.answer_all(b"served");
    for id in [ours, theirs, crossed] {
        assert_eq!(rig.caller.streams[&id].heard.body, b"served");
    }
}

#[test]
fn a_second_goaway_of_the_app_names_no_stream_behind_the_first() {
    let mut rig = rig();
    let ours = rig.ask("/", "");
    let theirs = rig.ask("/", "a");
    for _ in 0..2 {
        rig.app.out.extend_from_slice(&frames::goaway(ours, 0));
        rig.settle();
        assert_eq!(rig.caller.goaways.last(), Some(&(theirs, 0)));
        // It crosses the GOAWAY.
        rig.ask("/", "");
    }
    assert_eq!(rig.caller.goaways.len(), 2);
}

#[test]
fn an_app_that_ends_lets_workstations_answer_and_the_caller_is_told_to_leave() {
    let mut rig = rig();
    let ours = rig.ask("/", "");
    let theirs = rig.ask("/", "a");
    assert!(rig.router.app_ended(&mut rig.rules));
    rig.flush();
    assert_eq!(
        rig.caller.streams[&ours].heard.reset,
        Some(code::INTERNAL_ERROR)
    );
    assert_eq!(rig.caller.goaways, [(theirs, 0)]);
    rig.caller.ping(*b"anybody?");
    rig.app.fresh.clear();
    rig.settle();
    assert_eq!(rig.caller.pongs, [*b"anybody?"]);
    assert!(!rig.router.is_over());
    rig.answer_all(b"still here");
    assert_eq!(rig.caller.streams[&theirs].heard.body, b"still here");
    assert!(rig.router.is_over());
}

#[test]
fn a_caller_is_asked_to_leave_in_two_steps_and_refused_only_then() {
    let mut rig = rig();
    let open = rig.caller.open([Say::Fields(get("/", ""), false)]);
    rig.settle();
    rig.router.leave();
    rig.flush();
    assert_eq!(rig.caller.goaways, [(frames::MAX_STREAM, 0)]);
    let crossed = rig.ask("/", "a");
    rig.caller
        .stream(open)
        .say
        .push_back(Say::Data(b"x".to_vec(), 0, true));
    rig.settle();
    rig.answer_all(b"yes");
    assert_eq!(rig.caller.goaways[1], (crossed, 0));
    assert!(
        rig.router.is_over(),
        "nothing is open and the caller has answered two PINGs"
    );
    assert!(
        rig.app.pongs.is_empty(),
        "answers to PINGs of ours are not the app's"
    );
    let refused = rig.ask("/", "");
    rig.caller.ping(*b"after it");
    rig.settle();
    assert!(!rig.app.streams.contains_key(&refused));
    assert_eq!(rig.caller.pongs, [*b"after it"]);
}

#[test]
fn a_caller_that_does_not_leave_has_its_time() {
    let mut rig = rig();
    rig.ask("/", "");
    rig.router.leave();
    rig.flush();
    rig.ask("/", "");
    assert_eq!(rig.router.deadline(), Some(rig.now + GOAWAY_TIMEOUT));
    rig.now += GOAWAY_TIMEOUT + Duration::from_millis(1);
    rig.flush();
    assert_eq!(rig.caller.goaways[1], (3, 0));
    let refused = rig.ask("/", "a");
    assert!(rig.stations.is_empty() && !rig.app.streams.contains_key(&refused));
}

#[test]
fn a_tunnel_that_breaks_ends_its_own_streams_alone() {
    let mut rig = rig();
    let (ours, theirs) = (rig.ask("/", ""), rig.ask("/", "a"));
    let done = rig.ask("/", "a");
    rig.caller.stingy = true;
    rig.station().stream(3).say.extend(whole(b"complete"));
    rig.settle();
    let id = *rig.stations.keys().next().unwrap();
    rig.stations.clear();
    rig.router.tunnel_closed(id, &mut rig.rules);
    rig.rules.open.clear();
    rig.settle();
    assert_eq!(
        rig.caller.streams[&theirs].heard.reset,
        Some(code::INTERNAL_ERROR)
    );
    assert_eq!(rig.caller.streams[&done].heard.body, b"complete");
    rig.answer_all(b"ok");
    assert_eq!(rig.caller.streams[&ours].heard.body, b"ok");
    assert!(rig.rules.ended.contains(&(theirs, StreamEnd::Lost)));
    let again = rig.ask("/", "a");
    rig.answer_all(b"again");
    assert_eq!(rig.caller.streams[&again].heard.body, b"again");
}

#[test]
fn a_workstation_that_parts_refuses_what_it_has_not_seen_and_is_not_asked_again() {
    let mut rig = rig();
    let (seen, unseen) = (rig.ask("/", "a"), rig.ask("/", "a"));
    rig.station().out.extend_from_slice(&frames::goaway(1, 0));
    rig.settle();
    let id = *rig.stations.keys().next().unwrap();
    assert!(rig.router.is_tunnel_parting(id));
    assert_eq!(
        rig.caller.streams[&unseen].heard.reset,
        Some(code::REFUSED_STREAM)
    );
    rig.station().fresh.truncate(1);
    rig.answer_all(b"last");
    assert_eq!(rig.caller.streams[&seen].heard.body, b"last");
    assert!(rig.router.is_tunnel_idle(id));
}

#[test]
fn answers_that_explain_say_so_and_the_agents_own_need_no_request_body() {
    let mut rig = rig();
    for dev in ["", "a"] {
        let mut lines = get("/", dev);
        lines.push(line("x-why", "1"));
        let id = rig.caller.open([Say::Fields(lines, true)]);
        rig.settle();
        let hint = Say::Fields(vec![line(":status", "103"), line("link", "x")], false);
        let server = if dev.is_empty() {
            &mut rig.app
        } else {
            rig.station()
        };
        let stream = server.fresh.remove(0);
        server.stream(stream).say.push_back(hint);
        server.stream(stream).say.extend(whole(b"ok"));
        rig.settle();
        let heard = &rig.caller.streams[&id].heard;
        assert_eq!(heard.sections.len(), 2);
        assert_eq!(heard.sections[0].len(), 2);
        assert_eq!(heard.sections[1].last().unwrap().0, b"x-explained");
        assert_eq!(heard.body, b"ok");
    }
    let id = rig.caller.open([Say::Fields(get("/", "here"), false)]);
    rig.settle();
    let heard = &rig.caller.streams[&id].heard;
    assert_eq!((&heard.body[..], heard.ended), (&b"expired"[..], true));
    assert_eq!(heard.reset, Some(code::NO_ERROR));
}

#[test]
fn a_field_that_the_agent_vouches_for_is_the_agents_alone() {
    let vouched = VouchedField {
        name: "x-caller".to_owned(),
        value: Some("jane".to_owned()),
    };
    let caller = Peer::client(3, 65_535, 0);
    let mut rig = Rig::with(caller, Peer::server("app", 5, 65_535, 0), 7, Some(vouched));
    (rig.rules.active, rig.prompt) = (true, true);
    for dev in ["", "a", ""] {
        let mut lines = get("/", dev);
        lines.insert(4, line("X-Caller", "root"));
        lines.push(line("x-caller", "admin"));
        let trailers = vec![line("x-caller", "root"), line("x-end", "1")];
        let id = rig
            .caller
            .open([Say::Fields(lines, false), Say::Fields(trailers, true)]);
        rig.settle();
        let (server, id) = if dev.is_empty() {
            (&mut rig.app, id)
        } else {
            (rig.station(), 1)
        };
        let sections = &server.streams[&id].heard.sections;
        let of = |section: &[Line]| -> Vec<String> {
            let ours = section
                .iter()
                .filter(|l| l.0.eq_ignore_ascii_case(b"x-caller"));
            ours.map(|l| String::from_utf8(l.1.clone()).unwrap())
                .collect()
        };
        assert_eq!(of(&sections[0]), ["jane"]);
        assert!(of(&sections[1]).is_empty() && sections[1].len() == 1);
    }
}

#[test]
fn a_caller_that_makes_its_table_smaller_is_told_so_by_whoever_answers_first() {
    for (size, again) in [(0, false), (100, true)] {
        let mut rig = rig();
        let filled = rig.ask("/", "");
        rig.answer_all(b"ok");
        rig.caller.set_table(size);
        rig.settle();
        if again {
            rig.caller.set_table(0);
            rig.settle();
        }
        // The workstation's answer comes first, then the app's; every peer complains where a
        // section does not begin as it must.
        let ids = ["a", "", "a", ""].map(|dev| {
            let id = rig.ask("/", dev);
            rig.answer_all(b"ok");
            id
        });
        for id in ids.into_iter().chain([filled]) {
            assert_eq!(rig.caller.streams[&id].heard.body, b"ok");
        }
    }
}

#[test]
fn a_stream_that_goes_to_the_app_late_keeps_to_the_table_that_the_app_has_by_then() {
    let mut rig = rig();
    rig.ask("/", "");
    rig.answer_all(b"ok");
    rig.prompt = false;
    rig.failing = 1;
    let late = rig.caller.open([Say::Fields(get("/late", "a"), true)]);
    rig.app.set_table(0);
    rig.settle();
    rig.answer_all(b"ok");
    assert_eq!(rig.rules.failed_open, [late]);
    assert_eq!(rig.caller.streams[&late].heard.body, b"ok");
    let next = rig.ask("/", "");
    rig.answer_all(b"ok");
    assert_eq!(rig.caller.streams[&next].heard.body, b"ok");
}

#[test]
fn a_caller_may_have_as_many_streams_as_the_app_has_said_wherever_they_go() {
    let mut rig = rig();
    rig.app.set_streams(3);
    rig.ask("/", "");
    let (first, second) = (rig.ask("/", "a"), rig.ask("/", "a"));
    let beyond = rig.ask("/", "a");
    assert_eq!(rig.caller.streams[&beyond].heard.reset, Some(7));
    assert_eq!(rig.station().streams.len(), 2);
    rig.answer_all(b"ok");
    let next = rig.ask("/", "b");
    rig.answer_all(b"ok");
    for id in [first, second, next] {
        assert_eq!(rig.caller.streams[&id].heard.body, b"ok");
    }
}

#[test]
fn a_caller_that_overruns_the_window_of_a_stream_loses_that_stream_alone() {
    let mut rig = rig();
    rig.station_windows = (1_000, 0);
    let broken = rig.caller.open([Say::Fields(get("/broken", "a"), false)]);
    let other = rig.caller.open([Say::Fields(get("/other", "a"), false)]);
    rig.settle();
    let owed = |rig: &Rig| rig.caller.windows().0;
    let before = owed(&rig);
    // The app gives 65 535, and the workstation nothing beyond that.
    for _ in 0..5 {
        rig.caller.write(kind::DATA, 0, broken, &[7; 16_384]);
        rig.settle();
    }
    assert_eq!(rig.caller.streams[&broken].heard.reset, Some(3));
    assert!(owed(&rig) > before, "what is dropped is credited");
    let say = Say::Data(b"end".to_vec(), 0, true);
    rig.caller.stream(other).say.push_back(say);
    rig.settle();
    rig.answer_all(b"ok");
    assert_eq!(rig.caller.streams[&other].heard.body, b"ok");
}
