//! Relay mode without intercepts: bytes pass unchanged.

use http::{HeaderMap, HeaderValue, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use traffic_agent::outcome::Ended;
use traffic_core::http2::frames;
use traffic_core::http2::frames::{END_HEADERS, FrameHeader, PREFACE, kind};

use crate::app::App;
use crate::rig::{Caller, Rig, request, whole};
use agent_testkit::WAIT_TIMEOUT;

#[tokio::test]
async fn bytes_are_relayed_as_they_are_whatever_they_are_and_half_close_is_passed_on() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut rig = Rig::new(listener.local_addr().unwrap(), None).await;
    let mut caller = TcpStream::connect(rig.addr).await.unwrap();
    let (mut app, _) = listener.accept().await.unwrap();

    let mut up = PREFACE.to_vec();
    up.extend_from_slice(
        &FrameHeader {
            length: 3,
            kind: 77,
            flags: 255,
            stream: 9,
        }
        .encode(),
    );
    up.extend_from_slice(b"odd");
    up.extend_from_slice(&vec![0xee; 300_000]);
    let back: Vec<u8> = (0..200_000u32).map(|n| (n * 7) as u8).collect();
    let (sent, said) = (up.clone(), back.clone());
    let writer = tokio::spawn(async move {
        caller.write_all(&sent).await.unwrap();
        caller.shutdown().await.unwrap();
        let mut seen = Vec::new();
        caller.read_to_end(&mut seen).await.unwrap();
        seen
    });
    let mut seen = Vec::new();
    timeout(WAIT_TIMEOUT, app.read_to_end(&mut seen))
        .await
        .expect("half-close reaches the app")
        .unwrap();
    assert!(seen == up);
    app.write_all(&said).await.unwrap();
    drop(app);
    assert!(
        timeout(WAIT_TIMEOUT, writer)
            .await
            .expect("the app's bytes and its end")
            .unwrap()
            == back
    );
    assert_eq!(rig.next_ended().await, Ended::Clean);
}

#[tokio::test]
async fn a_reset_by_either_side_is_a_reset_on_the_other() {
    use traffic_agent::io::conn::Io as _;
    for by_caller in [true, false] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut rig = Rig::new(listener.local_addr().unwrap(), None).await;
        let mut caller = TcpStream::connect(rig.addr).await.unwrap();
        let (mut app, _) = listener.accept().await.unwrap();
        caller.write_all(PREFACE).await.unwrap();
        app.read_exact(&mut [0; 24]).await.unwrap();
        let (mut one, mut other) = if by_caller {
            (caller, app)
        } else {
            (app, caller)
        };
        one.abort();
        drop(one);
        let error = timeout(WAIT_TIMEOUT, other.read(&mut [0; 9]))
            .await
            .expect("news")
            .unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        assert_eq!(
            rig.next_ended().await,
            if by_caller {
                Ended::CallerReset
            } else {
                Ended::AppReset
            }
        );
    }
}

#[tokio::test]
async fn requests_are_counted_and_answers_arrive_whole() {
    let app = App::start("app").await;
    let rig = Rig::new(app.addr, None).await;
    let caller = Caller::connect(rig.addr).await;
    for n in 1..=50 {
        let answer = caller.get(&format!("/{n}"), true).await.unwrap();
        assert_eq!(
            (answer.server(), answer.text()),
            ("app", format!("app /{n}").as_str())
        );
    }
    assert_eq!(rig.metrics().http2_relayed.get(), 50);
    assert!(rig.metrics().bytes_out.get() > 50 * 9);
}

#[tokio::test]
async fn an_idle_connection_follows_a_rule_that_comes_and_goes() {
    let (app, workstation) = (App::start("app").await, App::start("workstation").await);
    let rig = Rig::new(app.addr, Some(workstation.addr)).await;
    let caller = Caller::connect(rig.addr).await;
    for _ in 0..3 {
        assert_eq!(caller.get("/", true).await.unwrap().server(), "app");
        rig.intercept();
        assert_eq!(caller.get("/", true).await.unwrap().server(), "workstation");
        assert_eq!(caller.get("/", false).await.unwrap().server(), "app");
        rig.clear();
    }
    assert_eq!(rig.metrics().http2_goaways.get(), 0);
}

#[tokio::test]
async fn a_change_that_needs_no_requests_leaves_the_connection_alone() {
    let app = App::start("app").await;
    let rig = Rig::new(app.addr, None).await;
    let caller = Caller::connect(rig.addr).await;
    for _ in 0..5 {
        rig.clear();
        assert_eq!(caller.get("/", true).await.unwrap().server(), "app");
    }
    assert_eq!(
        rig.metrics()
            .carried
            .at(traffic_agent::telemetry::metrics::Protocol::Http2)
            .get(),
        1
    );
}

#[tokio::test]
async fn streams_in_flight_finish_where_they_are_with_trailers_of_both_sides() {
    let app = App::start("app").await;
    let workstation = App::start("workstation").await;
    let rig = Rig::new(app.addr, Some(workstation.addr)).await;
    let caller = Caller::connect(rig.addr).await;
    let post = request("/echo", true)
        .method("POST")
        .header("te", "trailers")
        .body(())
        .unwrap();
    let (response, mut up) = caller
        .send
        .clone()
        .ready()
        .await
        .unwrap()
        .send_request(post, false)
        .unwrap();
    up.send_data("before".into(), false).unwrap();
    let response = timeout(WAIT_TIMEOUT, response)
        .await
        .expect("a head")
        .unwrap();
    assert_eq!(response.headers()["x-server"], "app");
    rig.intercept();
    assert_eq!(caller.get("/", true).await.unwrap().server(), "workstation");
    up.send_data(" and after".into(), false).unwrap();
    let mut trailers = HeaderMap::new();
    trailers.insert("x-mine", HeaderValue::from_static("kept"));
    up.send_trailers(trailers).unwrap();
    let answer = whole(response).await.unwrap();
    assert_eq!(answer.text(), "before and after");
    let trailers = answer.trailers.unwrap();
    assert_eq!(
        (&trailers["x-mine"], &trailers["x-end"]),
        (&"kept".parse().unwrap(), &"yes".parse().unwrap())
    );
    assert_eq!(caller.get("/", false).await.unwrap().server(), "app");
}

/// A caller that writes frames by hand, and an app that does.
struct ByHand {
    rig: Rig,
    caller: TcpStream,
    app: TcpStream,
}

impl ByHand {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let rig = Rig::new(listener.local_addr().unwrap(), None).await;
        let mut caller = TcpStream::connect(rig.addr).await.unwrap();
        let (mut app, _) = listener.accept().await.unwrap();
        caller.write_all(PREFACE).await.unwrap();
        app.read_exact(&mut [0; 24]).await.unwrap();
        send(&mut app, kind::SETTINGS, 0, 0, b"").await;
        assert_eq!(next(&mut caller).await.0.kind, kind::SETTINGS);
        Self { rig, caller, app }
    }
}

pub async fn send(to: &mut TcpStream, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let mut bytes = FrameHeader {
        length: payload.len() as u32,
        kind,
        flags,
        stream,
    }
    .encode()
    .to_vec();
    bytes.extend_from_slice(payload);
    to.write_all(&bytes).await.unwrap();
}

pub async fn next(from: &mut TcpStream) -> (FrameHeader, Vec<u8>) {
    let mut head = [0; 9];
    timeout(WAIT_TIMEOUT, from.read_exact(&mut head))
        .await
        .expect("a frame")
        .unwrap();
    let head = FrameHeader::parse(head);
    let mut payload = vec![0; head.length as usize];
    timeout(WAIT_TIMEOUT, from.read_exact(&mut payload))
        .await
        .expect("its payload")
        .unwrap();
    (head, payload)
}

#[tokio::test]
async fn goaway_waits_for_the_gap_between_two_frames_and_header_sections() {
    let ByHand {
        rig,
        mut caller,
        mut app,
    } = ByHand::new().await;
    send(&mut caller, kind::HEADERS, END_HEADERS, 1, b"\x82").await;
    assert_eq!(next(&mut app).await.0.stream, 1);
    // A header section in two frames, the second of which stops in the middle of its header.
    send(&mut app, kind::HEADERS, 0, 1, b"\x88\x40\x01").await;
    assert_eq!(next(&mut caller).await.1, b"\x88\x40\x01");
    let rest = [
        &FrameHeader {
            length: 2,
            kind: kind::CONTINUATION,
            flags: END_HEADERS,
            stream: 1,
        }
        .encode()[..],
        b"a\x00",
    ]
    .concat();
    app.write_all(&rest[..4]).await.unwrap();
    let mut some = [0; 4];
    timeout(WAIT_TIMEOUT, caller.read_exact(&mut some))
        .await
        .expect("what the app wrote")
        .unwrap();
    assert_eq!(some, rest[..4]);
    rig.port.drain.start();
    app.write_all(&rest[4..]).await.unwrap();
    let mut some = [0; 7];
    timeout(WAIT_TIMEOUT, caller.read_exact(&mut some))
        .await
        .expect("what the app wrote")
        .unwrap();
    assert_eq!(some, rest[4..]);
    let (goaway, payload) = next(&mut caller).await;
    assert_eq!(
        (goaway.kind, &payload[..]),
        (kind::GOAWAY, &frames::goaway(frames::MAX_STREAM, 0)[9..])
    );
    let (ping, mark) = next(&mut caller).await;
    assert_eq!((ping.kind, ping.flags), (kind::PING, 0));

    // A stream that crossed the GOAWAY still belongs to the app; the answers to our PINGs do not.
    send(&mut caller, kind::HEADERS, END_HEADERS, 3, b"\x84").await;
    send(&mut caller, kind::PING, frames::ACK, 0, &mark).await;
    send(&mut caller, kind::PING, frames::ACK, 0, b"the apps").await;
    assert_eq!(next(&mut app).await.1, b"\x84");
    assert_eq!(next(&mut app).await.1, b"the apps");
    for stream in [1, 3] {
        send(&mut app, kind::RST_STREAM, 0, stream, &[0; 4]).await;
        assert_eq!(next(&mut caller).await.0.kind, kind::RST_STREAM);
    }
    quiet(&mut caller).await;
    let (goaway, payload) = next(&mut caller).await;
    assert_eq!(
        (goaway.kind, &payload[..]),
        (kind::GOAWAY, &frames::goaway(3, 0)[9..])
    );
    assert_eq!(
        caller.read(&mut [0; 9]).await.unwrap(),
        0,
        "closed, since nothing is open"
    );
}

/// Answers PINGs until two were answered in a row.
async fn quiet(caller: &mut TcpStream) {
    for _ in 0..2 {
        let (ping, mark) = next(caller).await;
        assert_eq!((ping.kind, ping.flags), (kind::PING, 0));
        send(caller, kind::PING, frames::ACK, 0, &mark).await;
    }
}

#[tokio::test]
async fn a_caller_that_opens_streams_against_goaway_has_them_refused_and_the_rest_goes_on() {
    let ByHand {
        rig,
        mut caller,
        mut app,
    } = ByHand::new().await;
    send(&mut caller, kind::HEADERS, END_HEADERS, 1, b"\x83").await;
    next(&mut app).await;
    rig.port.drain.start();
    next(&mut caller).await;
    next(&mut caller).await;
    // It does not even answer the PING, and its time is over at last.
    assert_eq!(next(&mut caller).await.1, frames::goaway(1, 0)[9..]);
    send(&mut caller, kind::HEADERS, 0, 3, b"\x82\x40\x01").await;
    send(&mut caller, kind::CONTINUATION, END_HEADERS, 3, b"x\x01y").await;
    send(&mut caller, kind::DATA, 0, 3, &[7; 16_384]).await;
    send(&mut caller, kind::DATA, 0, 1, b"mine").await;
    let (head, payload) = next(&mut app).await;
    assert_eq!((head.stream, &payload[..]), (1, &b"mine"[..]));
    let (update, credit) = next(&mut caller).await;
    assert_eq!(
        (update.kind, update.stream, &credit[..]),
        (kind::WINDOW_UPDATE, 0, &16_384u32.to_be_bytes()[..])
    );
    // The app never saw the refused header section; what refers to it is said in other words.
    let flags = END_HEADERS | frames::END_STREAM;
    send(&mut caller, kind::HEADERS, flags, 1, b"\xbe").await;
    let (head, trailers) = next(&mut app).await;
    assert_eq!((head.stream, head.ends_stream()), (1, true));
    assert_eq!(trailers, b"\x40\x01x\x01y");
}

#[tokio::test]
async fn ids_of_goaways_never_grow_when_the_app_parts_as_well() {
    let ByHand {
        rig,
        mut caller,
        mut app,
    } = ByHand::new().await;
    send(&mut caller, kind::HEADERS, END_HEADERS, 5, b"\x83").await;
    next(&mut app).await;
    rig.port.drain.start();
    next(&mut caller).await;
    next(&mut caller).await;
    app.write_all(&frames::goaway(5, 0)).await.unwrap();
    assert_eq!(next(&mut caller).await.1, frames::goaway(5, 0)[9..]);
    let mut wire = frames::goaway(frames::MAX_STREAM, 2).to_vec();
    wire[2] += 5;
    wire.extend_from_slice(b"debug");
    for byte in wire {
        app.write_all(&[byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    let (head, payload) = next(&mut caller).await;
    assert_eq!(
        (head.kind, &payload[..]),
        (
            kind::GOAWAY,
            &[&frames::goaway(5, 2)[9..], b"debug"].concat()[..]
        )
    );
    app.write_all(&frames::goaway(3, 0)).await.unwrap();
    assert_eq!(next(&mut caller).await.1, frames::goaway(3, 0)[9..]);
}

#[tokio::test]
async fn nothing_is_put_before_the_apps_own_settings() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rig = Rig::new(listener.local_addr().unwrap(), None).await;
    let mut caller = TcpStream::connect(rig.addr).await.unwrap();
    let (mut app, _) = listener.accept().await.unwrap();
    caller.write_all(PREFACE).await.unwrap();
    app.read_exact(&mut [0; 24]).await.unwrap();
    rig.port.drain.start();
    send(&mut app, kind::SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100]).await;
    assert_eq!(next(&mut caller).await.0.kind, kind::SETTINGS);
    assert_eq!(next(&mut caller).await.0.kind, kind::GOAWAY);
}

#[tokio::test]
async fn a_drain_asks_callers_to_leave_and_ends_when_their_streams_have() {
    let mut app = App::start("app").await;
    let mut rig = Rig::new(app.addr, None).await;
    let mut caller = Caller::connect(rig.addr).await;
    let post = Request::post("http://app.example/echo").body(()).unwrap();
    let (response, mut up) = caller
        .send
        .clone()
        .ready()
        .await
        .unwrap()
        .send_request(post, false)
        .unwrap();
    let response = timeout(WAIT_TIMEOUT, response)
        .await
        .expect("a head")
        .unwrap();
    rig.port.drain.start();
    up.send_data("last words".into(), true).unwrap();
    assert_eq!(whole(response).await.unwrap().text(), "last words");
    caller.over().await.unwrap();
    assert_eq!(rig.next_ended().await, Ended::Clean);
    app.sees("closed").await;
}

/// A section that makes its sender's table 100 000 bytes large: more than is followed.
const LARGE_TABLE: &[u8] = b"\x3f\x81\x8d\x06\x83";

#[tokio::test]
async fn a_caller_whose_table_cannot_be_followed_has_to_come_again_when_a_rule_comes() {
    let ByHand {
        rig,
        mut caller,
        mut app,
    } = ByHand::new().await;
    // A table of 1 MiB.
    send(&mut app, kind::SETTINGS, 0, 0, b"\0\x01\0\x10\0\0").await;
    next(&mut caller).await;
    for _ in 0..2 {
        send(&mut caller, kind::SETTINGS, frames::ACK, 0, b"").await;
        next(&mut app).await;
    }
    send(&mut caller, kind::HEADERS, END_HEADERS, 1, LARGE_TABLE).await;
    assert_eq!(next(&mut app).await.1, LARGE_TABLE);
    assert_eq!(rig.metrics().http2_goaways.get(), 0);
    rig.intercept();
    assert_eq!(
        next(&mut caller).await.1,
        frames::goaway(frames::MAX_STREAM, 0)[9..]
    );
    assert_eq!(rig.metrics().http2_goaways.get(), 1);
}

#[tokio::test]
async fn a_table_that_the_app_does_not_allow_is_the_apps_to_judge() {
    let ByHand {
        rig,
        mut caller,
        mut app,
    } = ByHand::new().await;
    rig.intercept();
    send(&mut caller, kind::HEADERS, END_HEADERS, 1, LARGE_TABLE).await;
    assert_eq!(next(&mut app).await.1, LARGE_TABLE);
    send(&mut app, kind::RST_STREAM, 0, 1, &[0, 0, 0, 9]).await;
    assert_eq!(next(&mut caller).await.0.kind, kind::RST_STREAM);
    assert_eq!(rig.metrics().http2_goaways.get(), 0);
}
