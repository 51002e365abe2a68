//! Missing peers: a workstation that does not answer leaves its requests to the app; an app that is
//! down behaves as without an agent.

use std::io::{ErrorKind, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use harness::apps::{App, raw, raw_on};
use harness::caller::{Caller, get};
use harness::ports;
use harness::process::Process;
use harness::system::System;
use harness::wait::until;
use rustix::process::Signal;

use crate::rig::{Way, connect, counted, each, in_front_of, patient, read_out, reset};

const MATCHING: &[(&str, &str)] = &[("x-dev", "a")];
/// Time for opening a tunnel and the dial, with a margin for slow machines.
const FALLBACK_TIMEOUT: Duration = Duration::from_secs(15);

/// The reasons under which requests have gone to the app, summed up.
fn failed_open(system: &System) -> u64 {
    [
        "no_tunnel",
        "dial_rejected",
        "dial_timeout",
        "lost",
        "skipped",
    ]
    .iter()
    .map(|reason| system.agent.stat(&format!(".fail_open.{reason}")))
    .sum()
}

/// Returns log lines above level debug.
fn said(system: &System, text: &str) -> Vec<String> {
    system
        .agent
        .process
        .lines(text)
        .into_iter()
        .filter(|line| line.contains(" INFO "))
        .collect()
}

/// Several callers at once ask for the workstation, which does not answer: they all get the app, in
/// time, and are counted.
fn the_app_steps_in(system: &System, why: &str) {
    let before = failed_open(system);
    the_app_answers_in_time(system, why);
    assert_eq!(failed_open(system) - before, 4, "{why}");
    the_failure_is_said(system, why);
}

fn the_app_answers_in_time(system: &System, why: &str) {
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let answer = Caller::connect(system.address())
                    .unwrap()
                    .post("/", MATCHING, b"a body")
                    .unwrap();
                assert_eq!((answer.status, answer.by()), (200, "app"), "{why}");
                assert!(answer.body.ends_with(b"a body"));
            });
        }
    });
    let took = begin.elapsed();
    assert!(took < FALLBACK_TIMEOUT, "{why}: {took:?}");
    eprintln!("{why}: four requests went to the app within {took:?}");
}

fn the_failure_is_said(system: &System, why: &str) {
    let lines = until("the failure to be said", || {
        let lines = said(system, "workstation not reached: the app");
        (!lines.is_empty()).then_some(lines)
    });
    assert!(lines.len() <= 3, "one in ten seconds, {why}: {lines:?}");
    assert!(
        lines
            .iter()
            .all(|line| line.contains("intercept=") && line.contains("reason=")),
        "{lines:?}"
    );
}

fn intercepted(way: Way, laptop: SocketAddr) -> (System, Process) {
    let system = System::start();
    let client = system.intercept("mine", laptop, &way.flags(&["--http-header=x-dev=a"]));
    (system, client)
}

#[test]
fn a_client_that_is_stopped_before_it_dials_leaves_its_requests_to_the_app() {
    each(&[Way::Direct, Way::Manager], |way| {
        let laptop = App::start("laptop");
        let (system, client) = intercepted(way, laptop.address());
        client.signal(Signal::STOP);
        the_app_steps_in(&system, &format!("stopped, {way:?}"));
        client.signal(Signal::CONT);
        until("the laptop to answer", || {
            (get(system.address(), "/", MATCHING).unwrap().by() == "laptop").then_some(())
        });
    });
}

#[test]
fn a_client_that_is_killed_while_it_is_asked_leaves_its_requests_to_the_app() {
    each(&[Way::Direct, Way::Manager], |way| {
        let laptop = App::start("laptop");
        let (system, client) = intercepted(way, laptop.address());
        client.signal(Signal::STOP);
        let mut caller = Caller::connect(system.address()).unwrap();
        caller.send("GET", "/", MATCHING, b"").unwrap();
        counted(&system, ".downstream_cx_total", 1);
        client.kill();
        assert_eq!(
            caller.answer().unwrap().by(),
            "app",
            "asked before the kill, {way:?}"
        );
        // The manager may have suspended the intercept by now: then these are not failures that count.
        let why = format!("killed, {way:?}");
        the_app_answers_in_time(&system, &why);
        the_failure_is_said(&system, &why);
        assert!(failed_open(&system) >= 1, "{why}");
        assert_eq!(laptop.served(), 0);
    });
}

#[test]
fn a_local_server_that_is_not_there_leaves_its_requests_to_the_app() {
    each(&[Way::Direct, Way::Manager], |way| {
        let port = ports::free();
        let (system, _client) = intercepted(way, SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        the_app_steps_in(&system, &format!("nothing listens, {way:?}"));
        // The first one is dialled for; while that dial has failed, others skip the workstation.
        let rejected = system.agent.stat(".fail_open.dial_rejected");
        assert_eq!(rejected + system.agent.stat(".fail_open.skipped"), 4);
        assert!(rejected >= 1);
        // The same connection gets the workstation once it is there.
        let mut caller = Caller::connect(system.address()).unwrap();
        assert_eq!(caller.get("/", MATCHING).unwrap().by(), "app");
        let _laptop = App::on(
            "laptop",
            TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap(),
        );
        until("the laptop to answer", || {
            (caller.get("/", MATCHING).unwrap().by() == "laptop").then_some(())
        });
    });
}

#[test]
fn connections_of_a_port_that_was_taken_whole_go_to_the_app_unless_they_are_under_way() {
    let app = raw(|mut stream| {
        let _ = stream.write_all(b"app\n");
    });
    each(&[Way::Direct, Way::Manager], |way| {
        let system = in_front_of(app, |_| {});
        let laptop = raw(|mut stream| {
            let _ = stream.write_all(b"laptop\n");
        });
        let client = system.intercept("mine", laptop, &way.flags(&[]));
        let who = || read_out(&mut connect(system.address()));
        assert_eq!(who(), (b"laptop\n".to_vec(), None), "{way:?}");
        client.signal(Signal::STOP);
        let begin = Instant::now();
        let app = (b"app\n".to_vec(), None);
        let cut = (vec![], Some(ErrorKind::ConnectionReset));
        let ended: Vec<_> = std::thread::scope(|scope| {
            let callers: Vec<_> = (0..4).map(|_| scope.spawn(who)).collect();
            callers.into_iter().map(|it| it.join().unwrap()).collect()
        });
        assert!(
            begin.elapsed() < FALLBACK_TIMEOUT,
            "{way:?}: {:?}",
            begin.elapsed()
        );
        // The manager opens a tunnel at once, and bytes go into it: what the first caller sent is lost
        // with it. Those behind it wait for the dial.
        let lost = ended.iter().filter(|it| **it == cut).count();
        assert_eq!(lost, usize::from(way == Way::Manager), "{ended:?}");
        let served = ended.iter().filter(|it| **it == app).count();
        assert_eq!(served + lost, 4, "{way:?}: {ended:?}");
        let fell_back: u64 = ["dial_timeout", "skipped"]
            .iter()
            .map(|why| system.agent.stat(&format!(".fail_open.{why}")))
            .sum();
        assert_eq!(fell_back, served as u64, "{way:?}");
        assert_eq!(system.agent.stat(".tunnel_failures"), 1, "{way:?}");
        the_failure_is_said(&system, &format!("asleep, {way:?}"));
        client.signal(Signal::CONT);
        until("the laptop to answer", || {
            (who().0 == b"laptop\n").then_some(())
        });
    });
}

/// Sends a request and says how the connection ended.
fn refused(address: SocketAddr, request: &[u8]) -> Option<ErrorKind> {
    // It may be refused before all is said.
    let mut stream = match TcpStream::connect(address) {
        Ok(stream) => stream,
        Err(error) => return Some(error.kind()),
    };
    // Whichever call comes first behind the reset is told of it, and only that one.
    if let Err(error) = stream.write_all(request) {
        return Some(error.kind());
    }
    let (answer, error) = read_out(&mut stream);
    assert_eq!(String::from_utf8_lossy(&answer), "");
    error
}

#[test]
fn an_app_that_is_away_is_a_reset_and_one_that_comes_back_is_used() {
    let port = ports::free();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let system = in_front_of(address, |_| {});
    let laptop = App::start("laptop");
    let all_are_refused = || {
        for request in [&b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"[..], b"\0opaque", b""] {
            let error = refused(system.address(), request);
            assert_eq!(
                error,
                Some(ErrorKind::ConnectionReset),
                "{}",
                request.escape_ascii()
            );
        }
    };
    all_are_refused();
    assert!(system.agent.stat(".upstream_cx_connect_fail") >= 3);
    let client = system.intercept("mine", laptop.address(), &["--http-header=x-dev=a"]);
    for request in [&b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"[..], b"\0opaque"] {
        assert_eq!(
            refused(system.address(), request),
            Some(ErrorKind::ConnectionReset),
            "{}",
            request.escape_ascii()
        );
    }
    // The workstation needs no app.
    let mut caller = Caller::connect(system.address()).unwrap();
    assert_eq!(caller.get("/", MATCHING).unwrap().by(), "laptop");
    let app = App::on("app", TcpListener::bind(address).unwrap());
    assert_eq!(
        caller.get("/", &[]).unwrap().by(),
        "app",
        "on the connection that was open before"
    );
    assert_eq!(get(system.address(), "/", &[]).unwrap().by(), "app");
    assert!(client.terminate().success());
    drop(caller);
    app.stop();
    until("the app's port to be closed", || {
        TcpStream::connect(address).is_err().then_some(())
    });
    all_are_refused();
}

#[test]
fn an_app_that_dies_amid_an_answer_breaks_it_and_the_next_one_is_asked_after_that() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    raw_on(listener, |mut stream| {
        patient(&stream);
        let mut reader = std::io::BufReader::new(stream.try_clone().unwrap());
        let Ok(Some(head)) = harness::apps::read_head(&mut reader) else {
            return;
        };
        let dies = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let (framing, body): (_, &[u8]) = match dies.split('/').nth(1) {
            Some("chunked") => ("transfer-encoding: chunked", b"5\r\nhello\r\n"),
            Some("length") => ("content-length: 1000", b"hello"),
            _ => ("content-length: 0", b""),
        };
        let _ = stream.write_all(
            &[
                format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n").as_bytes(),
                body,
            ]
            .concat(),
        );
        // The answer is to be on its way before the reset overtakes it.
        std::thread::sleep(Duration::from_millis(200));
        if dies.ends_with("/reset") {
            reset(&stream);
        }
    });
    let system = in_front_of(address, |_| {});
    for intercepted in [false, true] {
        let laptop = App::start("laptop");
        let _client = intercepted
            .then(|| system.intercept("mine", laptop.address(), &["--http-header=x-dev=a"]));
        for framing in ["length", "chunked"] {
            for (end, expected) in [("reset", Some(ErrorKind::ConnectionReset)), ("close", None)] {
                let seen = [address, system.address()].map(|address| {
                    let mut stream = connect(address);
                    write!(stream, "GET /{framing}/{end} HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
                    let (answer, error) = read_out(&mut stream);
                    (String::from_utf8(answer).unwrap(), error)
                });
                assert_eq!(seen[0], seen[1], "without the agent, and with it");
                assert_eq!(seen[1].1, expected);
                assert_eq!(get(system.address(), "/", &[]).unwrap().status, 200);
            }
        }
    }
}
