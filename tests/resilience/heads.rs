//! Request heads that come a byte at a time, on many connections at once.

use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use harness::caller::Caller;
use harness::system::System;
use harness::wait::{SetAtEnd, until};

use crate::rig::{connect, counted, memory_kib, scale};

/// Deadline of a head in seconds, after which the agent relays it opaquely.
const DEADLINE: u64 = 60;

#[test]
fn heads_that_drip_cost_little_and_slow_nobody_else() {
    let connections = scale("SLOW_HEADS", 300);
    let time = scale("SLOW_HEADS_SECONDS", 3);
    let system = System::start();
    let laptop = harness::apps::App::start("laptop");
    let _client = system.intercept("mine", laptop.address(), &["--http-header=x-dev=a"]);
    let (stop, answered) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut caller = Caller::connect(system.address()).unwrap();
            while !stop.load(Ordering::Relaxed) {
                let headers: &[_] = if answered.fetch_add(1, Ordering::Relaxed) % 2 == 0 {
                    &[("x-dev", "a")]
                } else {
                    &[]
                };
                assert_eq!(caller.get("/", headers).unwrap().status, 200);
            }
        });
        let _stop = SetAtEnd(&stop);
        until("the caller", || {
            (answered.load(Ordering::Relaxed) > 50).then_some(())
        });
        let rate = |during: &mut dyn FnMut()| {
            let (before, begin) = (answered.load(Ordering::Relaxed), Instant::now());
            during();
            (answered.load(Ordering::Relaxed) - before) as f64 / begin.elapsed().as_secs_f64()
        };
        let undisturbed = rate(&mut || std::thread::sleep(Duration::from_secs(1)));
        let before = memory_kib(&system.agent.process);
        let mut slow: Vec<TcpStream> = (0..connections)
            .map(|_| connect(system.address()))
            .collect();
        for stream in &mut slow {
            stream
                .write_all(b"GET /slow/0 HTTP/1.1\r\nx-dev: a\r\nx-slow: ")
                .unwrap();
        }
        let mut most = 0;
        let meanwhile = rate(&mut || {
            let begin = Instant::now();
            while begin.elapsed() < Duration::from_secs(time) {
                slow.iter_mut()
                    .for_each(|stream| stream.write_all(b"a").unwrap());
                most = most.max(memory_kib(&system.agent.process));
                std::thread::sleep(Duration::from_millis(200));
            }
        });
        let each = most.saturating_sub(before) / connections;
        eprintln!(
            "{connections} heads drip for {time} s: agent {before} KiB, at most {} KiB more \
            ({each} KiB each); others {undisturbed:.0}/s before, {meanwhile:.0}/s meanwhile",
            most.saturating_sub(before)
        );
        assert!(each <= 40, "{each} KiB for a head of a few hundred bytes");
        if time > DEADLINE {
            counted(&system, ".limits.head_time", connections);
        }
        // A head that comes to its end is answered all the same: in time by whom it asks for, late
        // by the app.
        let by = if time > DEADLINE { "app" } else { "laptop" };
        for mut stream in slow {
            stream.write_all(b"\r\n\r\n").unwrap();
            let head = harness::apps::read_head(&mut std::io::BufReader::new(stream))
                .unwrap()
                .unwrap();
            assert_eq!(harness::apps::field(&head, "x-answered-by"), Some(by));
        }
    });
}
