//! Wiretaps: what their workstations get, and that nobody else notices.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use traffic_agent::proxy::context::AppProtocol;
use traffic_agent::telemetry::metrics::CopyEnd;
use traffic_core::routing::Stats;

use agent_testkit::app::{Expect, ScriptedApp, named_server};
use agent_testkit::eventually;
use agent_testkit::intercept::{intercept, wiretap};
use agent_testkit::port::PortFixture;
use agent_testkit::tunnels::Behaviour;

const MATCHING: &str = "GET / HTTP/1.1\r\nX-Dev: a\r\n\r\n";
const OTHER: &str = "GET / HTTP/1.1\r\nX-Dev: b\r\n\r\n";
const ANSWER: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndesk";

fn named(name: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}",
        name.len()
    )
}

/// A port whose app names itself, and whose wiretap on `x-dev: a` leads to `desk`.
async fn tapped(desk: &ScriptedApp) -> (PortFixture, Arc<Stats>) {
    let desk = Behaviour::Dials(desk.addr());
    let fixture = PortFixture::with(named_server("app").await, AppProtocol::Unknown, desk);
    let rule = wiretap("tap", &[("x-dev", "a")]);
    let stats = Arc::clone(&rule.stats);
    fixture.rules(vec![rule]);
    (fixture, stats)
}

fn copies(fixture: &PortFixture, end: CopyEnd) -> u64 {
    fixture.port.metrics.copies.at(end).get()
}

#[tokio::test]
async fn the_app_answers_and_the_desk_gets_copies_in_order_over_one_tunnel() {
    let desk = ScriptedApp::listen().await;
    let (fixture, stats) = tapped(&desk).await;
    let mut caller = fixture.connect().await;
    let posted = "POST /p HTTP/1.1\r\nX-Dev: a\r\nContent-Length: 5\r\n\r\nhello";
    caller.send(MATCHING).await;
    caller.expect(&named("app")).await;
    caller.send(OTHER).await;
    caller.expect(&named("app")).await;
    let mut seen = desk.accept().await;
    seen.expect(MATCHING).await;
    // An answer, and a whole other one: neither reaches the caller.
    seen.send(ANSWER).await;
    caller.send(MATCHING).await;
    caller.expect(&named("app")).await;
    seen.expect(MATCHING).await;
    seen.send("HTTP/1.1 100 Continue\r\n\r\n").await;
    seen.send(ANSWER).await;
    caller.send(&posted[..30]).await;
    caller.send(&posted[30..]).await;
    seen.expect(posted).await;
    seen.send(ANSWER).await;
    eventually("its copies", || copies(&fixture, CopyEnd::Sent) == 3).await;
    assert_eq!(fixture.tunnels.opened(), 1);
    assert_eq!(stats.hits.load(Ordering::Relaxed), 3);
    assert_eq!(stats.copies_dropped.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn several_wiretaps_and_an_intercept_all_get_the_same_request() {
    let desk = ScriptedApp::listen().await;
    let behaviour = Behaviour::Dials(desk.addr());
    let fixture = PortFixture::with(named_server("app").await, AppProtocol::Unknown, behaviour);
    fixture.rules(vec![
        wiretap("one", &[]),
        wiretap("two", &[("x-dev", "a")]),
        wiretap("three", &[("x-dev", "b")]),
        intercept("mine", &[("x-dev", "a")]),
    ]);
    let mut caller = fixture.connect().await;
    caller.send(MATCHING).await;
    let mut seen = Vec::new();
    for _ in 0..3 {
        let mut one = desk.accept().await;
        one.expect(MATCHING).await;
        seen.push(one);
    }
    // Which of them is the intercept's is not known here; each answers.
    for one in &mut seen {
        one.send(ANSWER).await;
    }
    caller.expect(ANSWER).await;
    assert_eq!(fixture.tunnels.opened(), 3);
    eventually("its copies", || copies(&fixture, CopyEnd::Sent) == 2).await;
}

#[tokio::test]
async fn a_desk_that_is_away_or_refuses_costs_copies_and_nothing_else() {
    for behaviour in [Behaviour::Away, Behaviour::Rejects, Behaviour::Silent] {
        let app = named_server("app").await;
        let fixture = PortFixture::with(app, AppProtocol::Unknown, behaviour.clone());
        let rule = wiretap("tap", &[]);
        let stats = Arc::clone(&rule.stats);
        fixture.rules(vec![rule]);
        let mut caller = fixture.connect().await;
        for _ in 0..5 {
            caller.send(MATCHING).await;
            caller.expect(&named("app")).await;
        }
        let dropped = || stats.copies_dropped.load(Ordering::Relaxed);
        eventually("its copies", || dropped() == 5).await;
        assert_eq!(copies(&fixture, CopyEnd::Unreachable), 5, "{behaviour:?}");
        assert_eq!(stats.failed_open.load(Ordering::Relaxed), 0);
        assert_eq!(
            fixture
                .port
                .metrics
                .fail_open
                .iter()
                .map(|f| f.1)
                .sum::<u64>(),
            0
        );
    }
}

#[tokio::test]
async fn a_desk_that_never_reads_drops_the_copy_and_the_upload_goes_on() {
    let (desk, app) = (ScriptedApp::listen().await, ScriptedApp::listen().await);
    let behaviour = Behaviour::Dials(desk.addr());
    let fixture = PortFixture::with(app.addr(), AppProtocol::Unknown, behaviour);
    let rule = wiretap("tap", &[]);
    let stats = Arc::clone(&rule.stats);
    fixture.rules(vec![rule]);
    let caller = fixture.connect().await;
    let (mut read, mut write) = caller.into_split();
    let body = vec![b'x'; 64 << 20];
    let head = format!("PUT / HTTP/1.1\r\nContent-Length: {}\r\n\r\n", body.len());
    let upload = async {
        write.write_all(head.as_bytes()).await.unwrap();
        write.write_all(&body).await.unwrap();
    };
    let served = async {
        let mut app = app.accept().await;
        app.expect(&head).await;
        let mut got = (&mut app).take(body.len() as u64);
        let mut sink = tokio::io::sink();
        let got = tokio::io::copy(&mut got, &mut sink).await.unwrap();
        assert_eq!(got, body.len() as u64);
        app.send(&named("app")).await;
    };
    // The desk accepts and reads nothing.
    let (_, (), stalled) = tokio::join!(upload, served, desk.accept());
    let mut answer = vec![0; named("app").len()];
    read.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, named("app").as_bytes());
    eventually("its copies", || copies(&fixture, CopyEnd::Slow) == 1).await;
    assert_eq!(stats.copies_dropped.load(Ordering::Relaxed), 1);
    drop(stalled);
    eventually("its copies", || {
        stats.copy_bytes.load(Ordering::Relaxed) == 0
    })
    .await;
}

#[tokio::test]
async fn a_desk_that_answers_late_does_not_hold_up_the_next_copy() {
    let desk = ScriptedApp::listen().await;
    let (fixture, _) = tapped(&desk).await;
    let mut caller = fixture.connect().await;
    caller.send(MATCHING).await;
    caller.expect(&named("app")).await;
    let mut first = desk.accept().await;
    first.expect(MATCHING).await;
    caller.send(MATCHING).await;
    caller.expect(&named("app")).await;
    let mut second = desk.accept().await;
    second.expect(MATCHING).await;
    // Whoever was slow is not cut off.
    first.send(ANSWER).await;
    first.expect_end().await;
    second.send(ANSWER).await;
}

#[tokio::test]
async fn a_request_that_breaks_off_is_broken_off_for_the_desk() {
    let desk = ScriptedApp::listen().await;
    let (fixture, stats) = tapped(&desk).await;
    let mut caller = fixture.connect().await;
    let head = "POST / HTTP/1.1\r\nX-Dev: a\r\nContent-Length: 10\r\n\r\n";
    caller.send(head).await;
    let mut seen = desk.accept().await;
    seen.expect(head).await;
    drop(caller);
    let mut rest = Vec::new();
    let _ = seen.read_to_end(&mut rest).await;
    assert!(rest.is_empty());
    eventually("its copies", || copies(&fixture, CopyEnd::Broken) == 1).await;
    assert_eq!(stats.copies_dropped.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn wiretaps_come_and_go_on_open_connections() {
    let desk = ScriptedApp::listen().await;
    let (fixture, _) = tapped(&desk).await;
    let mut caller = fixture.connect().await;
    for round in 0..3 {
        fixture.rules(vec![wiretap("tap", &[])]);
        caller.send(OTHER).await;
        caller.expect(&named("app")).await;
        eventually("its copies", || {
            copies(&fixture, CopyEnd::Sent) == round + 1
        })
        .await;
        fixture.clear();
        caller.send(OTHER).await;
        caller.expect(&named("app")).await;
    }
    assert_eq!(copies(&fixture, CopyEnd::Sent), 3);
}

#[tokio::test]
async fn bytes_of_an_unread_connection_are_copied_to_wiretaps_without_filters() {
    let (desk, app) = (ScriptedApp::listen().await, ScriptedApp::listen().await);
    let behaviour = Behaviour::Dials(desk.addr());
    let fixture = PortFixture::with(app.addr(), AppProtocol::Unknown, behaviour);
    fixture.rules(vec![
        wiretap("all", &[]),
        wiretap("some", &[("x-dev", "a")]),
    ]);
    let mut caller = fixture.connect().await;
    caller.send("\x01\x02 not HTTP").await;
    let mut served = app.accept().await;
    served.expect("\x01\x02 not HTTP").await;
    let mut seen = desk.accept().await;
    seen.expect("\x01\x02 not HTTP").await;
    seen.send("dropped").await;
    served.send("from the app").await;
    caller.expect("from the app").await;
    caller.send("more").await;
    served.expect("more").await;
    seen.expect("more").await;
    end(&mut caller).await;
    served.expect_end().await;
    seen.expect_end().await;
    drop(served);
    caller.expect_end().await;
    assert_eq!(fixture.tunnels.opened(), 1);
    eventually("its copies", || copies(&fixture, CopyEnd::Sent) == 1).await;
}

async fn end(caller: &mut TcpStream) {
    caller.shutdown().await.unwrap();
}
