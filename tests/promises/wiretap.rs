//! Wiretaps: a developer watches requests, and nobody notices.

use std::process::Command;

use harness::apps::App;
use harness::caller::Caller;
use harness::process::Process;
use harness::programs;
use harness::system::System;
use harness::wait::until;

#[test]
fn the_app_answers_and_the_laptop_sees_every_matching_request() {
    for flags in [&["--no-direct"][..], &[]] {
        let system = System::start();
        let (laptop, second) = (App::start("laptop"), App::start("second"));
        let own = App::start("own");
        let header = "--http-header=x-dev=me";
        let with = |more: &[&'static str]| [flags, more].concat();
        let _tap = system.attach("wiretap", "tap", laptop.address(), &with(&[header]));
        let _all = system.attach("wiretap", "all", second.address(), &with(&[]));
        let own_header = "--http-header=x-dev=own";
        let _mine = system.intercept("mine", own.address(), &with(&[own_header]));
        let mut caller = Caller::connect(system.address()).unwrap();
        for number in 0..60_u64 {
            let (value, by) = [("me", "app"), ("own", "own"), ("no", "app")][number as usize % 3];
            let answer = caller.post("/p", &[("x-dev", value)], b"body").unwrap();
            assert_eq!((answer.status, answer.by()), (200, by), "request {number}");
            // One after the other: copies of a burst that the laptop can't follow are dropped.
            until("the copies", || {
                ((laptop.served(), second.served()) == (number / 3 + 1, number + 1)).then_some(())
            });
        }
        assert_eq!((system.app.served(), own.served()), (40, 20));
        for app in [&laptop, &second] {
            assert_eq!(app.failures(), [""; 0]);
        }
    }
}

#[test]
fn list_explain_and_the_metrics_know_a_wiretap() {
    let system = System::start();
    let laptop = App::start("laptop");
    let flags = ["--http-header=x-dev=me"];
    let tap = system.attach("wiretap", "tap", laptop.address(), &flags);
    tap.line("Wiretapping hello: copies of HTTP requests with header x-dev: me");
    let mut caller = Caller::connect(system.address()).unwrap();
    assert_eq!(caller.get("/", &[("x-dev", "me")]).unwrap().by(), "app");
    until("the copy to be counted", || {
        (system.agent.stat(".wiretap.copies.sent") == 1).then_some(())
    });
    let run = |arguments: &[&str]| {
        let mut command = Command::new(programs::path("intercept"));
        command.args(arguments);
        Process::start("intercept", &mut command)
    };
    let manager = system.manager_address.to_string();
    let list = run(&["list", "--manager", &manager]);
    list.line("tap (yours, wiretap)  ACTIVE");
    list.line("copies    HTTP requests with header x-dev: me");
    let admin = system.agent.admin().to_string();
    let explain = run(&["explain", "--admin", &admin, "--header=x-dev=me"]);
    explain.line("tap matches, and gets a copy");
    explain.exit();
}
