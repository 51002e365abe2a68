//! Connections that begin in HTTP/1 and are upgraded to HTTP/2 (RFC 7540 section 3.2), as Java's
//! client asks for on every connection in clear text.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use agent_testkit::WAIT_TIMEOUT;
use agent_testkit::app::{Expect, ScriptedApp};
use agent_testkit::port::PortFixture;
use agent_testkit::tunnels::Behaviour;
use traffic_agent::proxy::context::AppProtocol;
use traffic_agent::telemetry::metrics::{Protocol, Route};
use traffic_core::http2::frames::{
    END_HEADERS, END_STREAM, FrameHeader, HEAD, PREFACE, SETTINGS_ACK, kind, settings,
};

use crate::app::App;

const OFFER: &str = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\
                     HTTP2-Settings: AAMAAABkAAQBAAAAAAIAAAAA\r\n";
const AGREED: &str =
    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n";

/// `GET http://app.example/x`, with more fields.
fn get(more: &[u8]) -> Vec<u8> {
    [b"\x82\x86\x41\x0bapp.example\x44\x02/x", more].concat()
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let head = FrameHeader {
        length: payload.len() as u32,
        kind,
        flags,
        stream,
    };
    [&head.encode()[..], payload].concat()
}

async fn next_frame(from: &mut TcpStream) -> (FrameHeader, Vec<u8>) {
    let read = async {
        let mut head = [0; HEAD];
        from.read_exact(&mut head).await.unwrap();
        let head = FrameHeader::parse(head);
        let mut payload = vec![0; head.length as usize];
        from.read_exact(&mut payload).await.unwrap();
        (head, payload)
    };
    timeout(WAIT_TIMEOUT, read).await.expect("a frame")
}

/// Begins HTTP/2 behind a request, and answers it.
async fn begin_http2(app: &mut TcpStream) {
    let mut said = AGREED.as_bytes().to_vec();
    settings(&[(3, 100)], &mut said);
    said.extend(frame(kind::HEADERS, END_HEADERS, 1, b"\x88"));
    said.extend(frame(kind::DATA, END_STREAM, 1, b"upgraded"));
    app.write_all(&said).await.unwrap();
}

/// Reads the preface, and answers every request of an upgraded connection.
async fn serve_http2(mut app: TcpStream) {
    let mut preface = [0; PREFACE.len()];
    app.read_exact(&mut preface).await.unwrap();
    assert_eq!(&preface[..], PREFACE);
    loop {
        let mut head = [0; HEAD];
        if app.read_exact(&mut head).await.is_err() {
            return;
        }
        let head = FrameHeader::parse(head);
        let mut payload = vec![0; head.length as usize];
        app.read_exact(&mut payload).await.unwrap();
        let answer = match head.kind {
            kind::SETTINGS if !head.is_ack() => SETTINGS_ACK.to_vec(),
            kind::HEADERS => [
                frame(kind::HEADERS, END_HEADERS, head.stream, b"\x88"),
                frame(kind::DATA, END_STREAM, head.stream, b"app"),
            ]
            .concat(),
            _ => continue,
        };
        app.write_all(&answer).await.unwrap();
    }
}

/// The body of the answer on a stream.
async fn body(caller: &mut TcpStream, stream: u32) -> String {
    let mut body = Vec::new();
    loop {
        let (head, payload) = next_frame(caller).await;
        assert_ne!(head.kind, kind::GOAWAY);
        assert!(
            head.kind != kind::RST_STREAM || head.stream != stream,
            "reset: {payload:?}"
        );
        if head.kind == kind::DATA && head.stream == stream {
            body.extend(payload);
        }
        if head.stream == stream && head.ends_stream() {
            return String::from_utf8(body).unwrap();
        }
    }
}

async fn ask(caller: &mut TcpStream, stream: u32, more: &[u8]) -> String {
    let flags = END_HEADERS | END_STREAM;
    let request = frame(kind::HEADERS, flags, stream, &get(more));
    caller.write_all(&request).await.unwrap();
    body(caller, stream).await
}

async fn fixture(app: &ScriptedApp, workstation: std::net::SocketAddr) -> PortFixture {
    let desk = Behaviour::Dials(workstation);
    PortFixture::with(app.addr(), AppProtocol::Unknown, desk)
}

/// The caller's first words in HTTP/2.
fn hello() -> Vec<u8> {
    let mut hello = PREFACE.to_vec();
    settings(&[], &mut hello);
    hello
}

const DEV: &[u8] = b"\0\x05x-dev\x01a";

#[tokio::test]
async fn streams_behind_an_upgrade_go_where_rules_say() {
    let (app, workstation) = (ScriptedApp::listen().await, App::start("workstation").await);
    let fixture = fixture(&app, workstation.addr).await;
    fixture.intercept();
    let mut caller = fixture.connect().await;
    let request = format!("GET /x HTTP/1.1\r\nHost: a\r\n{OFFER}\r\n");
    caller.send(&request).await;
    let mut at_app = app.accept().await;
    at_app.expect(&request).await;
    begin_http2(&mut at_app).await;
    caller.expect(AGREED).await;
    tokio::spawn(serve_http2(at_app));
    assert_eq!(body(&mut caller, 1).await, "upgraded");
    caller.write_all(&hello()).await.unwrap();
    assert_eq!(ask(&mut caller, 3, DEV).await, "workstation /x");
    assert_eq!(ask(&mut caller, 5, b"").await, "app");
    fixture.clear();
    assert_eq!(ask(&mut caller, 7, DEV).await, "app");
    let metrics = &fixture.port.metrics;
    assert_eq!(metrics.carried.at(Protocol::Http2).get(), 1);
    assert_eq!(metrics.http2_requests.at(Route::Client).get(), 1);
}

#[tokio::test]
async fn a_rule_that_comes_behind_an_upgrade_holds_for_the_next_stream() {
    let (app, workstation) = (ScriptedApp::listen().await, App::start("workstation").await);
    let fixture = fixture(&app, workstation.addr).await;
    let mut caller = fixture.connect().await;
    // The app agrees before it has all of the request.
    let head = format!("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n{OFFER}\r\n");
    caller.send(&head).await;
    let mut at_app = app.accept().await;
    at_app.expect(&head).await;
    begin_http2(&mut at_app).await;
    caller.expect(AGREED).await;
    caller.send("body").await;
    at_app.expect("body").await;
    tokio::spawn(serve_http2(at_app));
    assert_eq!(body(&mut caller, 1).await, "upgraded");
    caller.write_all(&hello()).await.unwrap();
    assert_eq!(ask(&mut caller, 3, DEV).await, "app");
    fixture.intercept();
    assert_eq!(ask(&mut caller, 5, DEV).await, "workstation /x");
}

#[tokio::test]
async fn a_workstation_is_not_offered_the_connection() {
    let (app, workstation) = (ScriptedApp::listen().await, ScriptedApp::listen().await);
    let fixture = fixture(&app, workstation.addr()).await;
    fixture.intercept();
    let mut caller = fixture.connect().await;
    let line = "POST /x HTTP/1.1\r\nHost: a\r\nX-Dev: a\r\nContent-Length: 4\r\n";
    caller.send(&format!("{line}{OFFER}\r\nbo")).await;
    let mut at_workstation = workstation.accept().await;
    at_workstation.expect(&format!("{line}\r\nbo")).await;
    caller.send("dy").await;
    at_workstation.expect("dy").await;
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    at_workstation.send(answer).await;
    caller.expect(answer).await;
    // The next one is somebody else's, and the app's to upgrade.
    let other = format!("GET /y HTTP/1.1\r\nHost: a\r\n{OFFER}\r\n");
    caller.send(&other).await;
    let mut at_app = app.accept().await;
    at_app.expect(&other).await;
    at_app.send(answer).await;
    caller.expect(answer).await;
    caller.send("GET /z HTTP/1.1\r\n\r\n").await;
    at_app.expect("GET /z HTTP/1.1\r\n\r\n").await;
}
