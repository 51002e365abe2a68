//! Requests that match a rule: the tunnel, what happens when it cannot be had or breaks, and rules
//! that change while connections are open.

use std::sync::atomic::Ordering;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use traffic_agent::outcome::Ended;
use traffic_agent::proxy::context::AppProtocol;
use traffic_agent::telemetry::metrics::{FailOpen, OpaqueReason, Route};
use traffic_core::routing::State;

use agent_testkit::app::{Expect, ScriptedApp, named_server};
use agent_testkit::eventually;
use agent_testkit::port::PortFixture;
use agent_testkit::tunnels::Behaviour;

const MATCHING: &str = "GET / HTTP/1.1\r\nX-Dev: a\r\n\r\n";
const OTHER: &str = "GET / HTTP/1.1\r\nX-Dev: b\r\n\r\n";

fn named(name: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}",
        name.len()
    )
}

async fn fixture(desk: Behaviour) -> PortFixture {
    let fixture = PortFixture::with(named_server("app").await, AppProtocol::Unknown, desk);
    fixture.intercept();
    fixture
}

#[tokio::test]
async fn requests_of_one_connection_go_where_their_headers_say_over_one_tunnel() {
    let fixture = fixture(Behaviour::Dials(named_server("desk").await)).await;
    let mut caller = fixture.connect().await;
    for _ in 0..3 {
        caller.send(MATCHING).await;
        caller.expect(&named("desk")).await;
        caller.send(OTHER).await;
        caller.expect(&named("app")).await;
    }
    assert_eq!(fixture.tunnels.opened(), 1);
    let requests = &fixture.port.metrics.http1_requests;
    assert_eq!(
        (
            requests.at(Route::Client).get(),
            requests.at(Route::App).get()
        ),
        (3, 3)
    );
}

#[tokio::test]
async fn hundreds_of_old_connections_follow_each_change_of_rules_with_their_next_request() {
    let fixture = PortFixture::with(
        named_server("app").await,
        AppProtocol::Unknown,
        Behaviour::Dials(named_server("desk").await),
    );
    let mut callers = Vec::new();
    for _ in 0..100 {
        let mut caller = fixture.connect().await;
        caller.send(MATCHING).await;
        caller.expect(&named("app")).await;
        callers.push(caller);
    }
    for round in 0..6 {
        let want = if round % 2 == 0 {
            // Filtered and global rules alike.
            if round == 2 {
                fixture.rule(&[], State::Active)
            } else {
                fixture.intercept()
            };
            named("desk")
        } else {
            fixture.clear();
            named("app")
        };
        for caller in &mut callers {
            caller.send(MATCHING).await;
        }
        for caller in &mut callers {
            caller.expect(&want).await;
        }
    }
    assert_eq!(fixture.port.metrics.connections.get(), 100);
    assert_eq!(fixture.port.metrics.active.get(), 100);
}

#[tokio::test]
async fn without_a_workstation_the_app_answers_and_the_reason_is_counted() {
    for (desk, why) in [
        (Behaviour::Away, FailOpen::NoTunnel),
        (Behaviour::Rejects, FailOpen::DialRejected),
        (Behaviour::Silent, FailOpen::DialTimeout),
    ] {
        let fixture = fixture(desk.clone()).await;
        let mut caller = fixture.connect().await;
        let body = "x".repeat(100_000);
        let request = format!(
            "POST / HTTP/1.1\r\nX-Dev: a\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let app = ScriptedApp::listen().await;
        let fixture = PortFixture::with(app.addr(), AppProtocol::Unknown, desk.clone());
        fixture.intercept();
        drop(caller);
        caller = fixture.connect().await;
        let (mut read, mut write) = caller.split();
        let calling = async {
            write.write_all(request.as_bytes()).await.unwrap();
            let mut answer = vec![0; 3];
            read.read_exact(&mut answer).await.unwrap();
            assert_eq!(answer, b"HTT");
        };
        let serving = async {
            let mut app = app.accept().await;
            app.expect(&request).await;
            app.send("HTTP/1.1 204 x\r\n\r\n").await;
        };
        tokio::join!(calling, serving);
        assert_eq!(fixture.port.metrics.fail_open.at(why).get(), 1, "{desk:?}");
        assert_eq!(fixture.port.metrics.http1_requests.at(Route::App).get(), 1);
    }
}

#[tokio::test]
async fn after_a_failed_dial_the_app_answers_at_once_until_the_workstation_is_tried_again() {
    let fixture = fixture(Behaviour::Silent).await;
    let intercept = fixture.intercept();
    let mut callers = Vec::new();
    for _ in 0..20 {
        callers.push(fixture.connect().await);
    }
    // The first one waits for its dial, and nobody else does.
    callers[0].send(MATCHING).await;
    callers[0].expect(&named("app")).await;
    let before = std::time::Instant::now();
    for caller in &mut callers {
        caller.send(MATCHING).await;
        caller.expect(&named("app")).await;
    }
    assert!(before.elapsed() < intercept.dial_budget());
    assert_eq!(fixture.tunnels.opened(), 1);
    let fail_open = &fixture.port.metrics.fail_open;
    assert_eq!(fail_open.at(FailOpen::Skipped).get(), 20);
    assert_eq!(intercept.stats.failed_open.load(Ordering::Relaxed), 21);
    // One in flight tries again, and brings the traffic back.
    fixture
        .tunnels
        .becomes(Behaviour::Dials(named_server("desk").await));
    eventually("the workstation answers", || {
        intercept
            .stats
            .dials
            .may_try(std::time::Instant::now(), None)
    })
    .await;
    for caller in &mut callers {
        caller.send(MATCHING).await;
        caller.expect(&named("desk")).await;
    }
}

#[tokio::test]
async fn an_app_that_is_away_does_not_keep_a_workstation_from_answering() {
    let gone = std::net::SocketAddr::from(([127, 0, 0, 1], harness::ports::free()));
    let fixture = PortFixture::with(
        gone,
        AppProtocol::Unknown,
        Behaviour::Dials(named_server("desk").await),
    );
    fixture.intercept();
    let mut caller = fixture.connect().await;
    for _ in 0..2 {
        caller.send(MATCHING).await;
        caller.expect(&named("desk")).await;
    }
    caller.send(OTHER).await;
    caller.expect_reset().await;
}

#[tokio::test]
async fn an_app_that_starts_later_gets_the_next_request_of_an_old_connection() {
    let addr = std::net::SocketAddr::from(([127, 0, 0, 1], harness::ports::free()));
    let fixture = PortFixture::with(
        addr,
        AppProtocol::Unknown,
        Behaviour::Dials(named_server("desk").await),
    );
    fixture.intercept();
    let mut caller = fixture.connect().await;
    caller.send(MATCHING).await;
    caller.expect(&named("desk")).await;
    let app = tokio::net::TcpListener::bind(addr).await.unwrap();
    caller.send(OTHER).await;
    let (mut app, _) = app.accept().await.unwrap();
    app.expect(OTHER).await;
}

#[tokio::test]
async fn a_tunnel_lost_amid_an_answer_resets_the_caller_and_nothing_is_sent_twice() {
    let (app, desk) = (ScriptedApp::listen().await, ScriptedApp::listen().await);
    let fixture = PortFixture::with(
        app.addr(),
        AppProtocol::Unknown,
        Behaviour::Dials(desk.addr()),
    );
    fixture.intercept();
    for partial in ["", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart"] {
        let mut caller = fixture.connect().await;
        let mut at_app = app.accept().await;
        caller.send(MATCHING).await;
        let mut at_desk = desk.accept().await;
        at_desk.expect(MATCHING).await;
        at_desk.send(partial).await;
        caller.expect(partial).await;
        fixture.tunnels.break_tunnels();
        caller.expect_reset().await;
        at_app.expect_end().await;
    }
    eventually("counted", || {
        fixture.port.metrics.ended.at(Ended::TunnelLost).get() == 2
    })
    .await;
}

#[tokio::test]
async fn a_workstation_whose_server_closes_amid_an_answer_is_no_truncated_success() {
    let desk = ScriptedApp::listen().await;
    let fixture = fixture(Behaviour::Dials(desk.addr())).await;
    let mut caller = fixture.connect().await;
    caller.send(MATCHING).await;
    let mut at_desk = desk.accept().await;
    at_desk.expect(MATCHING).await;
    at_desk
        .send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        .await;
    caller
        .expect("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        .await;
    drop(at_desk);
    caller.expect_reset().await;
}

#[tokio::test]
async fn a_tunnel_that_ended_while_idle_is_opened_again() {
    let desk = ScriptedApp::listen().await;
    let fixture = fixture(Behaviour::Dials(desk.addr())).await;
    let mut caller = fixture.connect().await;
    for n in 1..=3 {
        caller.send(MATCHING).await;
        let mut at_desk = desk.accept().await;
        at_desk.expect(MATCHING).await;
        at_desk.send("HTTP/1.1 204 x\r\n\r\n").await;
        caller.expect("HTTP/1.1 204 x\r\n\r\n").await;
        at_desk.shutdown().await.unwrap();
        drop(at_desk);
        assert_eq!(fixture.tunnels.opened(), n);
        // The next request may be sent only when the end has arrived here; the app's answer is a
        // good while later.
        caller.send(OTHER).await;
        caller.expect(&named("app")).await;
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn an_app_that_closed_while_a_workstation_answered_is_dialled_again() {
    let (app, desk) = (ScriptedApp::listen().await, named_server("desk").await);
    let fixture = PortFixture::with(app.addr(), AppProtocol::Unknown, Behaviour::Dials(desk));
    fixture.intercept();
    let mut caller = fixture.connect().await;
    let first = app.accept().await;
    caller.send(MATCHING).await;
    caller.expect(&named("desk")).await;
    drop(first);
    caller.send(MATCHING).await;
    caller.expect(&named("desk")).await;
    caller.send(OTHER).await;
    let mut second = app.accept().await;
    second.expect(OTHER).await;
    second.send("HTTP/1.1 204 x\r\n\r\n").await;
    caller.expect("HTTP/1.1 204 x\r\n\r\n").await;
    // Once the app has answered, its close is the caller's again.
    drop(second);
    caller.expect_end().await;
}

#[tokio::test]
async fn an_answer_until_close_from_a_workstation_ends_the_connection_whole() {
    let desk = ScriptedApp::listen().await;
    let fixture = fixture(Behaviour::Dials(desk.addr())).await;
    let mut caller = fixture.connect().await;
    caller.send(MATCHING).await;
    let mut at_desk = desk.accept().await;
    at_desk.expect(MATCHING).await;
    let body = "z".repeat(300_000);
    at_desk
        .send(&format!("HTTP/1.0 200 OK\r\n\r\n{body}"))
        .await;
    drop(at_desk);
    caller
        .expect(&format!("HTTP/1.0 200 OK\r\n\r\n{body}"))
        .await;
    caller.expect_end().await;
}

#[tokio::test]
async fn a_caller_that_half_closes_behind_a_matching_request_still_gets_the_answer() {
    let desk = ScriptedApp::listen().await;
    let fixture = fixture(Behaviour::Dials(desk.addr())).await;
    let mut caller = fixture.connect().await;
    caller.send(MATCHING).await;
    caller.shutdown().await.unwrap();
    let mut at_desk = desk.accept().await;
    at_desk.expect(MATCHING).await;
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    at_desk
        .send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        .await;
    caller
        .expect("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        .await;
    caller.expect_end().await;
}

#[tokio::test]
async fn a_matching_upgrade_is_a_relay_to_the_workstation() {
    let desk = ScriptedApp::listen().await;
    let fixture = fixture(Behaviour::Dials(desk.addr())).await;
    let mut caller = fixture.connect().await;
    let request =
        "GET /ws HTTP/1.1\r\nX-Dev: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    caller.send(&format!("{request}early")).await;
    let mut at_desk = desk.accept().await;
    at_desk.expect(request).await;
    at_desk.send("HTTP/1.1 101 x\r\n\r\nalong").await;
    caller.expect("HTTP/1.1 101 x\r\n\r\nalong").await;
    at_desk.expect("early").await;
    // A frame may look like anything, and rules may change: it stays where it is.
    fixture.clear();
    caller.send(OTHER).await;
    at_desk.expect(OTHER).await;
    assert_eq!(
        fixture.port.metrics.opaque.at(OpaqueReason::Upgraded).get(),
        1
    );
}

#[tokio::test]
async fn large_bodies_pass_through_the_tunnel_both_ways_at_once() {
    let desk = ScriptedApp::listen().await;
    let fixture = fixture(Behaviour::Dials(desk.addr())).await;
    let caller = fixture.connect().await;
    let body: String = (0..500_000).map(|n| format!("{n:05x}")).collect();
    let request = format!(
        "POST / HTTP/1.1\r\nx-dev: a\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let (mut read, mut write) = caller.into_split();
    let calling = async {
        let mut seen = vec![0; answer.len()];
        let reading = read.read_exact(&mut seen);
        let (sent, got) = tokio::join!(write.write_all(request.as_bytes()), reading);
        sent.unwrap();
        got.unwrap();
        assert!(seen == answer.as_bytes());
    };
    let serving = async {
        let (mut read, mut write) = desk.accept().await.into_split();
        let mut seen = vec![0; request.len()];
        let (got, sent) = tokio::join!(
            read.read_exact(&mut seen),
            write.write_all(answer.as_bytes())
        );
        got.unwrap();
        sent.unwrap();
        assert!(seen == request.as_bytes());
    };
    tokio::join!(calling, serving);
}

#[tokio::test]
async fn an_expired_rule_answers_503_and_the_connection_goes_on() {
    let fixture = PortFixture::start(named_server("app").await);
    fixture.rule(&[("x-dev", "a")], State::Expired);
    let mut caller = fixture.connect().await;
    let text = "The intercept \"mine\" of dev@laptop has expired, so this request was not \
        served.\nCreate the intercept again to receive such requests, or remove the header or path \
        that it matches to reach the service.\n";
    let head = format!(
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; \
        charset=utf-8\r\nContent-Length: {}\r\n",
        text.len()
    );
    caller
        .send("POST / HTTP/1.1\r\nx-dev: a\r\nContent-Length: 2\r\n\r\nhi")
        .await;
    caller.expect(&format!("{head}\r\n{text}")).await;
    caller.send("HEAD / HTTP/1.1\r\nx-dev: a\r\n\r\n").await;
    caller.expect(&format!("{head}\r\n")).await;
    caller.send(OTHER).await;
    caller.expect(&named("app")).await;
    // A body that is not there yet is not waited for.
    caller
        .send("POST / HTTP/1.1\r\nx-dev: a\r\nContent-Length: 1000000\r\n\r\npart")
        .await;
    caller
        .expect(&format!("{head}Connection: close\r\n\r\n{text}"))
        .await;
    caller.expect_end().await;
    assert_eq!(
        fixture.port.metrics.http1_requests.at(Route::Expired).get(),
        3
    );
}

#[tokio::test]
async fn where_a_workstation_takes_everything_a_server_there_may_speak_first() {
    let desk = ScriptedApp::listen().await;
    let app = ScriptedApp::listen().await;
    let fixture = PortFixture::with(
        app.addr(),
        AppProtocol::Unknown,
        Behaviour::Dials(desk.addr()),
    );
    fixture.rule(&[], State::Active);
    let mut caller = fixture.connect().await;
    let mut at_desk = desk.accept().await;
    at_desk.send("220 mail.test ESMTP\r\n").await;
    caller.expect("220 mail.test ESMTP\r\n").await;
    assert!(app.is_untouched().await);
}
