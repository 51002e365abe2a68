//! Admin commands take effect under load without failing a request.

use std::sync::Arc;
use std::time::{Duration, Instant};

use harness::caller;
use harness::system::System;
use harness::wait::until;
use traffic_proto::manager::LogLevelRequest;
use traffic_proto::manager::manager_client::ManagerClient;

use crate::exposition;
use crate::mixed_load::Testbed;

fn post(system: &System, path: &str) -> String {
    let mut caller = caller::Caller::connect(system.agent.admin()).unwrap();
    let answer = caller.post(path, &[], b"").unwrap();
    assert_eq!(answer.status, 200, "{path}");
    String::from_utf8(answer.body).unwrap()
}

fn ready(system: &System) -> u16 {
    caller::get(system.agent.admin(), "/ready", &[])
        .unwrap()
        .status
}

/// The sum of a metric over everything.
fn sum(system: &System, metric: &str) -> f64 {
    let page = caller::get(system.agent.admin(), "/stats/prometheus", &[]).unwrap();
    let families = exposition::parse(&String::from_utf8(page.body).unwrap());
    families[metric].iter().map(|(_, value)| *value).sum()
}

#[test]
fn levels_counters_and_health_change_under_load_and_closed_listeners_leave_the_rest_alone() {
    let testbed = Arc::new(Testbed::start(
        "drain: {lameDuck: 500ms, grace: 20s}",
        |_| {},
    ));
    let (system, agent) = (&testbed.system, &testbed.system.agent.process);
    let mixed_load = testbed.start_load();
    mixed_load.busy(4);

    assert_eq!(ready(system), 200);
    post(system, "/healthcheck/fail");
    assert_eq!(ready(system), 503);
    mixed_load.busy(2);
    post(system, "/healthcheck/ok");
    assert_eq!(ready(system), 200);

    assert!(post(system, "/logging?level=off").contains("http1: off"));
    // What was said before may still be on its way here.
    mixed_load.busy(2);
    let silent = agent.lines("").len();
    mixed_load.busy(2);
    assert_eq!(agent.lines("").len(), silent, "off");
    post(system, "/logging?paths=port:debug");
    until("lines of connections", || {
        (agent.lines("").len() > silent).then_some(())
    });
    assert!(
        agent.lines("")[silent..]
            .iter()
            .all(|line| line.contains("traffic_agent::proxy::connection"))
    );
    post(system, "/logging?level=info");

    let (requests, active) = (
        "traffic_agent_requests_total",
        "envoy_http_downstream_cx_active",
    );
    let before = sum(system, requests);
    post(system, "/reset_counters");
    let after = sum(system, requests);
    assert!(after < before / 2.0, "{before} -> {after}");
    assert!(
        sum(system, active) >= 10.0,
        "open connections are still open"
    );
    mixed_load.busy(2);
    assert!(sum(system, requests) > after);

    mixed_load.expect_closing("listeners closed");
    post(system, "/drain_listeners");
    agent.line("listeners closed");
    // What had arrived before is still accepted, or reset.
    until("refusals", || {
        let answer = caller::get(system.address(), "/", &[]);
        answer
            .is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
            .then_some(())
    });
    // Long connections are served as before: HTTP/1 and both ways of HTTP/2 come first.
    let before = mixed_load.answered();
    until("answers on open connections", || {
        mixed_load
            .answered()
            .iter()
            .zip(before)
            .take(5)
            .all(|(now, before)| *now > before + 5)
            .then_some(())
    });
    assert!(agent.is_running());
    post(system, "/quitquitquit");
    agent.line("shutdown: no longer accepting");
    mixed_load.stop();
    assert_eq!(agent.exit().code(), Some(0));
}

#[test]
fn a_graceful_drain_sends_everybody_away_in_order_and_the_process_stays_until_it_is_told_to_quit() {
    let testbed = Arc::new(Testbed::start("drain: {lameDuck: 1s, grace: 20s}", |_| {}));
    let (system, agent) = (&testbed.system, &testbed.system.agent.process);
    let mixed_load = testbed.start_load();
    mixed_load.busy(4);
    mixed_load.expect_closing("draining listeners");
    let told = Instant::now();
    post(system, "/drain_listeners?graceful");
    assert_eq!(ready(system), 503);
    until("refusals", || {
        std::net::TcpStream::connect(system.address())
            .is_err()
            .then_some(())
    });
    assert!(
        told.elapsed() >= Duration::from_secs(1),
        "not before the lame-duck time: {:?}",
        told.elapsed()
    );
    mixed_load.stop();
    until("the last connection to end", || {
        (sum(system, "envoy_http_downstream_cx_active") == 0.0).then_some(())
    });
    assert!(agent.is_running());
    let told = Instant::now();
    post(system, "/quitquitquit");
    assert_eq!(agent.exit().code(), Some(0));
    assert!(
        told.elapsed() < Duration::from_secs(10),
        "no second lame-duck time: {:?}",
        told.elapsed()
    );
}

#[test]
fn the_managers_wish_for_a_level_ends_after_its_duration_and_leaves_what_the_operator_set() {
    let system = System::start();
    let levels = || post(&system, "/logging");
    assert!(post(&system, "/logging?level=info").contains("http1: info"));
    assert!(post(&system, "/logging?session=error").contains("session: error"));
    let before = levels();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut manager = ManagerClient::connect(format!("http://{}", system.manager_address))
            .await
            .unwrap();
        let duration = Some(Duration::from_secs(2).try_into().unwrap());
        manager
            .set_log_level(LogLevelRequest {
                log_level: "trace".into(),
                duration,
            })
            .await
            .unwrap();
    });
    let during = until("the manager's level", || {
        Some(levels()).filter(|levels| levels.contains("http1: trace"))
    });
    assert!(during.contains("session: error"), "{during}");
    let after = until("the wish to end", || {
        Some(levels()).filter(|levels| !levels.contains("trace"))
    });
    assert_eq!(after, before);
}
