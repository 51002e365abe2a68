//! Somebody who knows the id of a session, as every client of the cluster may: he cannot take its
//! place.

use std::process::Command;

use harness::apps::App;
use harness::caller::{Caller, get};
use harness::ports;
use harness::system::{Agent, System};
use harness::wait::until;
use tonic::Code;
use traffic_proto::agent::agent_client::AgentClient;
use traffic_proto::manager::SessionInfo;
use traffic_proto::manager::manager_client::ManagerClient;

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_who_knows_the_session_is_refused_by_agent_and_manager() {
    let mut system = System::start();
    let laptop = App::start("laptop");
    let intercept = system.intercept("a", laptop.address(), &["--http-header=x-dev=a"]);
    let is_delivered = |system: &System| {
        let answer = get(system.address(), "/", &[("x-dev", "a")]).unwrap();
        (answer.by() == "laptop").then_some(())
    };
    until("delivery", || is_delivered(&system));

    let manager = format!("http://{}", system.manager_address);
    let mut manager = ManagerClient::connect(manager).await.unwrap();
    let everybodys = SessionInfo::default();
    let shown = manager.watch_intercepts(everybodys).await.unwrap();
    let shown = shown.into_inner().message().await.unwrap().unwrap();
    let session = shown.intercepts[0].client_session.clone().unwrap();
    assert!(session.session_id.starts_with("key-"), "{session:?}");
    let agent = format!("http://{}", system.agent.api());
    let mut agent = AgentClient::connect(agent).await.unwrap();
    let refused = agent.watch_dial(session.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    let refused = manager.watch_dial(session.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    let refused = manager.depart(session.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    assert_eq!(system.agent.stat("session.denied"), 1);

    // The agent knows its developers without a manager, and so it knows who is none.
    system.manager.kill();
    intercept.line("manager=lost");
    let refused = agent.watch_dial(session).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    let mut caller = Caller::connect(system.address()).unwrap();
    for _ in 0..10 {
        let answer = caller.get("/", &[("x-dev", "a")]).unwrap();
        assert_eq!(answer.by(), "laptop", "directly");
    }
    system.restart_manager();
    intercept.line("manager=back");
    until("delivery", || is_delivered(&system));
    assert!(intercept.terminate().success());
}

#[test]
fn an_agent_that_starts_again_is_proved_to_anew() {
    let port = ports::free().to_string();
    let arrange = |command: &mut Command| {
        command.env("AGENT_ENVOY_SERVER_PORT", &port);
    };
    let mut system = System::start_with(|_| {}, arrange);
    let laptop = App::start("laptop");
    let intercept = system.intercept("a", laptop.address(), &["--http-header=x-dev=a"]);
    system.agent.process.kill();
    intercept.line("direct=ended");
    // At the same place, with another key.
    system.agent = Agent::start(&system.agent.sidecar.clone(), arrange);
    system.agent.ready();
    intercept.nth_line("direct=connected", 2);
    until("delivery", || {
        let answer = get(system.address(), "/", &[("x-dev", "a")]).ok()?;
        (answer.by() == "laptop").then_some(())
    });
    assert_eq!(system.agent.stat("session.denied"), 0);
}
