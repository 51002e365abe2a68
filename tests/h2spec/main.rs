//! Straight at three servers and through the agent: each case of h2spec, the conformance test of
//! HTTP/2 servers, has the same verdict, and callers that say odd things hear the same.
#![allow(clippy::unwrap_used)] // A test that cannot go on panics.

mod kinds;
mod raw;
mod server;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::process::Command;

use futures_util::StreamExt as _;
use harness::ports;
use harness::programs;
use harness::sidecar::Port;
use harness::system::System;

use crate::raw::{Judge, Script, Transcript};
use crate::server::Server;

/// Cases of h2spec, none of which may be lost on the way.
const CASES: usize = 146;

/// All requests are a workstation's.
const TAKEN: &str = "taken by a workstation";

/// What differs there, and may: Go's server says nothing to callers that half-close their
/// connection, and neither streams nor their priorities are the app's.
const DIFFER_TAKEN: [&str; 4] = [
    "a half-closed connection",
    "a half-closed connection with a body",
    "a stream id that is lower",
    "a stream that depends on itself",
];

/// How often a case or script that differs is tried in all, at the agent and straight in turn: what
/// races in a server is heard in more than one way, and on a machine at full work a silence may be
/// too short, but what the agent does otherwise it does each time.
const ATTEMPTS: usize = 5;

/// Scripts that are played at a time.
const AT_A_TIME: usize = 64;

#[test]
fn every_case_of_h2spec_ends_at_go_as_it_does_without_the_agent() {
    same_verdicts(&Server::go(), 140);
}

#[test]
fn every_case_of_h2spec_ends_at_nginx_as_it_does_without_the_agent() {
    same_verdicts(&Server::nginx(), 115);
}

#[test]
fn every_case_of_h2spec_ends_at_nghttpd_as_it_does_without_the_agent() {
    same_verdicts(&Server::nghttpd(), 144);
}

#[test]
fn what_is_odd_is_answered_by_go_as_without_the_agent() {
    same_answers(&Server::go(), true);
}

#[test]
fn what_is_odd_is_answered_by_nginx_as_without_the_agent() {
    same_answers(&Server::nginx(), false);
}

#[test]
fn what_is_odd_is_answered_by_nghttpd_as_without_the_agent() {
    same_answers(&Server::nghttpd(), false);
}

/// An agent in front of a server.
fn agent_before(server: &Server) -> System {
    System::start_with(
        |sidecar| sidecar.ports = vec![Port::tcp(server.address.port(), ports::free())],
        |command| {
            command.env("LOG_LEVEL", "info");
        },
    )
}

/// Compares verdicts; `most` is how many pass at least straight.
fn same_verdicts(server: &Server, most: usize) {
    let straight = verdicts(server.address);
    assert_eq!(straight.len(), CASES);
    let passed = straight.values().filter(|case| case.verdict == "passed");
    assert!(passed.count() >= most, "{straight:#?}");

    let system = agent_before(server);
    same(&straight, system.address(), "without a rule");
    let nobody = SocketAddr::from(([127, 0, 0, 1], ports::free()));
    let _rule = system.intercept("never", nobody, &["--http-header=x-dev=never"]);
    same(&straight, system.address(), "with a rule");
}

/// Compares what callers hear that play all scripts; where `taken`, also from a workstation that
/// has the same server.
fn same_answers(server: &Server, taken: bool) {
    let scripts = kinds::scripts();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let play = |address, dev| runtime.block_on(play_all(&scripts, address, dev));
    // What races in the server may be heard in more than one way.
    let mut straight = vec![BTreeSet::new(); scripts.len()];
    for _ in 0..3 {
        for (heard, known) in play(server.address, "other").into_iter().zip(&mut straight) {
            known.insert(heard);
        }
    }
    let system = agent_before(server);
    let mut differ = Vec::new();
    let mut compare = |how: &str, dev| {
        let heard = play(system.address(), dev);
        for ((script, mut heard), known) in scripts.iter().zip(heard).zip(&mut straight) {
            for _ in 1..ATTEMPTS {
                if !is_same(script, dev, how, &heard, known) {
                    known.insert(runtime.block_on(raw::play(script, server.address, "other")));
                    heard = runtime.block_on(raw::play(script, system.address(), dev));
                }
            }
            if !is_same(script, dev, how, &heard, known) {
                differ.push(format!(
                    "{}, {how}: {heard:?} is not {known:?}",
                    script.name
                ));
            }
        }
    };
    compare("without a rule", "other");
    let workstation = Server::go();
    let rule = &["--http-header=x-dev=me"];
    let mine = system.intercept("mine", workstation.address, rule);
    compare("with a rule", "other");
    compare("behind a stream that a workstation has served", "me");
    if taken {
        drop(mine);
        let rule = &["--http-path-prefix=/"];
        let _all = system.intercept("all", workstation.address, rule);
        compare(TAKEN, "me");
    }
    assert!(
        differ.is_empty(),
        "{} differ: {}",
        differ.len(),
        differ.join("\n")
    );
}

/// Returns true if something of `known` was heard, as far as the way allows that.
fn is_same(
    script: &Script,
    dev: &str,
    how: &str,
    heard: &Transcript,
    known: &BTreeSet<Transcript>,
) -> bool {
    if dev != "me" || known.contains(heard) {
        return known.contains(heard);
    }
    match script.judge {
        Judge::Agent => heard.is_error() && known.iter().any(Transcript::is_error),
        Judge::Nobody => true,
        // A connection that the app ends: what the workstation has answered is there before.
        Judge::App if how == TAKEN => {
            let mut errors = known.iter().filter(|known| known.is_error());
            DIFFER_TAKEN.contains(&&script.name[..])
                || errors.any(|known| known.goaway == heard.goaway && heard.closed)
        }
        Judge::App => false,
    }
}

async fn play_all(scripts: &[Script], address: SocketAddr, dev: &str) -> Vec<Transcript> {
    let plays = scripts.iter().map(|script| raw::play(script, address, dev));
    futures_util::stream::iter(plays)
        .buffered(AT_A_TIME)
        .collect()
        .await
}

fn same(straight: &Cases, agent: SocketAddr, how: &str) {
    let mut differ: Vec<_> = straight.keys().collect();
    let mut said = String::new();
    for _ in 0..ATTEMPTS {
        let through = verdicts(agent);
        assert!(straight.keys().eq(through.keys()));
        differ.retain(|id| straight[*id].verdict != through[*id].verdict);
        if differ.is_empty() {
            return;
        }
        let pairs = differ.iter().map(|id| (id, &straight[*id], &through[*id]));
        said = format!("{:#?}", pairs.collect::<Vec<_>>());
    }
    panic!("{how}: {said}");
}

/// Cases by section and number.
type Cases = BTreeMap<String, Case>;

/// What h2spec says of one case.
#[derive(Debug)]
struct Case {
    verdict: String,
    /// The last event that was not expected, for the reader: a GOAWAY and the end behind it race.
    #[expect(dead_code, reason = "printed")]
    seen: String,
}

/// What h2spec says of a server, case by case.
fn verdicts(server: SocketAddr) -> Cases {
    let run = Command::new(programs::go("h2spec"))
        .args(["run", &server.to_string()])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    assert!(
        run.status.success(),
        "{}",
        String::from_utf8_lossy(&run.stderr)
    );
    let cases = said.lines().map(|line| {
        let mut parts = line.splitn(3, '\t').map(str::to_owned);
        let mut part = || parts.next().unwrap();
        let (id, verdict, seen) = (part(), part(), part());
        (id, Case { verdict, seen })
    });
    cases.collect()
}
