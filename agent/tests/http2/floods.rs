//! Attacking callers: bounded, counted, and without effect on others.

use bytes::Bytes;
use h2::Reason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use traffic_agent::outcome::Ended;
use traffic_agent::telemetry::metrics::Limit;
use traffic_core::http2::frames::{END_HEADERS, END_STREAM, FrameHeader, PREFACE, kind};

use crate::app::App;
use crate::rig::{Caller, Rig, request};
use crate::streams::intercepted;
use agent_testkit::WAIT_TIMEOUT;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = FrameHeader {
        length: payload.len() as u32,
        kind,
        flags,
        stream,
    }
    .encode()
    .to_vec();
    bytes.extend_from_slice(payload);
    bytes
}

/// `GET / http app.example` by static table and literals.
const GET: &[u8] = b"\x82\x84\x86\x41\x0bapp.example";

/// Writes `prelude` and then `wave` for ever, while the answers are read; says with which code it
/// was thrown out.
async fn flood(
    rig: &Rig,
    prelude: &[u8],
    wave: impl Fn(u32) -> Vec<u8> + Send + 'static,
) -> Option<Reason> {
    let mut socket = TcpStream::connect(rig.addr).await.unwrap();
    socket.write_all(PREFACE).await.unwrap();
    socket
        .write_all(&frame(kind::SETTINGS, 0, 0, b""))
        .await
        .unwrap();
    socket.write_all(prelude).await.unwrap();
    let (mut from, mut to) = socket.into_split();
    let writer = tokio::spawn(async move {
        for n in 0.. {
            if to.write_all(&wave(n)).await.is_err() {
                return;
            }
        }
    });
    let mut reason = None;
    let read = async {
        let mut head = [0; 9];
        while from.read_exact(&mut head).await.is_ok() {
            let head = FrameHeader::parse(head);
            let mut payload = vec![0; head.length as usize];
            if from.read_exact(&mut payload).await.is_err() {
                break;
            }
            if head.kind == kind::GOAWAY {
                reason = Some(Reason::from(u32::from_be_bytes(
                    payload[4..8].try_into().unwrap(),
                )));
            }
        }
    };
    timeout(WAIT_TIMEOUT, read)
        .await
        .expect("the flood is ended");
    writer.abort();
    reason
}

/// The GOAWAY names the cause. A caller that keeps writing may lose it to the reset that follows:
/// the kernel drops what was not read when more arrives at a closed socket.
fn thrown_out(reason: Option<Reason>) {
    assert!(
        matches!(reason, None | Some(Reason::ENHANCE_YOUR_CALM)),
        "{reason:?}"
    );
}

/// Checks that another caller is served during `attack`, and that the limit was counted.
async fn survives(attack: impl AsyncFnOnce(&Rig)) {
    // The app leaves the judgement to the agent.
    let mut lenient = h2::server::Builder::new();
    lenient
        .max_pending_accept_reset_streams(1 << 30)
        .max_local_error_reset_streams(None)
        .data_frame_budget(1 << 30);
    let app = App::with("app", lenient).await;
    let workstation = App::start("workstation").await;
    let mut rig = Rig::new(app.addr, Some(workstation.addr)).await;
    rig.intercept();
    let other = Caller::connect(rig.addr).await;
    let mut served = 0;
    {
        let attack = attack(&rig);
        tokio::pin!(attack);
        loop {
            tokio::select! {
                () = &mut attack => break,
                answer = other.get("/", served % 2 == 0) => {
                    answer.unwrap();
                    served += 1;
                }
            }
        }
    }
    assert_eq!(other.get("/", true).await.unwrap().server(), "workstation");
    assert_eq!(other.get("/", false).await.unwrap().server(), "app");
    assert_eq!(rig.next_ended().await, Ended::Limit);
    assert!(rig.metrics().limits.at(Limit::Http2Flood).get() >= 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_pings_is_ended() {
    survives(async |rig| {
        let pings: Vec<u8> = (0..500)
            .flat_map(|_| frame(kind::PING, 0, 0, b"12345678"))
            .collect();
        thrown_out(flood(rig, b"", move |_| pings.clone()).await);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_settings_is_ended() {
    survives(async |rig| {
        let settings: Vec<u8> = (0..500)
            .flat_map(|_| frame(kind::SETTINGS, 0, 0, b"\0\x03\0\0\0\x64"))
            .collect();
        thrown_out(flood(rig, b"", move |_| settings.clone()).await);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_empty_data_is_ended() {
    survives(async |rig| {
        let post = [
            &b"\x83\x86\x41\x0bapp.example"[..],
            &b"\x44\x05/hang"[..],
            // To the workstation: the app's library would be quicker to end it.
            &b"\0\x05x-dev\x01a"[..],
        ]
        .concat();
        let open = frame(kind::HEADERS, END_HEADERS, 1, &post);
        let empty: Vec<u8> = (0..500)
            .flat_map(|_| frame(kind::DATA, 0, 1, b""))
            .collect();
        thrown_out(flood(rig, &open, move |_| empty.clone()).await);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_header_section_without_end_is_ended() {
    let (mut rig, _app, _workstation) = intercepted().await;
    let other = Caller::connect(rig.addr).await;
    let open = frame(kind::HEADERS, 0, 1, GET);
    let more = frame(
        kind::CONTINUATION,
        0,
        1,
        &[b"\x00\x01x\x7f\x80\x01".as_slice(), &[b'v'; 255]].concat(),
    );
    let reason = flood(&rig, &open, move |_| more.clone()).await;
    assert!(
        matches!(
            reason,
            None | Some(Reason::ENHANCE_YOUR_CALM | Reason::COMPRESSION_ERROR)
        ),
        "{reason:?}"
    );
    rig.next_ended().await;
    assert_eq!(other.get("/", false).await.unwrap().server(), "app");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rapid_resets_are_ended() {
    survives(async |rig| {
        let reason = flood(rig, b"", |n| {
            (0..100)
                .flat_map(|k| {
                    let stream = 2 * (n * 100 + k) + 1;
                    let mut pair = frame(kind::HEADERS, END_HEADERS | END_STREAM, stream, GET);
                    pair.extend_from_slice(&frame(
                        kind::RST_STREAM,
                        0,
                        stream,
                        &8u32.to_be_bytes(),
                    ));
                    pair
                })
                .collect()
        })
        .await;
        thrown_out(reason);
    })
    .await;
}

#[tokio::test]
async fn callers_that_give_up_now_and_then_are_no_flood() {
    let (rig, mut app, _workstation) = intercepted().await;
    let caller = Caller::connect(rig.addr).await;
    for _ in 0..200 {
        let get = request("/hang", false).body(()).unwrap();
        let (response, mut up) = caller
            .send
            .clone()
            .ready()
            .await
            .unwrap()
            .send_request(get, true)
            .unwrap();
        app.sees("hang").await;
        up.send_reset(Reason::CANCEL);
        drop(response);
        app.sees("reset CANCEL").await;
    }
    assert_eq!(caller.get("/", true).await.unwrap().server(), "workstation");
    assert_eq!(rig.metrics().limits.at(Limit::Http2Flood).get(), 0);
}

#[tokio::test]
async fn chatty_streams_of_tiny_messages_are_no_flood_even_while_one_stalls() {
    let mut patient = h2::server::Builder::new();
    patient
        .initial_connection_window_size(1 << 20)
        .data_frame_budget(64 << 20);
    let app = App::with("app", patient.clone()).await;
    let workstation = App::with("workstation", patient).await;
    let rig = Rig::new(app.addr, Some(workstation.addr)).await;
    rig.intercept();
    let caller = Caller::with(
        rig.addr,
        h2::client::Builder::new().data_frame_budget(64 << 20),
    )
    .await;
    for dev in [false, true] {
        // The echo stalls as soon as its answers are not taken, with its tiny messages on their
        // way.
        let post = request("/echo", dev).method("POST").body(()).unwrap();
        let (response, mut stalled) = caller
            .send
            .clone()
            .ready()
            .await
            .unwrap()
            .send_request(post, false)
            .unwrap();
        let _untaken = timeout(WAIT_TIMEOUT, response)
            .await
            .expect("a head")
            .unwrap();
        for _ in 0..5_000 {
            stalled
                .send_data(Bytes::from_static(b"tiny!"), false)
                .unwrap();
        }
        let post = request("/echo", dev).method("POST").body(()).unwrap();
        let (response, mut up) = caller
            .send
            .clone()
            .ready()
            .await
            .unwrap()
            .send_request(post, false)
            .unwrap();
        let mut from = timeout(WAIT_TIMEOUT, response)
            .await
            .expect("a head")
            .unwrap()
            .into_body();
        for _ in 0..3_000 {
            up.send_data(Bytes::from_static(b"x"), false).unwrap();
            let chunk = timeout(WAIT_TIMEOUT, from.data())
                .await
                .expect("an echo")
                .unwrap()
                .unwrap();
            from.flow_control().release_capacity(chunk.len()).unwrap();
        }
    }
    assert_eq!(rig.metrics().limits.at(Limit::Http2Flood).get(), 0);
}

#[tokio::test]
async fn relayed_floods_are_the_apps_to_judge() {
    let app = App::start("app").await;
    let rig = Rig::new(app.addr, None).await;
    let other = Caller::connect(rig.addr).await;
    let reason = flood(&rig, b"", |n| {
        (0..100)
            .flat_map(|k| {
                let stream = 2 * (n * 100 + k) + 1;
                let mut pair = frame(kind::HEADERS, END_HEADERS | END_STREAM, stream, GET);
                pair.extend_from_slice(&frame(kind::RST_STREAM, 0, stream, &8u32.to_be_bytes()));
                pair
            })
            .collect()
    })
    .await;
    assert_eq!(
        reason,
        Some(Reason::ENHANCE_YOUR_CALM),
        "what the app said before it closed arrives"
    );
    assert_eq!(other.get("/", false).await.unwrap().server(), "app");
}
