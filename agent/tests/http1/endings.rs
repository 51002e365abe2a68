//! Ends: what an app has said last arrives whole, a last exchange is the last one, and what stands
//! between requests goes where it would go without the agent.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use traffic_agent::io::conn::Io as _;
use traffic_agent::proxy::context::AppProtocol;
use traffic_agent::telemetry::metrics::OpaqueReason;

use agent_testkit::app::{Expect, ScriptedApp, named_server};
use agent_testkit::port::PortFixture;
use agent_testkit::tunnels::Behaviour;

const WAIT_TIMEOUT: Duration = Duration::from_secs(30);

const LARGE: usize = 8 << 20;

/// Reads slowly to the end: how many bytes came, and whether the end was a proper one.
async fn rest_of(socket: &mut TcpStream) -> (usize, bool) {
    let (mut seen, mut buf) = (0, vec![0; 256 * 1024]);
    loop {
        match tokio::time::timeout(WAIT_TIMEOUT, socket.read(&mut buf)).await {
            Ok(Ok(0)) => return (seen, true),
            Ok(Ok(n)) => seen += n,
            Ok(Err(_)) => return (seen, false),
            Err(_) => panic!("no end after {seen} bytes"),
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn named_desk() -> Behaviour {
    Behaviour::Dials(named_server("desk").await)
}

#[tokio::test]
async fn a_last_answer_arrives_whole_although_another_request_was_sent_behind() {
    for rules in [false, true] {
        let app = ScriptedApp::listen().await;
        let fixture = PortFixture::with(app.addr(), AppProtocol::Unknown, Behaviour::Away);
        if rules {
            fixture.intercept();
        }
        let mut caller = fixture.connect().await;
        caller
            .send("GET /1 HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\n\r\n")
            .await;
        let mut app = app.accept().await;
        app.expect("GET /1 HTTP/1.1\r\n\r\n").await;
        let serving = tokio::spawn(async move {
            let head =
                format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {LARGE}\r\n\r\n");
            app.write_all(head.as_bytes()).await.unwrap();
            app.write_all(&vec![b'x'; LARGE]).await.unwrap();
            // An orderly end with the second request unread: the usual lingering close.
            app.shutdown().await.unwrap();
            let _ = app.read_to_end(&mut Vec::new()).await;
            head.len()
        });
        let (seen, orderly) = rest_of(&mut caller).await;
        drop(caller);
        let head = serving.await.unwrap();
        assert_eq!((seen, orderly), (head + LARGE, true), "rules: {rules}");
    }
}

#[tokio::test]
async fn an_app_that_closes_at_once_ends_in_order_although_another_request_was_sent_behind() {
    for round in 0..50 {
        let app = ScriptedApp::listen().await;
        let fixture = PortFixture::start(app.addr());
        let mut caller = fixture.connect().await;
        let last = "GET /1 HTTP/1.1\r\nConnection: close\r\n\r\n";
        caller.send(&format!("{last}GET /2 HTTP/1.1\r\n\r\n")).await;
        let mut app = app.accept().await;
        app.expect(last).await;
        let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        app.send(answer).await;
        tokio::time::sleep(Duration::from_millis(round % 10)).await;
        drop(app);
        assert_eq!(rest_of(&mut caller).await, (answer.len(), true));
    }
}

#[tokio::test]
async fn what_an_app_says_before_it_hangs_up_arrives_whatever_the_caller_sends() {
    for round in 0..50 {
        let app = ScriptedApp::listen().await;
        let fixture = PortFixture::start(app.addr());
        let mut caller = fixture.connect().await;
        caller.send("*1\r\n$4\r\nPING\r\n").await;
        let mut app = app.accept().await;
        app.send("-ERR max number of clients reached\r\n").await;
        if round % 2 == 0 {
            app.shutdown().await.unwrap();
        }
        // Closing over what the caller has sent resets the connection.
        drop(app);
        let _ = caller.write_all(b"*1\r\n$4\r\nPING\r\n").await;
        caller
            .expect("-ERR max number of clients reached\r\n")
            .await;
    }
}

#[tokio::test]
async fn a_request_behind_the_last_one_is_left_to_the_app_also_when_it_matches() {
    let matching = "GET /2 HTTP/1.1\r\nX-Dev: a\r\n\r\n";
    for (first, answer) in [
        (
            "GET /1 HTTP/1.1\r\nConnection: close\r\n\r\n",
            "HTTP/1.1 204 x\r\n\r\n",
        ),
        ("GET /1 HTTP/1.0\r\n\r\n", "HTTP/1.0 204 x\r\n\r\n"),
        (
            "GET /1 HTTP/1.1\r\n\r\n",
            "HTTP/1.1 400 x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
        ),
    ] {
        let app = ScriptedApp::listen().await;
        let fixture = PortFixture::with(app.addr(), AppProtocol::Unknown, named_desk().await);
        fixture.intercept();
        let mut caller = fixture.connect().await;
        caller.send(&format!("{first}{matching}")).await;
        let mut app = app.accept().await;
        app.expect(first).await;
        app.send(answer).await;
        caller.expect(answer).await;
        app.expect(matching).await;
        drop(app);
        caller.expect_end().await;
        assert_eq!(fixture.tunnels.opened(), 0, "{first:?}");
        assert_eq!(
            fixture.port.metrics.opaque.at(OpaqueReason::Closing).get(),
            1
        );
    }
}

#[tokio::test]
async fn an_empty_line_between_requests_goes_where_the_request_before_it_went() {
    let (app, desk) = (ScriptedApp::listen().await, ScriptedApp::listen().await);
    let fixture = PortFixture::with(
        app.addr(),
        AppProtocol::Unknown,
        Behaviour::Dials(desk.addr()),
    );
    fixture.intercept();
    let answer = "HTTP/1.1 204 x\r\n\r\n";
    let to_desk = "POST /d HTTP/1.1\r\nX-Dev: a\r\nContent-Length: 1\r\n\r\nx";
    let to_app = "POST /a HTTP/1.1\r\nContent-Length: 1\r\n\r\nx";
    let mut caller = fixture.connect().await;
    caller
        .send(&format!("{to_desk}\r\n{to_app}\r\n\r\n{to_desk}"))
        .await;
    let mut desk = desk.accept().await;
    desk.expect(to_desk).await;
    desk.send(answer).await;
    desk.expect("\r\n").await;
    let mut app = app.accept().await;
    app.expect(to_app).await;
    app.send(answer).await;
    app.expect("\r\n\r\n").await;
    desk.expect(to_desk).await;
    desk.send(answer).await;
    caller.expect(&answer.repeat(3)).await;
    // It does not wait for a request that follows.
    caller.send("\r\n").await;
    desk.expect("\r\n").await;
}

/// Servers that hang up on empty lines answer a caller in order where they have read all it sent, and
/// with a reset where more comes afterwards.
#[tokio::test]
async fn empty_lines_and_the_request_behind_them_reach_the_same_server_in_one_piece() {
    let (app, desk) = (ScriptedApp::listen().await, ScriptedApp::listen().await);
    let fixture = PortFixture::with(
        app.addr(),
        AppProtocol::Unknown,
        Behaviour::Dials(desk.addr()),
    );
    fixture.intercept();
    for (server, request) in [
        (&app, "GET /a HTTP/1.1\r\n\r\n"),
        (&desk, "GET /d HTTP/1.1\r\nX-Dev: a\r\n\r\n"),
    ] {
        let mut caller = fixture.connect().await;
        caller.send(request).await;
        let mut server = server.accept().await;
        server.expect(request).await;
        server.send("HTTP/1.1 204 x\r\n\r\n").await;
        caller.expect("HTTP/1.1 204 x\r\n\r\n").await;
        let more = format!("\r\n\r\n\r\n{request}");
        caller.send(&more).await;
        let mut piece = vec![0; 4096];
        let n = server.read(&mut piece).await.unwrap();
        assert_eq!(
            piece[..n].escape_ascii().to_string(),
            more.as_bytes().escape_ascii().to_string()
        );
    }
}

#[tokio::test]
async fn a_head_that_cannot_become_complete_reaches_the_app_at_once() {
    for broken in [
        "GET / HTTX",
        "GET /a b",
        "GET / HTTP/1.1\r\nContent-Length: x",
        "GET / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n",
    ] {
        let app = ScriptedApp::listen().await;
        let fixture = PortFixture::with(app.addr(), AppProtocol::Unknown, named_desk().await);
        fixture.intercept();
        let mut caller = fixture.connect().await;
        let first = "GET / HTTP/1.1\r\n\r\n";
        caller.send(first).await;
        let mut app = app.accept().await;
        app.expect(first).await;
        app.send("HTTP/1.1 204 x\r\n\r\n").await;
        caller.expect("HTTP/1.1 204 x\r\n\r\n").await;
        let before = std::time::Instant::now();
        caller.send(broken).await;
        app.expect(broken).await;
        assert!(before.elapsed() < traffic_agent::proxy::http1::connection::HEAD_TIMEOUT / 2);
    }
}

#[tokio::test]
async fn a_caller_s_reset_behind_pipelined_requests_reaches_the_app() {
    for more in [1, 2000] {
        let app = ScriptedApp::listen().await;
        let fixture = PortFixture::start(app.addr());
        let mut caller = fixture.connect().await;
        let request = "GET / HTTP/1.1\r\n\r\n";
        caller.send(request).await;
        let mut app = app.accept().await;
        app.expect(request).await;
        caller.send(&request.repeat(more)).await;
        caller.abort();
        // The reset must not overtake what was sent.
        tokio::time::sleep(Duration::from_millis(50)).await;
        drop(caller);
        app.expect_reset().await;
    }
}

#[tokio::test]
async fn a_caller_s_end_behind_pipelined_requests_reaches_the_app_behind_them() {
    let app = ScriptedApp::listen().await;
    let fixture = PortFixture::start(app.addr());
    let mut caller = fixture.connect().await;
    let request = "GET / HTTP/1.1\r\n\r\n";
    caller.send(&request.repeat(3)).await;
    caller.shutdown().await.unwrap();
    let mut app = app.accept().await;
    for _ in 0..3 {
        app.expect(request).await;
        app.send("HTTP/1.1 204 x\r\n\r\n").await;
    }
    app.expect_end().await;
    drop(app);
    caller.expect(&"HTTP/1.1 204 x\r\n\r\n".repeat(3)).await;
    caller.expect_end().await;
}

#[tokio::test]
async fn heads_up_to_one_bound_are_routed_alike_first_or_second() {
    let fixture = PortFixture::with(
        named_server("app").await,
        AppProtocol::Unknown,
        named_desk().await,
    );
    fixture.intercept();
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndesk";
    for length in [16_000, 16_384, 30_000, 60_000] {
        let target = "q".repeat(length);
        let mut caller = fixture.connect().await;
        for _ in 0..2 {
            caller
                .send(&format!("GET /?{target} HTTP/1.1\r\nX-Dev: a\r\n\r\n"))
                .await;
            caller.expect(answer).await;
        }
    }
}
