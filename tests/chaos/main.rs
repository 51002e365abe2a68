//! Chaos: callers of five protocols, and hostile ones, use an agent while a seeded schedule kills,
//! stops and cuts off everything around it. Each request is accounted for: at the right place,
//! exactly once, or failed only where a fault allows it.
//!
//! `CHAOS_SECONDS` sets the length, `CHAOS_SEED` the schedule; `make soak HOURS=2` is the long form.
//! Everything runs in a network namespace of its own, whose packets the schedule may drop.

#![allow(clippy::unwrap_used)] // A test that meets what it does not expect may say so by panicking.

mod callers;
mod faults;
mod ledger;
mod noise;
mod seats;
mod servers;

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use harness::pace::anonymous_kib;
use harness::pod::Space;
use harness::random::Random;
use harness::wait::{SetAtEnd, until};

use crate::callers::Kind;
use crate::ledger::Ledger;
use crate::seats::Testbed;

/// Length of the run in the suite.
const SHORT: u64 = 12;
/// The schedule of the suite; every other number is as good.
const SEED: u64 = 20_261_129;
/// Threads of each protocol that call on behalf of nobody, and as many for each developer.
const CALLERS: usize = 2;
/// Memory that the agent may need beyond what it had after its first seconds, kB.
const MAX_GROWTH: u64 = 16 * 1024;
/// Descriptors beyond those at the start that may be left when the callers are gone: connections
/// to apps that are kept for the next request, and the clients' own.
const MAX_DESCRIPTORS_LEFT: usize = 64;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().expect(name))
}

#[test]
fn nothing_is_lost_while_everything_around_fails() {
    let length = Duration::from_secs(setting("CHAOS_SECONDS", SHORT));
    let seed = setting("CHAOS_SEED", SEED);
    Space::new().run(|| run(length, seed));
}

fn run(length: Duration, seed: u64) {
    let ledger = Arc::new(Ledger::default());
    let testbed = Testbed::start(&ledger);
    let (finish, calm) = (AtomicBool::new(false), AtomicBool::new(false));
    let agent = testbed.agent.process.pid();
    let (mut before, mut after) = (0, 0);
    std::thread::scope(|scope| {
        let _end = (SetAtEnd(&calm), SetAtEnd(&finish));
        for kind in Kind::ALL {
            for seat in std::iter::once(None).chain(testbed.seats_of(kind).map(Some)) {
                for _ in 0..CALLERS {
                    let (testbed, finish) = (&testbed, &finish);
                    scope.spawn(move || callers::call(testbed, kind, seat, finish));
                }
            }
        }
        scope.spawn(|| noise::make(&testbed, Random::new(seed), &finish));
        testbed.all_here();
        // Every way has been used: growth counts from here.
        before = anonymous_kib(agent);
        std::thread::scope(|faults| {
            faults.spawn(|| faults::of_the_manager(&testbed, Random::new(seed ^ 1), &calm));
            faults.spawn(|| faults::of_developers(&testbed, Random::new(seed ^ 2), &calm));
            let began = Instant::now();
            while began.elapsed() < length && ledger.problems().is_empty() {
                std::thread::sleep(Duration::from_millis(50));
            }
            calm.store(true, Ordering::Relaxed);
        });
        testbed.all_here();
        after = anonymous_kib(agent);
        assert!(ledger.everywhere(testbed.seats.len()));
    });
    let summary = summary(&testbed, seed, before, after);
    println!("{summary}");
    testbed.no_panics();
    let problems = ledger.problems();
    assert!(problems.is_empty(), "{summary}\n{}", ledger.history());
    assert!(!ledger.is_impatient(), "{summary}");
    assert!(after < before + MAX_GROWTH, "the agent grew: {summary}");
    // Connections of callers that are gone are closed, whatever happened to them.
    until("the agent to close its connections", || {
        (testbed.agent_descriptors() < testbed.descriptors + MAX_DESCRIPTORS_LEFT).then_some(())
    });
}

fn summary(testbed: &Testbed, seed: u64, before: u64, after: u64) -> String {
    let mut text = format!("seed {seed}: {}\nfaults:", testbed.ledger.summary());
    for (name, count) in &*testbed.faults.lock().unwrap() {
        let _ = write!(text, " {name} {count},");
    }
    let _ = write!(text, "\nagent's memory: {before} kB, then {after} kB");
    text
}
