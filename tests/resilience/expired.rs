//! Ended intercepts: with notifications on, matching requests get 503 until a deadline; with them
//! off, the app answers at once.

use std::time::{Duration, Instant};

use harness::apps::App;
use harness::caller::{Answer, Caller, get};
use harness::system::System;
use harness::wait::until;

use crate::rig::managed;

const MATCHING: &[(&str, &str)] = &[("x-dev", "a")];
const DEADLINE: Duration = Duration::from_secs(9);

fn system(app: &App, extra: &str) -> System {
    // Sessions of clients that are not heard of end soon; clients are heard of every five seconds.
    managed(app.address(), &["--client-ttl=7s"], |sidecar| {
        sidecar.extra = extra.to_owned()
    })
}

fn is_told(answer: &Answer) -> bool {
    if answer.status != 503 {
        return false;
    }
    let text = String::from_utf8_lossy(&answer.body);
    for part in [
        "\"mine\"",
        "developer@",
        "has expired",
        "Create the intercept again",
    ] {
        assert!(text.contains(part), "{text}");
    }
    true
}

/// Ends the intercept in one of two ways, and watches what a matching request meets, on an old and
/// on new connections.
fn notified(kill: bool) {
    let (app, laptop) = (App::start("app"), App::start("laptop"));
    let system = system(&app, "expiredNotifications: {enabled: true, deadline: 9s}");
    let client = system.intercept("mine", laptop.address(), &["--http-header=x-dev=a"]);
    let mut old = Caller::connect(system.address()).unwrap();
    assert_eq!(old.get("/", MATCHING).unwrap().by(), "laptop");
    let begin = Instant::now();
    if kill {
        client.kill();
    } else {
        assert!(client.terminate().success());
    }
    // Until the manager has noticed, a killed one's requests go to the app.
    until("the intercept to be over", || {
        let answer = get(system.address(), "/", MATCHING).unwrap();
        assert!(
            is_told(&answer) || (kill && answer.by() == "app"),
            "{answer:?}"
        );
        is_told(&answer).then_some(())
    });
    assert!(
        is_told(&old.get("/", MATCHING).unwrap()),
        "on a connection that was open before"
    );
    assert_eq!(
        old.get("/", &[]).unwrap().by(),
        "app",
        "what did not match goes where it went"
    );
    assert!(is_told(&old.post("/", MATCHING, &[b'x'; 100_000]).unwrap()));
    assert!(is_told(&get(system.address(), "/", MATCHING).unwrap()));
    assert_eq!(
        old.get("/", &[])
            .map(|answer| answer.by().to_owned())
            .unwrap_or("app".into()),
        "app"
    );
    assert!(system.agent.stat(".http1.requests.expired") >= 3);
    until("the deadline", || {
        (get(system.address(), "/", MATCHING).unwrap().by() == "app").then_some(())
    });
    let took = begin.elapsed();
    // A killed client's session has to end first.
    assert!(
        took >= DEADLINE && took < DEADLINE + Duration::from_secs(30),
        "{took:?}"
    );
    eprintln!(
        "{} client: over after {took:?}",
        if kill { "killed" } else { "removed" }
    );
}

#[test]
fn a_removed_intercepts_requests_are_told_so_until_the_deadline() {
    notified(false);
}

#[test]
fn a_killed_clients_requests_go_to_the_app_until_its_session_ends_and_are_told_so_then() {
    notified(true);
}

#[test]
fn without_notifications_the_app_answers_at_once() {
    let (app, laptop) = (App::start("app"), App::start("laptop"));
    let system = system(&app, "");
    for kill in [false, true] {
        let client = system.intercept("mine", laptop.address(), &["--http-header=x-dev=a"]);
        let mut old = Caller::connect(system.address()).unwrap();
        assert_eq!(old.get("/", MATCHING).unwrap().by(), "laptop");
        let end = || {
            if kill {
                client.kill()
            } else {
                assert!(client.terminate().success())
            }
        };
        end();
        until("the app", || {
            let answer = get(system.address(), "/", MATCHING).unwrap();
            assert_eq!(answer.status, 200);
            (answer.by() == "app").then_some(())
        });
        assert_eq!(old.get("/", MATCHING).unwrap().by(), "app");
    }
    assert_eq!(system.agent.stat(".http1.requests.expired"), 0);
}
