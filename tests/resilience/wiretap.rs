//! Wiretaps whose workstations stall: callers keep their pace, the agent its memory, and what is
//! missed is counted.

use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use harness::apps::raw;
use harness::caller::Caller;
use harness::system::System;
use harness::wait::{SetAtEnd, until};
use rustix::process::Signal;

use crate::rig::{memory_kib, scale};

/// Maximum growth of the agent's memory while a wiretap stalls.
const MOST_KIB: u64 = 16 << 10;

/// How much later than without it an answer may come: less than any time-out of the agent's, more
/// than a busy machine needs.
const MOST_LATER_DELAY: Duration = Duration::from_millis(1500);

/// Delay after which drops are counted.
const COUNT_DELAY: Duration = Duration::from_secs(3);

/// A server that takes connections and reads nothing.
fn deaf() -> SocketAddr {
    let held: Mutex<Vec<TcpStream>> = Mutex::default();
    raw(move |stream| held.lock().unwrap().push(stream))
}

/// Callers with small and large requests, on kept and on new connections; each answer is the app's.
struct Load {
    stop: AtomicBool,
    answers: AtomicU64,
    /// Longest time to an answer in the present phase, us.
    longest: AtomicU64,
}

/// What callers had in one phase.
struct Phase {
    per_second: f64,
    longest: Duration,
}

impl Load {
    fn call(&self, number: usize, address: SocketAddr) {
        let body = vec![
            b'x';
            if number.is_multiple_of(2) {
                256 << 10
            } else {
                0
            }
        ];
        while !self.stop.load(Ordering::Relaxed) {
            let mut caller = Caller::connect(address).unwrap();
            for _ in 0..20 {
                let asked = Instant::now();
                let answer = caller.post("/bytes/5", &[], &body);
                let took = u64::try_from(asked.elapsed().as_micros()).unwrap();
                self.longest.fetch_max(took, Ordering::Relaxed);
                let answer = answer.unwrap_or_else(|error| panic!("caller {number}: {error}"));
                assert_eq!((answer.status, answer.by()), (200, "app"));
                self.answers.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn during(&self, time: Duration, mut watch: impl FnMut()) -> Phase {
        self.longest.store(0, Ordering::Relaxed);
        let (before, begin) = (self.answers.load(Ordering::Relaxed), Instant::now());
        while begin.elapsed() < time {
            watch();
            std::thread::sleep(Duration::from_millis(50));
        }
        let answers = self.answers.load(Ordering::Relaxed) - before;
        Phase {
            per_second: answers as f64 / begin.elapsed().as_secs_f64(),
            longest: Duration::from_micros(self.longest.load(Ordering::Relaxed)),
        }
    }
}

/// Puts load on an app beside a wiretap, which `stall` then stalls if it did not from the
/// beginning.
fn stalled(what: &str, flags: &[&str], freeze: bool) {
    let time = Duration::from_secs(scale("BOUNDED_SECONDS", 3));
    let system = System::start();
    let load = Load {
        stop: AtomicBool::new(false),
        answers: AtomicU64::new(0),
        longest: AtomicU64::new(0),
    };
    std::thread::scope(|scope| {
        for number in 0..4 {
            let (load, address) = (&load, system.address());
            scope.spawn(move || load.call(number, address));
        }
        let _stop = SetAtEnd(&load.stop);
        let answered = |least| (load.answers.load(Ordering::Relaxed) > least).then_some(());
        until("the callers", || answered(100));
        let alone = load.during(Duration::from_secs(1), || {});
        let before = memory_kib(&system.agent.process);
        let tap = system.attach("wiretap", "tap", deaf(), flags);
        if freeze {
            tap.signal(Signal::STOP);
        }
        let mut most = 0;
        let mut watch = || most = most.max(memory_kib(&system.agent.process));
        // A client that stands still for long is taken for gone, and its wiretap with its count ends.
        let mut beside = load.during(COUNT_DELAY.min(time), &mut watch);
        let dropped = system.agent.stat(".copies_dropped");
        if time > COUNT_DELAY {
            let later = load.during(time - COUNT_DELAY, &mut watch);
            beside.longest = beside.longest.max(later.longest);
        }
        if freeze {
            tap.signal(Signal::CONT);
        }
        let grown = most.saturating_sub(before);
        eprintln!(
            "wiretap {what} {flags:?}: {time:?} stalled: agent {before} KiB, at most {grown} KiB more; \
            {dropped} copies dropped; callers {:.0}/s alone, {:.0}/s beside it, the longest answer in \
            {:?} and {:?}",
            alone.per_second, beside.per_second, alone.longest, beside.longest
        );
        assert!(
            beside.longest < alone.longest + MOST_LATER_DELAY,
            "an answer took {:?} beside it, {:?} at most before",
            beside.longest,
            alone.longest
        );
        assert!(dropped > 0, "nothing was dropped: it did not stall");
        assert!(
            grown < MOST_KIB,
            "the agent has grown from {before} KiB by {grown} KiB"
        );
    });
    assert_eq!(system.app.failures(), [""; 0]);
}

#[test]
fn a_wiretap_that_reads_nothing_costs_counted_drops_and_little_memory() {
    stalled("that reads nothing", &["--no-direct"], false);
    stalled("that reads nothing", &[], false);
}

#[test]
fn a_wiretap_whose_client_stands_still_costs_counted_drops_and_little_memory() {
    stalled("that stands still", &["--no-direct"], true);
    stalled("that stands still", &[], true);
}
