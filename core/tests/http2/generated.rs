//! Generated exchanges: whatever is said on one end is heard on the other, field by field and byte
//! by byte, by whom the rules say, and every peer keeps and is kept to every window.

use std::collections::BTreeMap;

use proptest::prelude::*;
use traffic_core::http2::hpack::Form;

use crate::peer::{Heard, Line, Peer, Rng, Say};
use crate::rig::Rig;
use crate::scripted::{get, line};

/// Exchanges in one run of the long test.
fn exchanges() -> u32 {
    std::env::var("HTTP2_EXCHANGES")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(1_000)
}

fn text(rng: &mut Rng, odd: bool) -> Vec<u8> {
    let n = match rng.below(12) {
        0 => 0,
        1 => rng.below(3_000),
        _ => 1 + rng.below(20),
    };
    let byte = |rng: &mut Rng| {
        if odd && rng.one_in(6) {
            rng.next() as u8
        } else {
            b'a' + rng.below(26) as u8
        }
    };
    (0..n).map(|_| byte(rng)).collect()
}

fn form(rng: &mut Rng) -> Form {
    match rng.below(6) {
        0 => Form::Plain,
        1 => Form::Never,
        _ => Form::Incremental,
    }
}

fn extra(rng: &mut Rng, lines: &mut Vec<Line>) {
    for _ in 0..rng.below(6) {
        let name = match rng.below(5) {
            0 => b"cookie".to_vec(),
            1 => b"x-same".to_vec(),
            2 => text(rng, true),
            _ => text(rng, false),
        };
        // A name that routes or is a pseudo-header field would change what is tested.
        if name == b"x-dev" || name.starts_with(b":") {
            continue;
        }
        lines.push((name, text(rng, true), form(rng)));
    }
}

fn body(rng: &mut Rng, say: &mut Vec<Say>, trailers: bool) {
    for _ in 0..rng.below(4) {
        let n = match rng.below(6) {
            0 => 0,
            1 => rng.below(60_000),
            _ => rng.below(500),
        };
        let bytes = (0..n).map(|i| (i * 7) as u8).collect();
        let pad = if rng.one_in(3) {
            rng.below(256) as u8
        } else {
            0
        };
        say.push(Say::Data(bytes, pad, false));
    }
    if trailers && rng.one_in(3) {
        let mut lines = vec![line("x-end", "yes")];
        extra(rng, &mut lines);
        // Malformed trailers end a diverted stream, which is tested elsewhere.
        lines.retain(|l| {
            !l.0.is_empty()
                && l.0.iter().all(u8::is_ascii_lowercase)
                && l.1.iter().all(u8::is_ascii_lowercase)
        });
        say.push(Say::Fields(lines, true));
    } else {
        say.push(Say::Data(Vec::new(), 0, true));
    }
}

fn request(rng: &mut Rng) -> Vec<Say> {
    let dev = ["", "", "a", "a", "b", "other"][rng.below(6) as usize];
    let mut lines = get("/x", dev);
    let path: Vec<u8> = [b"/".to_vec(), text(rng, true)].concat();
    lines[2].1 = path;
    extra(rng, &mut lines);
    lines.push(line("x-number", &rng.next().to_string()));
    if rng.one_in(3) {
        return vec![Say::Fields(lines, true)];
    }
    let mut say = vec![Say::Fields(lines, false)];
    body(rng, &mut say, true);
    if rng.one_in(10) {
        let at = 1 + rng.below(say.len() as u64) as usize;
        say.truncate(at);
        if !matches!(
            say.last(),
            Some(Say::Fields(_, true) | Say::Data(_, _, true))
        ) {
            say.push(Say::Reset(rng.below(14) as u32));
        }
    }
    if rng.one_in(8) {
        say.insert(1, Say::Unknown(0x50 + rng.below(5) as u8, text(rng, true)));
    }
    say
}

fn answer(rng: &mut Rng) -> Vec<Say> {
    let mut say = Vec::new();
    while rng.one_in(6) {
        say.push(Say::Fields(
            vec![line(":status", "103"), line("link", "</a>")],
            false,
        ));
    }
    let status = ["200", "204", "404", "302", "503"][rng.below(5) as usize];
    let mut lines = vec![line(":status", status)];
    extra(rng, &mut lines);
    if rng.one_in(4) {
        say.push(Say::Fields(lines, true));
    } else {
        say.push(Say::Fields(lines, false));
        body(rng, &mut say, true);
    }
    if rng.one_in(12) {
        let at = rng.below(say.len() as u64 + 1) as usize;
        say.truncate(at);
        if !matches!(
            say.last(),
            Some(Say::Fields(_, true) | Say::Data(_, _, true))
        ) {
            say.push(Say::Reset(rng.below(14) as u32));
        }
    }
    say
}

/// The effect of a script at its other end.
fn expected(said: &[Say]) -> Heard {
    let mut heard = Heard::default();
    for say in said {
        match say {
            Say::Fields(lines, ends) => {
                heard.sections.push(lines.clone());
                heard.ended |= ends;
            }
            Say::Data(bytes, _, ends) => {
                heard.body.extend_from_slice(bytes);
                heard.ended |= ends;
            }
            Say::Reset(code) => heard.reset = Some(*code),
            Say::Unknown(kind, payload) => heard.unknown.push((*kind, payload.clone())),
        }
    }
    heard
}

/// Name, value, and if it must never be indexed.
type PlainLine = (Vec<u8>, Vec<u8>, bool);

/// Fields and their never-indexed flags.
fn plain(sections: &[Vec<Line>]) -> Vec<Vec<PlainLine>> {
    let lines = |section: &Vec<Line>| {
        section
            .iter()
            .map(|(name, value, form)| (name.clone(), value.clone(), *form == Form::Never))
            .collect()
    };
    sections.iter().map(lines).collect()
}

/// `heard` is what was said, or its beginning where a reset from either side cut it off.
fn same(what: &str, heard: &Heard, said: &[Say], cut: bool) {
    let expected = expected(said);
    let (got, want) = (plain(&heard.sections), plain(&expected.sections));
    if cut {
        assert!(
            want.starts_with(&got),
            "{what}: {got:?} is no beginning of {want:?}"
        );
        assert!(expected.body.starts_with(&heard.body), "{what}: body");
        return;
    }
    assert_eq!(got, want, "{what}: fields");
    assert!(heard.body == expected.body, "{what}: body");
    assert_eq!(heard.unknown, expected.unknown, "{what}: unknown frames");
    assert_eq!(
        (heard.ended, heard.reset),
        (expected.ended, expected.reset),
        "{what}: end"
    );
}

/// Runs a number of exchanges and compares both ends.
fn run(seed: u64, exchanges: u32, rules: Toggle) {
    let mut rng = Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let window = |rng: &mut Rng| match rng.below(4) {
        0 => 0,
        1 => rng.below(2_000) as u32,
        2 => 65_535,
        _ => 1 << 20,
    };
    let caller = Peer::client(rng.next(), window(&mut rng), rng.below(2) as u32 * 100_000);
    let app = Peer::server(
        "app",
        rng.next(),
        window(&mut rng),
        rng.below(2) as u32 * 100_000,
    );
    let mut rig = Rig::new(caller, app, rng.next());
    rig.station_windows = (window(&mut rng), rng.below(2) as u32 * 1_000_000);
    rig.failing = [0, 0, 2][rng.below(3) as usize];
    rig.rules.active = rules != Toggle::Never;
    let mut left = exchanges;
    let mut quiet = 0;
    while left > 0 || quiet < 6 {
        if left > 0 && rng.one_in(3) {
            let say = request(&mut rng);
            rig.caller.open(say);
            left -= 1;
        }
        if rules == Toggle::Churn && rng.one_in(30) {
            rig.rules.active = !rig.rules.active;
        }
        let servers = std::iter::once(&mut rig.app).chain(rig.stations.values_mut());
        for peer in servers.chain([&mut rig.caller]) {
            if rng.one_in(100) {
                peer.set_table([0, 100, 600, 4_096, 60_000][rng.below(5) as usize]);
            }
        }
        let servers = std::iter::once(&mut rig.app).chain(rig.stations.values_mut());
        for server in servers {
            for id in std::mem::take(&mut server.fresh) {
                let say = answer(&mut rng);
                server.stream(id).say.extend(say);
            }
        }
        quiet += 1;
        for _ in 0..4 {
            let moved = match rng.below(8) {
                0 => rig.caller.speak(),
                1 => rig.app.speak(),
                2 => rig
                    .stations
                    .values_mut()
                    .fold(false, |moved, s| moved | s.speak()),
                3 => rig.deliver_up(),
                4 => rig.deliver_back(),
                5 | 6 => rig.deliver_tunnels(),
                _ => {
                    credit(&mut rig, &mut rng);
                    false
                }
            };
            if moved {
                quiet = 0;
            }
        }
        if left == 0 && quiet > 2 {
            // Everybody who was given a window of nothing gives some at last.
            if rig.caller.own_initial < 5_000 && rng.one_in(2) {
                rig.caller.set_initial(5_000);
                quiet = 0;
            }
            if rig.app.own_initial < 5_000 && rng.one_in(2) {
                rig.app.set_initial(5_000);
                quiet = 0;
            }
            for station in rig.stations.values_mut().filter(|s| s.own_initial < 5_000) {
                station.set_initial(5_000);
                quiet = 0;
            }
            rig.settle();
        }
    }
    compare(&rig);
}

fn credit(rig: &mut Rig, rng: &mut Rng) {
    match rng.below(3) {
        0 => rig.caller.credit(),
        1 => rig.app.credit(),
        _ => rig.stations.values_mut().for_each(Peer::credit),
    }
}

fn compare(rig: &Rig) {
    let mut served: BTreeMap<Vec<u8>, Vec<(&str, u32)>> = BTreeMap::new();
    let servers = std::iter::once(&rig.app).chain(rig.stations.values());
    for server in servers.clone() {
        for (id, stream) in &server.streams {
            let head = stream
                .heard
                .sections
                .first()
                .unwrap_or_else(|| panic!("{id}: no head"));
            served
                .entry(key(head))
                .or_default()
                .push((server.name, *id));
        }
    }
    let by_name = |name: &str, id: u32, head: &[u8]| {
        servers.clone().find(|s| {
            let stream = s.streams.get(&id);
            s.name == name
                && stream.is_some_and(|t| t.heard.sections.first().is_some_and(|h| key(h) == head))
        })
    };
    for (id, stream) in &rig.caller.streams {
        let what = format!("stream {id}");
        let Some(Say::Fields(head, _)) = stream.said.first() else {
            panic!("{what} was never asked");
        };
        let key = key(head);
        let served = served.get_mut(&key).filter(|s| !s.is_empty());
        let refused = stream.heard.reset == Some(7) && stream.heard.sections.is_empty();
        let gave_up = matches!(stream.said.last(), Some(Say::Reset(_)));
        let Some(served) = served else {
            assert!(refused || gave_up, "{what} reached nobody");
            continue;
        };
        let (name, remote) = served.remove(0);
        let server = by_name(name, remote, &key).unwrap();
        let there = &server.streams[&remote];
        let cut = gave_up || there.said.iter().any(|s| matches!(s, Say::Reset(_)));
        same(
            &format!("{what} request at {name}"),
            &there.heard,
            &stream.said,
            cut,
        );
        same(
            &format!("{what} answer of {name}"),
            &stream.heard,
            &there.said,
            cut,
        );
        if !cut {
            let status = there.said.iter().rev().find_map(|s| match s {
                Say::Fields(lines, _) => lines.first().filter(|l| l.0 == b":status").map(|l| &l.1),
                _ => None,
            });
            if let Some(counted) = rig.rules.answered.get(id) {
                assert_eq!(Some(counted.to_string().as_bytes()), status.map(|s| &s[..]));
            }
        }
    }
    let (send, recv) = rig.caller.windows();
    assert!(
        send > 30_000 && recv > 30_000,
        "windows leak: {send} {recv}"
    );
    let (send, _) = rig.app.windows();
    assert!(send > 30_000, "the app's window leaks: {send}");
}

/// A key that tells requests apart.
fn key(head: &[Line]) -> Vec<u8> {
    let parts = head
        .iter()
        .flat_map(|(n, v, _)| [&n[..], b"\0", v, b"\0"].concat());
    parts.collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Toggle {
    Never,
    Always,
    Churn,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1 + exchanges() / 40))]
    #[test]
    fn what_one_end_says_the_other_hears(seed: u64, rules in 0u8..3) {
        let rules = [Toggle::Never, Toggle::Always, Toggle::Churn][usize::from(rules)];
        run(seed, 40, rules);
    }
}

/// Exchanges in which the size of a table was told twice, late or not at all, and in which a window
/// that shrank was taken for one that was overrun.
#[test]
fn tables_and_windows_that_change_in_the_middle_are_kept_to() {
    for (seed, rules) in [
        (8_074_815_570_667_914_118, Toggle::Churn),
        (14_253_569_673_473_946_157, Toggle::Churn),
        (14_021_601_653_633_992_760, Toggle::Always),
    ] {
        run(seed, 40, rules);
    }
}
