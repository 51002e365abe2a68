//! Shutdown under load: no request fails, and exchanges that do not end are cut at the deadline and
//! counted.

use std::io::{Read, Write};
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use harness::apps::{App, field};
use harness::caller::Caller;
use harness::ports;
use harness::sidecar::Port;
use harness::system::System;
use harness::wait::until;
use rustix::process::Signal;

use crate::mixed_load::{GRPC, HTTP, Kind, RELAYED, Testbed, WEBSOCKET};

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
                let headers = if n == 0 {
                    &[("x-dev", "a")][..]
                } else {
                    &[][..]
                };
                let mut caller = Caller::connect(address).unwrap();
                loop {
                    let answer = caller
                        .get("/slow/5", headers)
                        .unwrap_or_else(|e| panic!("caller {n}: {e}"));
                    assert_eq!(answer.status, 200);
                    answered.fetch_add(1, Ordering::Relaxed);
                    if field(&answer.head, "connection").is_some_and(|c| c == "close") {
                        assert!(
                            told.load(Ordering::Relaxed),
                            "nobody has asked the agent to leave"
                        );
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
            let answer = Caller::connect(system.address())
                .unwrap()
                .get("/", &[])
                .unwrap();
            assert_eq!(answer.by(), "app", "the lame duck still answers");
        }
    });
    let status = system.agent.process.exit();
    assert_eq!(status.code(), Some(0));
    assert_eq!(parted.load(Ordering::Relaxed), 4);
    assert!(answered.load(Ordering::Relaxed) > 40);
    assert!(system.agent.process.lines("connections cut").is_empty());
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
    assert!(
        took >= Duration::from_secs(2) && took < Duration::from_secs(15),
        "{took:?}"
    );
    assert_eq!(system.agent.process.lines("connections cut").len(), 1);
    assert!(
        stuck.answer().is_err(),
        "a cut answer must not look complete"
    );
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let system = leaving_soon("drain: {lameDuck: 60s, grace: 60s}");
    let mut caller = Caller::connect(system.address()).unwrap();
    assert_eq!(caller.get("/", &[]).unwrap().status, 200);
    system.agent.process.signal(Signal::TERM);
    system.agent.process.line("shutdown: not ready");
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
    assert!(
        told.elapsed() < Duration::from_secs(20),
        "{:?}",
        told.elapsed()
    );
}

#[test]
fn nobody_in_a_crowd_loses_anything_when_the_agent_leaves() {
    let testbed = Arc::new(Testbed::start("drain: {lameDuck: 2s, grace: 20s}", |_| {}));
    let agent = &testbed.system.agent.process;
    let mixed_load = testbed.start_load();
    mixed_load.busy(2);
    mixed_load.expect_closing("shutdown: no longer accepting");
    let (before, told) = (mixed_load.answered(), Instant::now());
    agent.signal(Signal::TERM);
    agent.line("shutdown: no longer accepting");
    let lame_duck = told.elapsed();
    assert!(lame_duck >= Duration::from_secs(2), "{lame_duck:?}");
    let during = mixed_load.answered();
    for (kind, (now, before)) in Kind::ALL.iter().zip(during.iter().zip(&before)) {
        // A stream may take longer than that.
        assert!(
            *kind == Kind::Streaming || now > before,
            "the lame duck serves {kind:?}: {before} -> {now}"
        );
    }
    // Streams and WebSockets that were begun go on.
    std::thread::sleep(Duration::from_secs(1));
    let (answered, repeated) = mixed_load.stop();
    let everybody_left = told.elapsed();
    let status = agent.exit();
    let took = told.elapsed();
    println!(
        "answered {before:?} before, {answered:?} in all, {repeated} repeated; no longer accepting \
        after {lame_duck:.2?}, nobody there after {everybody_left:.2?}, ended after {took:.2?}"
    );
    assert_eq!(status.code(), Some(0));
    assert_eq!(agent.lines("connections cut"), [""; 0]);
    assert_eq!(agent.lines("ended=\"drained\""), [""; 0]);
    assert!(
        took < everybody_left + Duration::from_secs(10),
        "it ends when everybody has left: {took:?}"
    );
}

#[test]
fn what_never_ends_is_cut_at_the_deadline_whatever_it_is_and_counted() {
    let testbed = Arc::new(Testbed::start("drain: {lameDuck: 1s, grace: 2s}", |_| {}));
    let agent = &testbed.system.agent.process;
    let stuck = [
        (HTTP, false),
        (HTTP, true),
        (GRPC, false),
        (GRPC, true),
        (RELAYED, false),
        (WEBSOCKET, false),
        (WEBSOCKET, true),
    ];
    let endless: Vec<_> = stuck.map(|(port, dev)| testbed.hold(port, dev)).into();
    let told = Instant::now();
    agent.signal(Signal::TERM);
    let status = agent.exit();
    let took = told.elapsed();
    assert_eq!(status.code(), Some(1), "something was cut");
    assert!(
        took >= Duration::from_secs(3) && took < Duration::from_secs(15),
        "{took:?}"
    );
    let cut = agent.lines("connections cut");
    assert!(
        cut.len() == 1 && cut[0].contains(&format!("connections={}", stuck.len())),
        "{cut:?}"
    );
    assert_eq!(agent.lines("ended=\"drained\"").len(), stuck.len());
    for (endless, (port, dev)) in endless.into_iter().zip(stuck) {
        assert!(
            endless.breaks(),
            "port {port}, dev {dev}: what was cut must not look complete"
        );
    }
}

/// A UDP app that answers with what it was sent.
fn udp_echo() -> std::net::SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut buf = [0; 64];
        while let Ok((n, from)) = socket.recv_from(&mut buf) {
            let _ = socket.send_to(&buf[..n], from);
        }
    });
    address
}

/// An agent with a UDP port beside the usual one, and a socket whose datagrams its app answers.
fn with_udp() -> (System, UdpSocket) {
    let app = udp_echo();
    let system = System::start_with(
        |sidecar| {
            sidecar.extra = "drain: {lameDuck: 500ms, grace: 3s}".to_owned();
            sidecar.ports.push(Port {
                protocol: "UDP",
                ..Port::tcp(app.port(), ports::free())
            });
        },
        |_| {},
    );
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    socket
        .connect(("127.0.0.1", system.agent.sidecar.ports[1].agent))
        .unwrap();
    until("an answer", || answers(&socket).then_some(()));
    (system, socket)
}

fn answers(socket: &UdpSocket) -> bool {
    socket
        .send(b"hello")
        .is_ok_and(|_| socket.recv(&mut [0; 64]).is_ok())
}

#[test]
fn datagrams_that_never_cease_do_not_hold_the_agent_longer_than_the_grace() {
    let (system, socket) = with_udp();
    let told = Instant::now();
    system.agent.process.signal(Signal::TERM);
    let mut answered = 0;
    let status = until("the end", || {
        answered += usize::from(answers(&socket));
        system.agent.process.ended()
    });
    let took = told.elapsed();
    assert_eq!(status.code(), Some(1), "the conversation was cut");
    assert!(
        took >= Duration::from_millis(3500) && took < Duration::from_secs(15),
        "{took:?}"
    );
    assert!(answered > 100, "until then it was answered: {answered}");
}

#[test]
fn a_conversation_in_datagrams_that_pauses_is_over_and_strangers_do_not_hold_the_agent() {
    let (system, _socket) = with_udp();
    let port = system.agent.sidecar.ports[1].agent;
    let told = Instant::now();
    system.agent.process.signal(Signal::TERM);
    system.agent.process.line("shutdown: no longer accepting");
    let status = until("the end", || {
        let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
        let _ = stranger.send_to(b"hello", ("127.0.0.1", port));
        system.agent.process.ended()
    });
    assert_eq!(status.code(), Some(0));
    assert!(
        told.elapsed() < Duration::from_secs(3),
        "{:?}",
        told.elapsed()
    );
}
