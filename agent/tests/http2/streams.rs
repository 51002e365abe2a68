//! Terminated mode with an intercept: every stream behaves as without the agent.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use h2::ext::Protocol;
use http::{HeaderMap, HeaderValue, Method, Request, Version};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::time::timeout;
use traffic_agent::outcome::Ended;
use traffic_agent::telemetry::metrics::{FailOpen, Route};
use traffic_core::routing::RouteTable;
use traffic_proto::tunnel::Message;

use crate::app::{App, send_all};
use crate::rig::{Answer, Caller, Rig, request, whole};
use agent_testkit::WAIT_TIMEOUT;
use agent_testkit::tunnels::FakeTunnels;

/// A port with an active intercept, its app and its workstation.
pub async fn intercepted() -> (Rig, App, App) {
    let (app, workstation) = (App::start("app").await, App::start("workstation").await);
    let rig = Rig::new(app.addr, Some(workstation.addr)).await;
    rig.intercept();
    (rig, app, workstation)
}

/// The same answer but for who gave it.
fn same(one: &Answer, other: &Answer) {
    let strip = |a: &Answer| {
        let mut headers = a.headers.clone();
        headers.remove("x-server");
        (a.status, headers, a.body.clone(), a.trailers.clone())
    };
    assert_eq!(strip(one), strip(other));
}

#[tokio::test]
async fn matching_requests_go_to_the_workstation_and_all_others_to_the_app_on_one_connection() {
    let (rig, ..) = intercepted().await;
    let caller = Caller::connect(rig.addr).await;
    for n in 0..40 {
        let answer = caller.get("/", n % 2 == 0).await.unwrap();
        assert_eq!(
            answer.server(),
            if n % 2 == 0 { "workstation" } else { "app" }
        );
    }
    assert_eq!(rig.metrics().http2_requests.at(Route::Client).get(), 20);
    assert_eq!(rig.metrics().http2_requests.at(Route::App).get(), 20);
    assert_eq!(
        rig.metrics().tunnels.get(),
        1,
        "one tunnel for the caller's connection"
    );
    assert_eq!(
        rig.metrics()
            .responses
            .at(traffic_agent::telemetry::metrics::Class::C2xx)
            .get(),
        40
    );
}

#[tokio::test]
async fn a_change_of_rules_applies_to_the_next_stream() {
    let (rig, ..) = intercepted().await;
    let caller = Caller::connect(rig.addr).await;
    for _ in 0..10 {
        assert_eq!(caller.get("/", true).await.unwrap().server(), "workstation");
        rig.clear();
        assert_eq!(caller.get("/", true).await.unwrap().server(), "app");
        rig.intercept();
    }
}

#[tokio::test]
async fn the_header_list_is_the_same_as_on_a_direct_connection() {
    let (rig, app, workstation) = intercepted().await;
    let direct = Caller::connect(app.addr).await;
    let through = Caller::connect(rig.addr).await;
    let requests = || {
        let with = |r: http::request::Builder| {
            let mut r = r
                .header("b", "2")
                .header("a", "1")
                .header("b", "3")
                .header("cookie", "x=1")
                .header("cookie", "y=2");
            r.headers_mut()
                .unwrap()
                .append("bytes", HeaderValue::from_bytes(b"\xfe caf\xe9").unwrap());
            let mut secret = HeaderValue::from_static("s");
            secret.set_sensitive(true);
            r.header("authorization", secret)
                .header("te", "trailers")
                .header("empty", "")
                .body(())
                .unwrap()
        };
        let mut relative = with(Request::get("/headers").header("host", "only.a.host.line"));
        *relative.version_mut() = Version::HTTP_11;
        let mut connect = with(Request::connect("http://app.example/headers?socket"));
        connect
            .extensions_mut()
            .insert(Protocol::from_static("websocket"));
        vec![
            with(request("/headers?q=%20&r=ü", false)),
            with(
                Request::builder()
                    .method("PURGE")
                    .uri("https://app.example:8443/headers"),
            ),
            relative,
            connect,
        ]
    };
    for (one, other) in requests().into_iter().zip(requests()) {
        let expected = direct.call(one, b"").await.unwrap();
        same(&expected, &through.call(other, b"").await.unwrap());
        assert!(
            expected.text().contains("café".trim_end_matches('é')),
            "{}",
            expected.text()
        );
    }
    let direct = Caller::connect(workstation.addr).await;
    for (mut one, mut other) in requests().into_iter().zip(requests()) {
        one.headers_mut()
            .insert("x-dev", HeaderValue::from_static("a"));
        other
            .headers_mut()
            .insert("x-dev", HeaderValue::from_static("a"));
        let got = through.call(other, b"").await.unwrap();
        assert_eq!(got.server(), "workstation");
        same(&direct.call(one, b"").await.unwrap(), &got);
    }
}

#[tokio::test]
async fn a_large_header_list_passes_as_it_does_in_go() {
    let (rig, ..) = intercepted().await;
    let caller = Caller::connect(rig.addr).await;
    for dev in [false, true] {
        let mut big = request("/headers", dev);
        for n in 0..100 {
            big = big.header(format!("x-{n}"), "v".repeat(1_000));
        }
        assert!(
            caller
                .call(big.body(()).unwrap(), b"")
                .await
                .unwrap()
                .body
                .len()
                > 100_000
        );
    }
}

#[tokio::test]
async fn bodies_and_trailers_of_both_sides_arrive_whole() {
    let (rig, ..) = intercepted().await;
    let caller = Caller::connect(rig.addr).await;
    for dev in [false, true] {
        let post = request("/echo", dev).method(Method::POST).body(()).unwrap();
        let (response, mut up) = caller
            .send
            .clone()
            .ready()
            .await
            .unwrap()
            .send_request(post, false)
            .unwrap();
        let sent: Bytes = (0..3_000_000u32)
            .map(|n| ((n * 31) >> 3) as u8)
            .collect::<Vec<_>>()
            .into();
        let data = sent.clone();
        let writer = tokio::spawn(async move {
            crate::app::send_all(&mut up, data).await.unwrap();
            let mut trailers = HeaderMap::new();
            trailers.insert("x-mine", HeaderValue::from_static("kept"));
            up.send_trailers(trailers).unwrap();
        });
        let answer = whole(
            timeout(WAIT_TIMEOUT, response)
                .await
                .expect("a head")
                .unwrap(),
        )
        .await
        .unwrap();
        writer.await.unwrap();
        assert!(answer.body == sent);
        let trailers = answer.trailers.unwrap();
        assert_eq!(
            (&trailers["x-mine"], &trailers["x-end"]),
            (&"kept".parse().unwrap(), &"yes".parse().unwrap())
        );
    }
}

#[tokio::test]
async fn trailers_only_and_informational_answers_and_early_ones_are_what_they_are() {
    let (rig, ..) = intercepted().await;
    let caller = Caller::connect(rig.addr).await;
    for dev in [false, true] {
        let get = request("/trailers-only", dev).body(()).unwrap();
        let (response, _) = caller
            .send
            .clone()
            .ready()
            .await
            .unwrap()
            .send_request(get, true)
            .unwrap();
        let response = timeout(WAIT_TIMEOUT, response)
            .await
            .expect("a head")
            .unwrap();
        assert!(response.body().is_end_stream());
        assert_eq!(response.headers()["grpc-status"], "7");

        let get = request("/informational", dev).body(()).unwrap();
        let (mut response, _) = caller
            .send
            .clone()
            .ready()
            .await
            .unwrap()
            .send_request(get, true)
            .unwrap();
        let hint = timeout(
            WAIT_TIMEOUT,
            std::future::poll_fn(|cx| response.poll_informational(cx)),
        )
        .await
        .expect("a hint");
        assert_eq!(hint.unwrap().unwrap().status(), 103);
        assert_eq!(
            timeout(WAIT_TIMEOUT, response)
                .await
                .expect("a head")
                .unwrap()
                .status(),
            200
        );

        let post = request("/early", dev).method("POST").body(()).unwrap();
        let (response, mut up) = caller
            .send
            .clone()
            .ready()
            .await
            .unwrap()
            .send_request(post, false)
            .unwrap();
        let answer = whole(
            timeout(WAIT_TIMEOUT, response)
                .await
                .expect("a head")
                .unwrap(),
        )
        .await
        .unwrap();
        assert_eq!(answer.text(), "enough");
        let reason = timeout(WAIT_TIMEOUT, std::future::poll_fn(|cx| up.poll_reset(cx)))
            .await
            .expect("a reset")
            .unwrap();
        assert_eq!(reason, Reason::NO_ERROR);
    }
}

#[tokio::test]
async fn reset_codes_arrive_as_they_were_sent() {
    let (rig, ..) = intercepted().await;
    let caller = Caller::connect(rig.addr).await;
    for dev in [false, true] {
        for code in [1u32, 2, 3, 7, 8, 11, 13] {
            let error = caller
                .get(&format!("/reset/{code}"), dev)
                .await
                .unwrap_err();
            assert_eq!(error.reason().map(u32::from), Some(code));
        }
        let error = caller.get("/die", dev).await.unwrap_err();
        assert_eq!(
            error.reason(),
            Some(Reason::INADEQUATE_SECURITY),
            "half an answer never looks whole"
        );
    }
}

#[tokio::test]
async fn a_cancel_reaches_the_server_with_its_reason_before_and_after_the_head() {
    let (rig, mut app, mut workstation) = intercepted().await;
    let caller = Caller::connect(rig.addr).await;
    for (dev, server) in [(false, &mut app), (true, &mut workstation)] {
        for (path, whole_request) in [
            ("/hang", true),
            ("/hang", false),
            ("/stall", true),
            ("/stall", false),
        ] {
            let post = request(path, dev).method("POST").body(()).unwrap();
            let (response, mut up) = caller
                .send
                .clone()
                .ready()
                .await
                .unwrap()
                .send_request(post, whole_request)
                .unwrap();
            server.sees(&path[1..]).await;
            let _head = if path == "/stall" {
                Some(
                    timeout(WAIT_TIMEOUT, response)
                        .await
                        .expect("a head")
                        .unwrap(),
                )
            } else {
                None
            };
            up.send_reset(Reason::CANCEL);
            server.sees("reset CANCEL").await;
        }
        let (response, _) = caller
            .send
            .clone()
            .ready()
            .await
            .unwrap()
            .send_request(request("/endless", dev).body(()).unwrap(), true)
            .unwrap();
        let response = timeout(WAIT_TIMEOUT, response)
            .await
            .expect("a head")
            .unwrap();
        drop(response);
        server.sees("endless over").await;
    }
}

#[tokio::test]
async fn a_caller_that_is_killed_ends_its_streams_everywhere() {
    let (mut rig, mut app, mut workstation) = intercepted().await;
    let caller = Caller::connect(rig.addr).await;
    let mut hanging = Vec::new();
    for dev in [false, true] {
        let get = request("/hang", dev).body(()).unwrap();
        hanging.push(
            caller
                .send
                .clone()
                .ready()
                .await
                .unwrap()
                .send_request(get, true)
                .unwrap(),
        );
    }
    app.sees("hang").await;
    workstation.sees("hang").await;
    caller.kill();
    app.sees("closed").await;
    workstation.sees("closed").await;
    rig.next_ended().await;
}

#[tokio::test]
async fn a_stalled_stream_holds_up_no_other_and_is_bounded() {
    let (rig, ..) = intercepted().await;
    // Room for all streams on the caller's side: what stalls are single streams.
    let mut settings = h2::client::Builder::new();
    settings.initial_connection_window_size(64 << 20);
    let caller = Caller::with(rig.addr, &settings).await;
    let mut stalled = Vec::new();
    for n in 0..20 {
        let get = request("/endless", n % 2 == 0).body(()).unwrap();
        let (response, _) = caller
            .send
            .clone()
            .ready()
            .await
            .unwrap()
            .send_request(get, true)
            .unwrap();
        stalled.push(
            timeout(WAIT_TIMEOUT, response)
                .await
                .expect("a head")
                .unwrap(),
        );
    }
    for n in 0..50 {
        let dev = n % 2 == 0;
        let answer = caller
            .call(
                request("/echo", dev).method("POST").body(()).unwrap(),
                &[5; 10_000],
            )
            .await
            .unwrap();
        assert_eq!(answer.body.len(), 10_000);
    }
    // What reached the caller is what its windows allow, and the echoes; not what the servers would
    // like to say.
    let sent = rig.metrics().bytes_out.get();
    assert!((500_000..3_000_000).contains(&sent), "{sent} bytes");
}

#[tokio::test]
async fn a_thousand_concurrent_streams_are_served_at_once() {
    let (rig, ..) = intercepted().await;
    let caller = Arc::new(Caller::connect(rig.addr).await);
    let mut open = Vec::new();
    for n in 0..1_000 {
        let post = request("/echo", n % 3 == 0)
            .method("POST")
            .body(())
            .unwrap();
        let (response, up) = caller
            .send
            .clone()
            .ready()
            .await
            .unwrap()
            .send_request(post, false)
            .unwrap();
        open.push((n, response, up));
    }
    let mut heads = Vec::new();
    for (n, response, up) in open {
        let response = timeout(WAIT_TIMEOUT, response)
            .await
            .expect("a head while all are open")
            .unwrap();
        assert_eq!(
            response.headers()["x-server"],
            if n % 3 == 0 { "workstation" } else { "app" }
        );
        heads.push((n, response, up));
    }
    for (n, response, mut up) in heads {
        up.send_data(format!("{n}").into(), true).unwrap();
        assert_eq!(whole(response).await.unwrap().text(), format!("{n}"));
    }
}

#[tokio::test]
async fn the_apps_limit_of_streams_is_the_callers() {
    let mut settings = h2::server::Builder::new();
    settings.max_concurrent_streams(7);
    let app = App::with("app", settings).await;
    let rig = Rig::new(app.addr, None).await;
    rig.intercept();
    let caller = Caller::connect(rig.addr).await;
    caller.get("/", false).await.unwrap();
    assert_eq!(caller.send.current_max_send_streams(), 7);
    assert!(!caller.send.is_extended_connect_protocol_enabled());
    let answers = futures_util::future::join_all((0..60).map(|_| caller.get("/", false))).await;
    assert!(answers.into_iter().all(|a| a.unwrap().server() == "app"));
}

#[tokio::test]
async fn a_websocket_by_extended_connect_talks_both_ways_matched_or_not() {
    // Whoever echoes and reads thousands of tiny frames must not mind them.
    let mut patient = h2::server::Builder::new();
    patient
        .enable_connect_protocol()
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
    caller.get("/", false).await.unwrap();
    assert!(caller.send.is_extended_connect_protocol_enabled());
    for dev in [false, true] {
        let mut connect = request("/echo", dev)
            .method(Method::CONNECT)
            .body(())
            .unwrap();
        connect
            .extensions_mut()
            .insert(Protocol::from_static("websocket"));
        let (response, mut up) = caller
            .send
            .clone()
            .ready()
            .await
            .unwrap()
            .send_request(connect, false)
            .unwrap();
        let mut from = timeout(WAIT_TIMEOUT, response)
            .await
            .expect("a head")
            .unwrap()
            .into_body();
        // Both directions at once, in the frames of RFC 6455: masked text with changing lengths.
        let sending = tokio::spawn(async move {
            for n in 0..10_000u32 {
                send_all(&mut up, text_frame(n).into()).await.unwrap();
            }
            up
        });
        let mut got = Vec::new();
        for n in 0..10_000u32 {
            let expected = text_frame(n);
            while got.len() < expected.len() {
                let chunk = timeout(WAIT_TIMEOUT, from.data())
                    .await
                    .expect("an echo")
                    .unwrap()
                    .unwrap();
                from.flow_control().release_capacity(chunk.len()).unwrap();
                got.extend_from_slice(&chunk);
            }
            assert!(got.starts_with(&expected), "message {n}");
            got.drain(..expected.len());
        }
        assert!(got.is_empty());
        sending.await.unwrap();
    }
    for (dev, path) in [(false, "/reset/7"), (true, "/trailers-only")] {
        let mut connect = request(path, dev).method(Method::CONNECT).body(()).unwrap();
        connect
            .extensions_mut()
            .insert(Protocol::from_static("websocket"));
        let (response, _up) = caller
            .send
            .clone()
            .ready()
            .await
            .unwrap()
            .send_request(connect, false)
            .unwrap();
        match timeout(WAIT_TIMEOUT, response).await.expect("a refusal") {
            Ok(response) => assert_eq!(
                (dev, &response.headers()["grpc-status"]),
                (true, &"7".parse().unwrap())
            ),
            Err(error) => assert_eq!((dev, error.reason()), (false, Some(Reason::REFUSED_STREAM))),
        }
    }
}

/// A masked text message of RFC 6455 with a number in it.
fn text_frame(n: u32) -> Vec<u8> {
    let text = format!("message {n} {}", "x".repeat(n as usize % 90));
    let mask = n.to_be_bytes();
    let mut frame = vec![0x81, 0x80 | text.len() as u8];
    frame.extend_from_slice(&mask);
    frame.extend(
        text.bytes()
            .zip(mask.iter().cycle())
            .map(|(byte, mask)| byte ^ mask),
    );
    frame
}

#[tokio::test]
async fn what_cannot_be_tunnelled_goes_to_the_app_and_is_counted() {
    let app = App::start("app").await;
    let rig = Rig::new(app.addr, None).await;
    rig.intercept();
    let caller = Caller::connect(rig.addr).await;
    for _ in 0..3 {
        let post = request("/echo", true).method("POST").body(()).unwrap();
        let answer = caller.call(post, b"whole body").await.unwrap();
        assert_eq!((answer.server(), answer.text()), ("app", "whole body"));
    }
    // The first one tried; behind a failed dial the next ones do not wait.
    let fail_open = &rig.metrics().fail_open;
    let counted = [FailOpen::NoTunnel, FailOpen::Skipped].map(|why| fail_open.at(why).get());
    assert_eq!(counted, [1, 2]);

    let closed = std::net::SocketAddr::from(([127, 0, 0, 1], harness::ports::free()));
    let rig = Rig::new(app.addr, Some(closed)).await;
    rig.intercept();
    let caller = Caller::connect(rig.addr).await;
    assert_eq!(caller.get("/", true).await.unwrap().server(), "app");
    assert_eq!(rig.metrics().fail_open.at(FailOpen::DialRejected).get(), 1);
}

#[tokio::test]
async fn nothing_is_sent_before_the_workstation_has_dialled_and_a_late_dial_goes_to_the_app() {
    let app = App::start("app").await;
    let (tunnels, mut opened) = FakeTunnels::scripted();
    let rig = Rig::over(app.addr, tunnels).await;
    rig.intercept();
    let caller = Caller::connect(rig.addr).await;
    let answer = caller.get("/", true);
    let (answer, far) = tokio::join!(answer, opened.recv());
    assert_eq!(answer.unwrap().server(), "app");
    assert_eq!(rig.metrics().fail_open.at(FailOpen::DialTimeout).get(), 1);
    let mut far = far.unwrap();
    while let Some(frame) = timeout(WAIT_TIMEOUT, far.from_agent.recv())
        .await
        .expect("the tunnel ends")
    {
        let message = Message::decode(frame.payload()).unwrap();
        assert!(
            !matches!(message, Message::Normal(_)),
            "{message:?} before DialOK"
        );
    }
}

#[tokio::test]
async fn a_tunnel_lost_in_the_middle_resets_the_stream_and_leaves_the_others_alone() {
    let app = App::start("app").await;
    let (tunnels, mut opened) = FakeTunnels::scripted();
    let rig = Rig::over(app.addr, tunnels).await;
    rig.intercept();
    let caller = Caller::connect(rig.addr).await;
    let post = request("/echo", false).method("POST").body(()).unwrap();
    let (other, mut up) = caller
        .send
        .clone()
        .ready()
        .await
        .unwrap()
        .send_request(post, false)
        .unwrap();
    let get = request("/", true).body(()).unwrap();
    let (lost, _) = caller
        .send
        .clone()
        .ready()
        .await
        .unwrap()
        .send_request(get, true)
        .unwrap();
    let mut far = timeout(WAIT_TIMEOUT, opened.recv())
        .await
        .expect("a tunnel")
        .unwrap();
    far.to_agent
        .send(Ok(Message::DialOk.encode()))
        .await
        .unwrap();
    let first = timeout(WAIT_TIMEOUT, far.from_agent.recv())
        .await
        .expect("the request")
        .unwrap();
    assert!(matches!(
        Message::decode(first.payload()).unwrap(),
        Message::Normal(_)
    ));
    drop(far);
    let error = timeout(WAIT_TIMEOUT, lost)
        .await
        .expect("an end")
        .unwrap_err();
    assert_eq!(error.reason(), Some(Reason::INTERNAL_ERROR));
    up.send_data("still here".into(), true).unwrap();
    let answer = whole(timeout(WAIT_TIMEOUT, other).await.expect("a head").unwrap())
        .await
        .unwrap();
    assert_eq!((answer.server(), answer.text()), ("app", "still here"));
}

#[tokio::test]
async fn an_expired_intercept_answers_503_and_grpc_in_its_own_way() {
    let (rig, ..) = intercepted().await;
    rig.expire();
    let caller = Caller::connect(rig.addr).await;
    let answer = caller.get("/", true).await.unwrap();
    assert_eq!(answer.status, 503);
    assert!(
        answer.text().contains("\"echo\" of dev@laptop has expired"),
        "{}",
        answer.text()
    );
    assert_eq!(caller.get("/", false).await.unwrap().server(), "app");
    let post = request("/a.B/C", true)
        .method("POST")
        .header("content-type", "application/grpc+proto")
        .body(())
        .unwrap();
    let answer = caller.call(post, b"message").await.unwrap();
    assert_eq!(
        (answer.status.as_u16(), &answer.headers["grpc-status"]),
        (200, &"14".parse().unwrap())
    );
    assert!(
        answer.headers["grpc-message"]
            .to_str()
            .unwrap()
            .contains("has expired")
    );
    assert_eq!(rig.metrics().http2_requests.at(Route::Expired).get(), 2);
}

#[tokio::test]
async fn goaway_of_the_app_is_passed_on_and_no_stream_is_lost_by_it() {
    let (mut rig, app, _workstation) = intercepted().await;
    let mut caller = Caller::connect(rig.addr).await;
    let post = request("/echo", false).method("POST").body(()).unwrap();
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
    app.leave.send(true).unwrap();
    while let Ok(mut send) = caller.send.clone().ready().await {
        // What crosses the GOAWAY is served nevertheless.
        let (answer, _) = send
            .send_request(request("/", false).body(()).unwrap(), true)
            .unwrap();
        match timeout(WAIT_TIMEOUT, answer).await.expect("an answer") {
            Ok(answer) => assert_eq!(answer.headers()["x-server"], "app"),
            // Not even sent: the caller's own library had read the GOAWAY.
            Err(error) => assert!(error.is_go_away(), "{error}"),
        }
    }
    up.send_data("last".into(), true).unwrap();
    assert_eq!(whole(response).await.unwrap().text(), "last");
    caller.over().await.unwrap();
    assert_eq!(rig.next_ended().await, Ended::Clean);
}

#[tokio::test]
async fn an_app_that_dies_takes_its_callers_connection_with_it() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut rig = Rig::new(listener.local_addr().unwrap(), None).await;
    rig.intercept();
    let mut caller = Caller::connect(rig.addr).await;
    let (mut socket, _) = listener.accept().await.unwrap();
    socket.read_exact(&mut [0; 24]).await.unwrap();
    let get = request("/", false).body(()).unwrap();
    let (response, _) = caller
        .send
        .clone()
        .ready()
        .await
        .unwrap()
        .send_request(get, true)
        .unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut socket, &[0, 0, 0, 4, 0, 0, 0, 0, 0])
        .await
        .unwrap();
    socket.read_exact(&mut [0; 40]).await.unwrap();
    traffic_agent::io::conn::Io::abort(&mut socket);
    drop(socket);
    assert!(
        timeout(WAIT_TIMEOUT, response)
            .await
            .expect("an end")
            .is_err()
    );
    assert!(caller.over().await.is_err());
    assert_eq!(rig.next_ended().await, Ended::AppReset);
}

#[tokio::test]
async fn an_app_that_says_nothing_at_first_is_not_waited_for_long() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rig = Rig::new(listener.local_addr().unwrap(), None).await;
    rig.intercept();
    let caller = Caller::connect(rig.addr).await;
    let (socket, _) = listener.accept().await.unwrap();
    let hears_settings = async {
        while !caller.send.is_extended_connect_protocol_enabled()
            && caller.send.current_max_send_streams() == 100
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(WAIT_TIMEOUT, hears_settings)
        .await
        .expect("the agent's SETTINGS");
    drop(socket);
}

#[tokio::test]
async fn an_intercept_that_is_over_lets_go_of_its_tunnel_and_a_drain_ends_the_connection() {
    let (mut rig, mut app, mut workstation) = intercepted().await;
    let mut caller = Caller::connect(rig.addr).await;
    assert_eq!(caller.get("/", true).await.unwrap().server(), "workstation");
    rig.port.routes.store(RouteTable::default());
    workstation.sees("closed").await;
    assert_eq!(caller.get("/", true).await.unwrap().server(), "app");
    let post = request("/echo", false).method("POST").body(()).unwrap();
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
