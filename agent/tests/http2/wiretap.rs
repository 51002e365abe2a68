//! Wiretaps over HTTP/2: their workstations get whole requests, a stream each, and callers notice
//! nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use agent_testkit::intercept::{intercept, wiretap};
use agent_testkit::{WAIT_TIMEOUT, eventually};
use bytes::Bytes;
use http::HeaderMap;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::timeout;
use traffic_agent::telemetry::metrics::CopyEnd;
use traffic_core::routing::{Entry, Intercept, RouteTable, State};

use crate::app::App;
use crate::rig::{Caller, Rig, request};

/// A request as the desk got it.
struct Seen {
    path: String,
    authority: String,
    dev: bool,
    body: Vec<u8>,
    trailers: Option<HeaderMap>,
}

/// A server that notes every request whole, and answers with a large body.
async fn desk() -> (SocketAddr, mpsc::UnboundedReceiver<Seen>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (tell, seen) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let tell = tell.clone();
            tokio::spawn(async move {
                let mut server = h2::server::handshake(socket).await.unwrap();
                while let Some(Ok((request, mut respond))) = server.accept().await {
                    let tell = tell.clone();
                    tokio::spawn(async move {
                        let (parts, mut from) = request.into_parts();
                        let mut send = respond.send_response(http::Response::new(()), false);
                        if let Ok(send) = &mut send {
                            let _ = send.send_data(Bytes::from(vec![b'd'; 200_000]), true);
                        }
                        let mut body = Vec::new();
                        while let Some(Ok(chunk)) = from.data().await {
                            let _ = from.flow_control().release_capacity(chunk.len());
                            body.extend_from_slice(&chunk);
                        }
                        let _ = tell.send(Seen {
                            path: parts.uri.path().to_owned(),
                            authority: parts.uri.authority().unwrap().to_string(),
                            dev: parts.headers.contains_key("x-dev"),
                            body,
                            trailers: from.trailers().await.ok().flatten(),
                        });
                    });
                }
            });
        }
    });
    (addr, seen)
}

fn rules(rig: &Rig, rules: Vec<Intercept>) {
    let entries = rules.into_iter().map(|rule| Entry {
        intercept: Arc::new(rule),
        state: State::Active,
    });
    rig.port.routes.store(RouteTable::new(entries.collect()));
}

async fn next(seen: &mut mpsc::UnboundedReceiver<Seen>) -> Seen {
    let next = timeout(WAIT_TIMEOUT, seen.recv()).await;
    next.expect("the desk sees a request").unwrap()
}

#[tokio::test]
async fn the_app_answers_and_the_desk_gets_whole_requests_over_one_tunnel() {
    let (app, (desk, mut seen)) = (App::start("app").await, desk().await);
    let rig = Rig::new(app.addr, Some(desk)).await;
    let rule = wiretap("tap", &[("x-dev", "a")]);
    let stats = Arc::clone(&rule.stats);
    rules(&rig, vec![rule]);
    let caller = Caller::connect(rig.addr).await;
    let large = vec![b'x'; 300_000];
    for (number, body) in [&b""[..], b"small", &large].into_iter().enumerate() {
        let path = format!("/{number}");
        let post = |dev| request(&path, dev).method("POST").body(()).unwrap();
        assert_eq!(caller.call(post(true), body).await.unwrap().server(), "app");
        assert_eq!(
            caller.call(post(false), body).await.unwrap().server(),
            "app"
        );
        let copy = next(&mut seen).await;
        assert_eq!((copy.path.as_str(), copy.dev), (path.as_str(), true));
        assert_eq!(copy.authority, "app.example");
        assert!(
            copy.body == body,
            "request {number}: {} bytes",
            copy.body.len()
        );
        assert_eq!(copy.trailers, None);
    }
    eventually("all copies", || {
        rig.metrics().copies.at(CopyEnd::Sent).get() == 3
    })
    .await;
    assert_eq!(rig.metrics().tunnels.get(), 1);
    assert_eq!(stats.copies_dropped.load(Ordering::Relaxed), 0);
    drop(caller);
    eventually("the tunnel to end", || {
        rig.metrics().tunnels_active.get() == 0
    })
    .await;
}

#[tokio::test]
async fn trailers_are_copied_and_an_intercept_beside_it_is_served() {
    let (app, (desk, mut seen)) = (App::start("app").await, desk().await);
    let rig = Rig::new(app.addr, Some(desk)).await;
    rules(
        &rig,
        vec![wiretap("tap", &[]), intercept("mine", &[("x-dev", "a")])],
    );
    let caller = Caller::connect(rig.addr).await;
    let mut send = caller.send.clone().ready().await.unwrap();
    let post = request("/t", true).method("POST").body(()).unwrap();
    let (answer, mut up) = send.send_request(post, false).unwrap();
    up.send_data(Bytes::from_static(b"body"), false).unwrap();
    let mut trailers = HeaderMap::new();
    trailers.insert("x-end", "yes".parse().unwrap());
    up.send_trailers(trailers.clone()).unwrap();
    assert!(answer.await.unwrap().status().is_success());
    // Both the intercept's request and the copy.
    for _ in 0..2 {
        let one = next(&mut seen).await;
        assert_eq!((one.path.as_str(), &one.body[..]), ("/t", &b"body"[..]));
        assert_eq!(one.trailers, Some(trailers.clone()));
    }
    assert_eq!(rig.metrics().tunnels.get(), 2);
}

#[tokio::test]
async fn a_desk_that_is_away_costs_copies_and_nothing_else() {
    let app = App::start("app").await;
    let rig = Rig::new(app.addr, None).await;
    rules(&rig, vec![wiretap("tap", &[])]);
    let caller = Caller::connect(rig.addr).await;
    for _ in 0..10 {
        assert_eq!(caller.get("/", true).await.unwrap().server(), "app");
    }
    eventually("all copies to be dropped", || {
        rig.metrics().copies.at(CopyEnd::Unreachable).get() == 10
    })
    .await;
}

#[tokio::test]
async fn a_desk_that_reads_nothing_drops_the_copy_and_the_upload_goes_on() {
    let app = App::start("app").await;
    let deaf = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rig = Rig::new(app.addr, Some(deaf.local_addr().unwrap())).await;
    let rule = wiretap("tap", &[]);
    let stats = Arc::clone(&rule.stats);
    rules(&rig, vec![rule]);
    let caller = Caller::connect(rig.addr).await;
    let post = request("/", true).method("POST").body(()).unwrap();
    let answer = caller.call(post, &vec![b'x'; 8 << 20]).await.unwrap();
    assert_eq!(answer.server(), "app");
    eventually("the copy to be dropped", || {
        stats.copies_dropped.load(Ordering::Relaxed) == 1
    })
    .await;
    drop(deaf);
}
