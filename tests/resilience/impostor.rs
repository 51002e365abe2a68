//! Somebody else at the address where an agent is expected: he learns nothing, and intercepts work
//! all the same.

use harness::apps::App;
use harness::caller::get;
use harness::system::System;
use harness::wait::until;

#[test]
fn who_is_not_the_announced_agent_is_not_told_the_session() {
    let (system, other) = (System::start(), System::start());
    let laptop = App::start("laptop");
    let container_port = system.agent.sidecar.ports[0].container;
    // An agent like any other, which another manager has announced.
    let address = format!("--agent={}", other.agent.api());
    let client = system.begin_intercept(
        "mine",
        &format!("{}:{container_port}", laptop.address().port()),
        &["--http-header=x-dev=a", &address],
    );
    client.line("state=ACTIVE");
    let line = client.line("direct=unreachable");
    assert!(line.contains("is not the agent that the manager"), "{line}");
    until("the laptop to answer, through the manager", || {
        let answer = get(system.address(), "/", &[("x-dev", "a")]).unwrap();
        (answer.by() == "laptop").then_some(())
    });
    // It would have refused the session, and counted that.
    assert_eq!(other.agent.stat("session.denied"), 0);
    assert_eq!(other.agent.stat("traffic_agent.workstations"), 0);
}
