//! Leaving while everybody is busy: nobody's request fails, what is stuck is cut at the deadline and counted.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use harness::apps::{App, field};
use harness::caller::Caller;
use harness::system::System;
use rustix::process::Signal;

fn leaving_soon(extra: &'static str) -> System {
    System::start_with(|sidecar| sidecar.extra = extra.to_owned(), |_| {})
}

#[test]
fn nobodys_request_fails_while_the_agent_leaves() {
    let system = leaving_soon("drain: {lameDuck: 2s, grace: 10s}");
    let local = App::start("local");
    let _intercept = system.intercept("mine", local.address(), &["--http-header=x-dev=a"]);
    let (told, parted, answered) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        // Callers on kept connections go on until an answer says that it is the last one.
        for n in 0..4 {
            let (told, parted, answered, address) = (&told, &parted, &answered, system.address());
            scope.spawn(move || {
                let headers = if n == 0 { &[("x-dev", "a")][..] } else { &[][..] };
                let mut caller = Caller::connect(address).unwrap();
                loop {
                    let answer = caller.get("/slow/5", headers).unwrap_or_else(|e| panic!("caller {n}: {e}"));
                    assert_eq!(answer.status, 200);
                    answered.fetch_add(1, Ordering::Relaxed);
                    if field(&answer.head, "connection").is_some_and(|c| c == "close") {
                        assert!(told.load(Ordering::Relaxed), "nobody has asked the agent to leave");
                        parted.fetch_add(1, Ordering::Relaxed);
                        return;
                    }
                }
            });
        }
        // Long answers that span the whole end, one of them in a tunnel.
        for headers in [&[][..], &[("x-dev", "a")][..]] {
            let (told, address) = (&told, system.address());
            let mut caller = Caller::connect(address).unwrap();
            caller.send("GET", "/drip/40/100", headers, b"").unwrap();
            scope.spawn(move || {
                let answer = caller.answer().unwrap();
                assert!(answer.status == 200 && told.load(Ordering::Relaxed));
            });
        }
        // New callers come while the lame-duck time lasts.
        std::thread::sleep(Duration::from_millis(300));
        told.store(true, Ordering::Relaxed);
        system.agent.process.signal(Signal::TERM);
        let came = Instant::now();
        while came.elapsed() < Duration::from_millis(1200) {
            let answer = Caller::connect(system.address()).unwrap().get("/", &[]).unwrap();
            assert_eq!(answer.by(), "app", "the lame duck still answers");
        }
    });
    let status = system.agent.process.exit();
    assert_eq!(status.code(), Some(0));
    assert_eq!(parted.load(Ordering::Relaxed), 4);
    assert!(answered.load(Ordering::Relaxed) > 40);
    assert!(system.agent.process.lines("cut what had not ended").is_empty());
}

#[test]
fn an_upgraded_connection_may_finish_and_a_stuck_one_is_cut_at_the_deadline() {
    let system = leaving_soon("drain: {lameDuck: 500ms, grace: 1500ms}");
    let mut stuck = Caller::connect(system.address()).unwrap();
    stuck.send("GET", "/slow/60000", &[], b"").unwrap();
    // Heard by the app before the end begins.
    let mut other = Caller::connect(system.address()).unwrap();
    assert_eq!(other.get("/", &[]).unwrap().status, 200);
    let told = Instant::now();
    system.agent.process.signal(Signal::TERM);
    let status = system.agent.process.exit();
    let took = told.elapsed();
    assert_eq!(status.code(), Some(1), "something was cut");
    assert!(took >= Duration::from_secs(2) && took < Duration::from_secs(15), "{took:?}");
    assert_eq!(system.agent.process.lines("cut what had not ended").len(), 1);
    assert!(stuck.answer().is_err(), "a cut answer must not look complete");
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let system = leaving_soon("drain: {lameDuck: 60s, grace: 60s}");
    let mut caller = Caller::connect(system.address()).unwrap();
    assert_eq!(caller.get("/", &[]).unwrap().status, 200);
    system.agent.process.signal(Signal::TERM);
    system.agent.process.line("leaving: not ready");
    system.agent.process.signal(Signal::TERM);
    assert_eq!(system.agent.process.exit().code(), Some(1));
    let mut rest = Vec::new();
    let _ = caller.stream().write_all(b"x");
    let _ = caller.stream().read_to_end(&mut rest);
    assert!(rest.is_empty());
}

#[test]
fn an_app_that_has_gone_first_lets_the_agent_leave_at_once() {
    let system = leaving_soon("drain: {lameDuck: 60s, grace: 60s}");
    system.app.stop();
    let _ = std::net::TcpStream::connect(system.app.address());
    let told = Instant::now();
    system.agent.process.signal(Signal::TERM);
    assert_eq!(system.agent.process.exit().code(), Some(0));
    assert!(told.elapsed() < Duration::from_secs(20), "{:?}", told.elapsed());
}
