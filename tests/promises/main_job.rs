//! The main job: requests with a developer's header reach that developer, all others the app.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use harness::apps::App;
use harness::caller::{Caller, get};
use harness::process::Process;
use harness::system::System;
use harness::wait::{SetAtEnd, until};

/// Requests in one run, a third for each destination.
fn requests() -> usize {
    std::env::var("MAIN_JOB_REQUESTS")
        .ok()
        .and_then(|count| count.parse().ok())
        .unwrap_or(10_000)
}

/// The app and two developers with intercepts, all of them counting.
struct Trio {
    system: System,
    laptops: [App; 2],
    intercepts: [Process; 2],
}

impl Trio {
    fn start(flags: &[&str]) -> Self {
        let system = System::start();
        let laptops = [App::start("laptop-a"), App::start("laptop-b")];
        let intercept = |name: &str, laptop: &App| {
            let header = format!("--http-header=x-dev={name}");
            system.intercept(
                name,
                laptop.address(),
                &[&[header.as_str()], flags].concat(),
            )
        };
        let intercepts = [intercept("a", &laptops[0]), intercept("b", &laptops[1])];
        Self {
            system,
            laptops,
            intercepts,
        }
    }

    /// Returns the number of requests each has answered.
    fn counts(&self) -> [usize; 3] {
        [&self.system.app, &self.laptops[0], &self.laptops[1]]
            .map(|app| usize::try_from(app.served()).unwrap())
    }
}

/// Request number `number` with the header of its turn, in changing case; checks who answers.
fn one_in_turn(caller: &mut Caller, number: usize) {
    let name = ["x-dev", "X-Dev", "X-DEV"][number / 3 % 3];
    let (headers, expected): (&[_], _) = match number % 3 {
        0 => (&[], "app"),
        1 => (&[(name, "a")], "laptop-a"),
        _ => (&[(name, "b")], "laptop-b"),
    };
    let path = format!("/number/{number}");
    let answer = caller
        .get(&path, headers)
        .unwrap_or_else(|error| panic!("request {number}: {error}"));
    assert_eq!(
        (answer.status, answer.by()),
        (200, expected),
        "request {number}"
    );
    assert!(
        answer
            .body
            .starts_with(format!("GET {path} HTTP/1.1\r\n").as_bytes()),
        "request {number}"
    );
}

fn exact_counts(flags: &[&str], connections: usize) {
    let trio = Trio::start(flags);
    let each = requests() / 3 / connections * 3;
    std::thread::scope(|scope| {
        for _ in 0..connections {
            scope.spawn(|| {
                let mut caller = Caller::connect(trio.system.address()).unwrap();
                for number in 0..each {
                    one_in_turn(&mut caller, number);
                }
            });
        }
    });
    assert_eq!(trio.counts(), [each * connections / 3; 3]);
    let direct: usize = trio
        .intercepts
        .iter()
        .map(|it| it.lines("direct=connected").len())
        .sum();
    assert_eq!(direct, if flags.contains(&"--no-direct") { 0 } else { 2 });
}

#[test]
fn one_connection_through_the_manager_counts_exactly() {
    exact_counts(&["--no-direct"], 1);
}

#[test]
fn one_connection_with_direct_tunnels_counts_exactly() {
    exact_counts(&[], 1);
}

#[test]
fn fifty_connections_through_the_manager_count_exactly() {
    exact_counts(&["--no-direct"], 50);
}

#[test]
fn fifty_connections_with_direct_tunnels_count_exactly() {
    exact_counts(&[], 50);
}

#[test]
fn leaving_gives_all_requests_back_to_the_app() {
    let trio = Trio::start(&[]);
    let mut caller = Caller::connect(trio.system.address()).unwrap();
    one_in_turn(&mut caller, 1);
    assert!(trio.intercepts[0].terminate().success());
    until("the app to answer again", || {
        (caller.get("/", &[("x-dev", "a")]).unwrap().by() == "app").then_some(())
    });
    one_in_turn(&mut caller, 2);
    assert_eq!(
        get(trio.system.address(), "/", &[("x-dev", "a")])
            .unwrap()
            .by(),
        "app"
    );
}

/// Keeps ten callers busy on connections of their own, with slow requests among the quick, until
/// told to stop; a connection that is closed between two requests is opened again. Returns how many
/// were answered.
fn under_load(trio: &Trio, during: impl FnOnce()) -> usize {
    let (stop, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    let address = trio.system.address();
    std::thread::scope(|scope| {
        for worker in 0..10 {
            let (stop, answered) = (&stop, &answered);
            scope.spawn(move || {
                let mut number = worker;
                while !stop.load(Ordering::Relaxed) {
                    // Refused is what a pod that has gone is like; everything before that must be
                    // whole.
                    let Ok(mut caller) = Caller::connect(address) else {
                        return;
                    };
                    while !stop.load(Ordering::Relaxed) {
                        let dev = ["", "a", "b"][number % 3];
                        let path = if number % 5 == 0 {
                            "/drip/20/10"
                        } else {
                            "/slow/5"
                        };
                        let headers: &[_] = if dev.is_empty() {
                            &[]
                        } else {
                            &[("x-dev", dev)]
                        };
                        let first_byte =
                            caller.send("GET", path, headers, b"").is_ok() && begins(&mut caller);
                        if !first_byte {
                            break;
                        }
                        let answer = caller
                            .answer()
                            .unwrap_or_else(|error| panic!("cut in flight: {path}: {error}"));
                        assert_eq!(answer.status, 200);
                        answered.fetch_add(1, Ordering::Relaxed);
                        number += 1;
                    }
                }
            });
        }
        let _stop = SetAtEnd(&stop);
        until("load", || {
            (answered.load(Ordering::Relaxed) > 100).then_some(())
        });
        during();
    });
    answered.into_inner()
}

/// Returns true if a response begins, false if the connection ends between two exchanges.
fn begins(caller: &mut Caller) -> bool {
    let mut byte = [0];
    matches!(caller.stream().peek(&mut byte), Ok(1))
}

#[test]
fn an_agent_told_to_stop_under_load_cuts_nothing_and_departs() {
    let trio = Trio::start(&[]);
    let answered = under_load(&trio, || {
        let ended = trio.system.agent.process.terminate();
        assert!(ended.success(), "orderly end, not {ended}");
    });
    assert!(answered > 100);
    trio.system
        .manager
        .line("session departed session=\"agent:");
    for app in [&trio.system.app, &trio.laptops[0], &trio.laptops[1]] {
        assert_eq!(app.failures(), [""; 0], "no app saw a connection break");
    }
}

#[test]
fn a_client_told_to_stop_under_load_cuts_nothing() {
    let trio = Trio::start(&[]);
    under_load(&trio, || {
        for intercept in &trio.intercepts {
            assert!(intercept.terminate().success());
        }
        let before = trio.system.app.served();
        until("the app to answer more", || {
            (trio.system.app.served() > before + 100).then_some(())
        });
    });
    assert_eq!(trio.system.app.failures(), [""; 0]);
}

#[test]
fn a_workstation_that_is_gone_does_not_hold_requests_up() {
    let trio = Trio::start(&["--no-direct"]);
    trio.intercepts[0].kill();
    let begin = std::time::Instant::now();
    let answer = get(trio.system.address(), "/", &[("x-dev", "a")]).unwrap();
    assert_eq!(answer.by(), "app");
    assert!(
        begin.elapsed() < Duration::from_secs(15),
        "{:?}",
        begin.elapsed()
    );
}
