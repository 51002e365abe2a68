//! A manager that goes and comes back costs no request.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use harness::apps::App;
use harness::caller::{Caller, get};
use harness::system::System;
use harness::wait::{SetAtEnd, until};

/// Keeps asking with and without the header while `during` runs; every request must be answered,
/// those without the header by the app. Returns how many were.
fn asking_meanwhile(system: &mut System, during: impl FnOnce(&mut System)) -> usize {
    let (stop, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    let address = system.address();
    std::thread::scope(|scope| {
        for headers in [&[][..], &[("x-dev", "a")]] {
            let (stop, answered) = (&stop, &answered);
            scope.spawn(move || {
                let mut caller = Caller::connect(address).unwrap();
                while !stop.load(Ordering::Relaxed) {
                    let answer = caller.get("/", headers).expect("no request fails");
                    assert!(
                        answer.by() == "app" || (answer.by() == "laptop" && !headers.is_empty())
                    );
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let _stop = SetAtEnd(&stop);
        during(system);
    });
    answered.into_inner()
}

fn is_delivered(system: &System) -> Option<()> {
    (get(system.address(), "/", &[("x-dev", "a")]).unwrap().by() == "laptop").then_some(())
}

#[test]
fn direct_tunnels_go_on_while_the_manager_is_away_and_all_is_well_after() {
    let mut system = System::start();
    let laptop = App::start("laptop");
    let intercept = system.intercept("a", laptop.address(), &["--http-header=x-dev=a"]);
    until("delivery", || is_delivered(&system));
    let answered = asking_meanwhile(&mut system, |system| {
        system.manager.kill();
        intercept.line("manager=lost");
        let mut fresh = Caller::connect(system.address()).unwrap();
        for _ in 0..50 {
            assert_eq!(
                fresh.get("/", &[("x-dev", "a")]).unwrap().by(),
                "laptop",
                "without a manager"
            );
        }
        system.restart_manager();
        intercept.line("manager=back");
        system.manager.line("agent:");
        until("delivery", || is_delivered(system));
    });
    assert!(answered > 0);
    assert!(intercept.terminate().success());
    until("the app to answer", || {
        is_delivered(&system).is_none().then_some(())
    });
}

#[test]
fn a_client_that_leaves_while_the_manager_is_away_costs_no_request() {
    let mut system = System::start();
    let laptop = App::start("laptop");
    let intercept = system.intercept("a", laptop.address(), &["--http-header=x-dev=a"]);
    until("delivery", || is_delivered(&system));
    let address = system.address();
    let answered = asking_meanwhile(&mut system, |system| {
        let left = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // Beside the kept connections, one for each request.
            scope.spawn(|| {
                while !left.load(Ordering::Relaxed) {
                    get(address, "/", &[("x-dev", "a")]).expect("no request fails");
                }
            });
            let _left = SetAtEnd(&left);
            system.manager.kill();
            intercept.line("manager=lost");
            assert!(intercept.terminate().success());
            until("the app to answer", || {
                is_delivered(system).is_none().then_some(())
            });
        });
    });
    assert!(answered > 0);
}

#[test]
fn without_direct_tunnels_the_app_answers_until_the_manager_is_back() {
    let mut system = System::start();
    let laptop = App::start("laptop");
    let intercept = system.intercept(
        "a",
        laptop.address(),
        &["--http-header=x-dev=a", "--no-direct"],
    );
    until("delivery", || is_delivered(&system));
    asking_meanwhile_new_connections(&mut system, |system| {
        system.manager.kill();
        intercept.line("manager=lost");
        assert_eq!(
            get(system.address(), "/", &[("x-dev", "a")]).unwrap().by(),
            "app"
        );
        system.restart_manager();
        intercept.line("manager=back");
        until("delivery", || is_delivered(system));
    });
}

/// The same with a connection for each request, of which none may fail before its first byte: the
/// tunnel that a killed manager takes along was carrying only requests that were answered.
fn asking_meanwhile_new_connections(system: &mut System, during: impl FnOnce(&mut System)) {
    let stop = AtomicBool::new(false);
    let address = system.address();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let answer = get(address, "/", &[]).expect("no request without the header fails");
                assert_eq!(answer.by(), "app");
            }
        });
        let _stop = SetAtEnd(&stop);
        during(system);
    });
}
