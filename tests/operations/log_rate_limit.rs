//! Failures of every request give one line, not one each.

use std::process::Command;

use harness::apps::App;
use harness::caller;
use harness::system::System;
use harness::wait::until;

fn at_default_level(command: &mut Command) {
    command.env_remove("LOG_LEVEL");
}

#[test]
fn an_app_that_is_away_is_a_line_or_two_for_hundreds_of_callers() {
    let system = System::start_with(|_| {}, at_default_level);
    assert_eq!(caller::get(system.address(), "/", &[]).unwrap().by(), "app");
    system.app.stop();
    until("the app to be away", || {
        std::net::TcpStream::connect(system.app.address())
            .is_err()
            .then_some(())
    });
    let said = system.agent.process.lines("").len();
    for _ in 0..300 {
        assert!(caller::get(system.address(), "/", &[]).is_err());
    }
    let line = system.agent.process.line("the app refuses connections");
    assert!(
        line.contains("WARN") && line.contains("ended=\"app_refused\""),
        "{line}"
    );
    let lines = system.agent.process.lines("")[said..].to_vec();
    // One for each ten seconds, in which a slow machine may need more than the first.
    assert!(lines.len() <= 4, "{lines:#?}");
}

#[test]
fn a_workstation_that_refuses_is_a_line_or_two_for_hundreds_of_requests() {
    let system = System::start_with(|_| {}, at_default_level);
    let local = App::start("local");
    let _intercept = system.intercept("mine", local.address(), &["--http-header=x-dev=a"]);
    local.stop();
    until("the local app to be away", || {
        std::net::TcpStream::connect(local.address())
            .is_err()
            .then_some(())
    });
    let said = system.agent.process.lines("").len();
    for _ in 0..200 {
        assert_eq!(
            caller::get(system.address(), "/", &[("x-dev", "a")])
                .unwrap()
                .by(),
            "app"
        );
    }
    let line = system
        .agent
        .process
        .line("workstation not reached: the app answers");
    assert!(line.contains("reason=\"dial_rejected\""), "{line}");
    let lines = system.agent.process.lines("")[said..].to_vec();
    assert!(lines.len() <= 6, "{lines:#?}");
}
