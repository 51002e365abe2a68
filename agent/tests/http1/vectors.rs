//! Known ways to make two parsers disagree end at the app, relayed opaquely, even with a matching
//! header.

use traffic_agent::telemetry::metrics::OpaqueReason;

use agent_testkit::app::{Expect, ScriptedApp, named_server};
use agent_testkit::eventually;
use agent_testkit::port::PortFixture;
use agent_testkit::tunnels::Behaviour;

const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nx-dev: a\r\n\r\n";

fn vectors() -> Vec<String> {
    let with = |fields: &str, body: &str| {
        format!("POST / HTTP/1.1\r\nHost: x\r\nx-dev: a\r\n{fields}\r\n{body}")
    };
    vec![
        with(
            "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n",
            "0\r\n\r\nG",
        ),
        with(
            "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
            "5c\r\nGPOST / HTTP/1.1\r\n\r\n0\r\n\r\n",
        ),
        with(
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n",
            "0\r\n\r\n",
        ),
        with("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n"),
        with("Transfer-Encoding : chunked\r\n", "0\r\n\r\n"),
        with("Transfer-Encoding:\u{b}chunked\r\n", "0\r\n\r\n"),
        with("X: a\r\n Transfer-Encoding: chunked\r\n", "0\r\n\r\n"),
        with("Content-Length: 5\r\nContent-Length: 0\r\n", "hello"),
        with("Content-Length: 5\r\nContent-Length: 5\r\n", "hello"),
        with("Content-Length: 5, 0\r\n", "hello"),
        with("Content-Length: +5\r\n", "hello"),
        with("Content-Length: -1\r\n", ""),
        with("Content-Length: 0x5\r\n", "hello"),
        with("Content-Length: 18446744073709551621\r\n", "hello"),
        with("X: a\nContent-Length: 5\r\n", "hello"),
        with("X: a\rContent-Length: 5\r\n", "hello"),
        with("X: a\0b\r\n", ""),
        with("no colon\r\n", ""),
        with(
            "Transfer-Encoding: chunked\r\n",
            "ffffffffffffffff1\r\nhello\r\n0\r\n\r\n",
        ),
        with(
            "Transfer-Encoding: chunked\r\n",
            "10000000000000005\r\nhello\r\n0\r\n\r\n",
        ),
        with(
            "Transfer-Encoding: chunked\r\n",
            "5;a\rb\r\nhello\r\n0\r\n\r\n",
        ),
        with("Transfer-Encoding: chunked\r\n", "5;a\nhello\r\n0\r\n\r\n"),
        with("Transfer-Encoding: chunked\r\n", "5\nhello\n0\n\n"),
        with(
            "Transfer-Encoding: chunked\r\n",
            "0x5\r\nhello\r\n0\r\n\r\n",
        ),
        with("Transfer-Encoding: chunked\r\n", "+5\r\nhello\r\n0\r\n\r\n"),
        with("Transfer-Encoding: chunked\r\n", "5 \r\nhello\r\n0\r\n\r\n"),
        with("Transfer-Encoding: chunked\r\n", "5\r\nhelloX\r\n0\r\n\r\n"),
        "GET / HTTP/1.0\r\nx-dev: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(),
        "CONNECT a:1 HTTP/1.1\r\nx-dev: a\r\nContent-Length: 5\r\n\r\nhello".to_owned(),
        "\r\n\r\nGET / HTTP/1.1\r\nx-dev: a\r\n\r\n".to_owned(),
        "GET  / HTTP/1.1\r\nx-dev: a\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\nx-dev: a\n\n".to_owned(),
    ]
}

#[tokio::test]
async fn every_vector_goes_whole_to_the_app_and_never_to_the_workstation() {
    let app = ScriptedApp::listen().await;
    let fixture = PortFixture::with(
        app.addr(),
        traffic_agent::proxy::context::AppProtocol::Unknown,
        Behaviour::Dials(named_server("desk").await),
    );
    fixture.intercept();
    for after_a_good_one in [false, true] {
        // Behind a request, empty lines belong to it, and what follows is a request like others.
        let judged = |v: &String| !(after_a_good_one && v.starts_with("\r\n"));
        for vector in vectors().into_iter().filter(judged) {
            let mut caller = fixture.connect().await;
            let mut socket = app.accept().await;
            if after_a_good_one {
                caller.send("GET /good HTTP/1.1\r\n\r\n").await;
                socket.expect("GET /good HTTP/1.1\r\n\r\n").await;
                socket.send("HTTP/1.1 204 x\r\n\r\n").await;
                caller.expect("HTTP/1.1 204 x\r\n\r\n").await;
            }
            let whole = format!("{vector}{SMUGGLED}");
            caller.send(&whole).await;
            socket.expect(&whole).await;
            // From here on it is a relay, both ways and for good.
            socket.send("HTTP/1.1 400 Bad Request\r\n\r\n").await;
            caller.expect("HTTP/1.1 400 Bad Request\r\n\r\n").await;
            caller.send(SMUGGLED).await;
            socket.expect(SMUGGLED).await;
        }
    }
    assert_eq!(fixture.tunnels.opened(), 0);
}

#[tokio::test]
async fn a_chunk_that_breaks_off_later_is_cut_for_the_workstation_and_left_to_the_app() {
    let app = ScriptedApp::listen().await;
    let desk = ScriptedApp::listen().await;
    let fixture = PortFixture::with(
        app.addr(),
        traffic_agent::proxy::context::AppProtocol::Unknown,
        Behaviour::Dials(desk.addr()),
    );
    fixture.intercept();
    let head = "POST / HTTP/1.1\r\nx-dev: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let mut caller = fixture.connect().await;
    caller.send(head).await;
    let mut at_desk = desk.accept().await;
    at_desk.expect(head).await;
    caller.send("5\nhello").await;
    caller.expect_reset().await;

    let mut caller = fixture.connect().await;
    let head = head.replace("x-dev: a", "x-dev: b");
    caller.send(&head).await;
    let _unused = app.accept().await;
    let mut at_app = app.accept().await;
    at_app.expect(&head).await;
    caller.send("5\nhello").await;
    at_app.expect("5\nhello").await;
    eventually("counted", || {
        fixture
            .port
            .metrics
            .opaque
            .at(OpaqueReason::Ambiguous)
            .get()
            == 1
    })
    .await;
}

#[tokio::test]
async fn an_unclear_answer_is_relayed_and_no_later_request_is_routed() {
    let app = ScriptedApp::listen().await;
    let fixture = PortFixture::with(
        app.addr(),
        traffic_agent::proxy::context::AppProtocol::Unknown,
        Behaviour::Dials(named_server("desk").await),
    );
    fixture.intercept();
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        "HTTP/1.1 200 OK\nContent-Length: 5\n\nhello",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        "HTTP/1.1 204 No\r\nContent-Length: 5\r\n\r\nhello",
        "hello, HTTP/0.9",
    ] {
        let mut caller = fixture.connect().await;
        caller.send("GET / HTTP/1.1\r\n\r\n").await;
        let mut app = app.accept().await;
        app.expect("GET / HTTP/1.1\r\n\r\n").await;
        app.send(answer).await;
        caller.expect(answer).await;
        caller.send(SMUGGLED).await;
        app.expect(SMUGGLED).await;
    }
    assert_eq!(fixture.tunnels.opened(), 0);
}
