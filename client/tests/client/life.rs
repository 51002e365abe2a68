//! An intercept from its creation to its end, whoever ends it.

use std::os::unix::fs::PermissionsExt;

use harness::apps::App;
use traffic_proto::manager::{
    InterceptDispositionType as Disposition, ReconnectAgentRequest, ReviewInterceptRequest,
};

use crate::fixture::{Agent, Manager, agent_info};

#[tokio::test(flavor = "multi_thread")]
async fn states_are_printed_and_the_environment_is_written() {
    let manager = Manager::start().await;
    let mut agent = manager.agent().await;
    let app = App::start("local");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("app.env");
    let flags = [
        "--http-header=x-dev=a",
        "--http-plaintext",
        "--env-file",
        file.to_str().unwrap(),
    ];
    let client = manager.create(app.address(), &flags);
    let info = agent.review(Disposition::Active, "").await;
    let spec = info.spec.unwrap();
    assert_eq!((spec.mechanism.as_str(), spec.plaintext), ("http", true));
    assert_eq!(
        (spec.target_port, spec.container_port),
        (i32::from(app.address().port()), 80)
    );
    client.line("state=WAITING");
    let line = client.line("state=ACTIVE");
    for part in [
        "intercept=one",
        "client=dev@laptop",
        "workload=app",
        "takes=\"all TCP connections\"",
        "pod=app-1",
    ] {
        assert!(line.contains(part), "{part}: {line}");
    }
    client.line("Press Ctrl-C to leave");
    assert_eq!(
        std::fs::read_to_string(&file).unwrap(),
        format!(
            "COLOUR=blue\nTELEPRESENCE_INTERCEPT_ID={}\nTEXT=\"two\\nlines\"\n",
            info.id
        )
    );
    assert_eq!(
        std::fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_removes_the_intercept_and_ends_the_session() {
    let manager = Manager::start().await;
    let mut agent = manager.agent().await;
    let app = App::start("local");
    let client = manager.create(app.address(), &[]);
    let info = agent.review(Disposition::Active, "").await;
    client.line("state=ACTIVE");
    assert!(client.terminate().success());
    agent.until_none().await;
    let session = info.client_session.unwrap();
    let mut asking = manager.connect().await;
    assert!(
        asking.watch_intercepts(session).await.is_err(),
        "the session is over"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn intercepts_are_listed_and_left_from_elsewhere() {
    let manager = Manager::start().await;
    let mut agent = manager.agent().await;
    let app = App::start("local");
    let client = manager.create(app.address(), &[]);
    agent.review(Disposition::Active, "").await;
    client.line("state=ACTIVE");
    let list = manager.client(&["list"]);
    list.line("one (of dev@laptop)  ACTIVE");
    list.line("  workload  app in namespace default, port 80");
    list.line("  takes     all TCP connections");
    assert!(list.exit().success());
    let list = manager.client(&["list", "--output=json", "--client=dev@laptop"]);
    list.line("\"yours\": true");
    assert!(list.exit().success());
    let stranger = manager.client(&["leave", "one", "--client=eve@desk"]);
    stranger.line("--client dev@laptop");
    assert_eq!(stranger.exit().code(), Some(1));
    assert!(client.is_running());
    assert!(
        manager
            .client(&["leave", "one", "--client=dev@laptop"])
            .exit()
            .success()
    );
    client.line("state=REMOVED");
    assert!(client.exit().success());
    let list = manager.client(&["list"]);
    list.line("No intercepts");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_that_restarts_gets_the_intercept_back() {
    let manager = Manager::start().await;
    let mut agent = manager.agent().await;
    let app = App::start("local");
    let client = manager.create(app.address(), &[]);
    agent.review(Disposition::Active, "").await;
    client.line("state=ACTIVE");
    let active = agent.until(Disposition::Active).await;
    let address = manager.address;
    manager.stop().await;
    client.line("manager=lost");
    let manager = Manager::on(address).await;
    client.line("manager=back");
    let mut asking = manager.connect().await;
    let request = ReconnectAgentRequest {
        session: Some(agent.session.clone()),
        agent: Some(agent_info()),
    };
    asking.reconnect_agent(request).await.unwrap();
    let intercepts = asking
        .watch_intercepts(agent.session.clone())
        .await
        .unwrap()
        .into_inner();
    let mut agent = Agent {
        manager: asking,
        session: agent.session.clone(),
        intercepts,
    };
    assert_eq!(
        agent.until(Disposition::Active).await,
        active,
        "as it was, under the id it had"
    );
    assert!(client.terminate().success());
    agent.until_none().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_leaves_is_waited_for() {
    let manager = Manager::start().await;
    let mut agent = manager.agent().await;
    let app = App::start("local");
    let client = manager.create(app.address(), &[]);
    agent.review(Disposition::Active, "").await;
    client.line("state=ACTIVE");
    agent.manager.depart(agent.session.clone()).await.unwrap();
    client.line("state=NO_AGENT");
    let mut agent = manager.agent().await;
    client.nth_line("state=WAITING", 2);
    agent.review(Disposition::Active, "").await;
    client.nth_line("state=ACTIVE", 2);
    assert!(client.terminate().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_gets_the_environment_and_its_end_is_the_intercepts() {
    let manager = Manager::start().await;
    let mut agent = manager.agent().await;
    let app = App::start("local");
    // As shells have it: 128 and the number of the signal that ended it.
    for (last, code) in [
        ("exit 3", 3),
        ("kill -TERM $$", 143),
        ("kill -KILL $$", 137),
    ] {
        let script = format!("echo colour=$COLOUR; {last}");
        let client = manager.create(app.address(), &["--", "sh", "-c", &script]);
        agent.review(Disposition::Active, "").await;
        client.line("colour=blue");
        assert_eq!(client.exit().code(), Some(code));
        agent.until_none().await;
    }
}

/// A command that says when it runs, and when it is asked to end.
const COMMAND: &str =
    "trap 'echo asked to end; exit 0' TERM; echo ready; while :; do sleep 0.1; done";

#[tokio::test(flavor = "multi_thread")]
async fn a_command_ends_with_the_intercept() {
    let manager = Manager::start().await;
    let mut agent = manager.agent().await;
    let app = App::start("local");
    let client = manager.create(app.address(), &["--", "sh", "-c", COMMAND]);
    agent.review(Disposition::Active, "").await;
    client.line("ready");
    assert!(client.terminate().success());
    client.line("asked to end");
    agent.until_none().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_ends_with_an_intercept_that_is_killed() {
    let manager = Manager::start().await;
    let mut agent = manager.agent().await;
    let app = App::start("local");
    // It has the output of the killed program, and goes on for longer than a test waits.
    let client = manager.create(app.address(), &["--", "sh", "-c", COMMAND]);
    agent.review(Disposition::Active, "").await;
    client.line("ready");
    client.kill();
    client.line("asked to end");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_intercept_that_its_agent_ends_is_over_and_says_why() {
    let manager = Manager::start().await;
    let mut agent = manager.agent().await;
    let app = App::start("local");
    let client = manager.create(app.address(), &[]);
    agent.review(Disposition::Active, "").await;
    client.line("state=ACTIVE");
    let message = "ended: it has lived for 8h0m0s (set by the chart value intercept.maxLifetime)";
    let info = agent.until(Disposition::Active).await;
    assert!(info.created_at.is_some());
    // A late word of another replica is none about the end.
    for ends in [false, true] {
        let request = ReviewInterceptRequest {
            session: Some(agent.session.clone()),
            id: info.id.clone(),
            disposition: Disposition::AgentError.into(),
            message: if ends { message } else { "late" }.into(),
            ends,
            ..ReviewInterceptRequest::default()
        };
        agent.manager.review_intercept(request).await.unwrap();
    }
    client.line(message);
    assert_eq!(client.exit().code(), Some(1));
}
