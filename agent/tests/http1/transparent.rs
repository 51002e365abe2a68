//! Transparency: bytes written on one side are read on the other unchanged.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use traffic_agent::telemetry::metrics::OpaqueReason;
use traffic_core::http1::head::{Kind, Parser, Step};

use crate::generate::{Exchange, Rng, exchange};
use agent_testkit::WAIT_TIMEOUT;
use agent_testkit::app::ScriptedApp;
use agent_testkit::port::PortFixture;

/// Number of exchanges in each run.
fn exchanges() -> usize {
    std::env::var("HTTP1_EXCHANGES")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(400)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_odd_exchanges_pass_unchanged_without_a_rule() {
    let app = Arc::new(ScriptedApp::listen().await);
    let fixture = PortFixture::start(app.addr());
    run(&fixture, &app, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_odd_exchanges_pass_unchanged_beside_a_rule_that_does_not_match() {
    let app = Arc::new(ScriptedApp::listen().await);
    let fixture = PortFixture::start(app.addr());
    fixture.rule(
        &[("x-nobody", "sends-this")],
        traffic_core::routing::State::Active,
    );
    run(&fixture, &app, 2).await;
    assert_eq!(fixture.tunnels.opened(), 0);
}

async fn run(fixture: &PortFixture, app: &ScriptedApp, seed: u64) {
    let seed = std::env::var("HTTP1_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(seed);
    let mut rng = Rng::new(seed);
    let (mut made, mut understood) = (0, 0);
    while made < exchanges() {
        let mut series = Vec::new();
        for _ in 0..1 + rng.below(8) {
            series.push(exchange(&mut rng));
            if series.last().unwrap().last {
                break;
            }
        }
        let first = made;
        made += series.len();
        let before_last = series.iter().take_while(|e| persists(e)).count();
        understood += series.len().min(before_last + 1);
        let series = Arc::new(series);
        let (caller_rng, app_rng) = (Rng::new(rng.next()), Rng::new(rng.next()));
        let calling = tokio::spawn(call(fixture.addr, Arc::clone(&series), caller_rng));
        let serving = tokio::spawn({
            let socket = app.accept().await;
            let series = Arc::clone(&series);
            serve(socket, series, app_rng)
        });
        let both = async { tokio::join!(calling, serving) };
        let (called, served) = tokio::time::timeout(WAIT_TIMEOUT * 4, both)
            .await
            .unwrap_or_else(|_| panic!("stuck: seed {seed}, from {first}"));
        called.unwrap_or_else(|e| panic!("caller: seed {seed}, from {first}: {e}"));
        served.unwrap_or_else(|e| panic!("app: seed {seed}, from {first}: {e}"));
    }
    let metrics = &fixture.port.metrics;
    let carried = metrics.http1_requests.iter().map(|(_, n)| n).sum::<u64>();
    assert_eq!(carried, understood as u64, "every request was understood");
    let opaque: Vec<_> = metrics.opaque.iter().filter(|(_, n)| *n > 0).collect();
    let only_behind_the_last = opaque.iter().all(|(why, _)| *why == OpaqueReason::Closing);
    assert!(only_behind_the_last, "{opaque:?}");
}

/// Whether both sides mean to keep the connection behind this exchange.
fn persists(exchange: &Exchange) -> bool {
    let head = |kind, bytes: &[u8]| match Parser::new(kind).parse(bytes) {
        Ok(Step::Complete(head)) => head,
        other => panic!("no head: {other:?}"),
    };
    let mut answer = &exchange.answer[..];
    loop {
        let final_head = head(Kind::Response, answer);
        if final_head.status() >= 200 {
            return head(Kind::Request, &exchange.request).persists() && final_head.persists();
        }
        answer = &answer[final_head.len..];
    }
}

async fn call(addr: std::net::SocketAddr, series: Arc<Vec<Exchange>>, mut rng: Rng) {
    let socket = tokio::net::TcpStream::connect(addr).await.unwrap();
    socket.set_nodelay(true).unwrap();
    let (mut read, mut write) = socket.into_split();
    if rng.chance(30) {
        // Pipelined: everything is written while the answers are read.
        let writing = async {
            for exchange in series.iter() {
                write_cut(&mut write, &exchange.request, &mut rng).await;
            }
        };
        let reading = async {
            for exchange in series.iter() {
                read_exactly(&mut read, &exchange.answer, "answer").await;
            }
        };
        tokio::join!(writing, reading);
    } else {
        for exchange in series.iter() {
            let writing = write_cut(&mut write, &exchange.request, &mut rng);
            tokio::join!(writing, read_exactly(&mut read, &exchange.answer, "answer"));
        }
    }
    if series.last().unwrap().last {
        assert_eq!(
            read.read(&mut [0]).await.unwrap(),
            0,
            "the app closed, so the caller sees the end"
        );
    }
}

async fn serve(socket: tokio::net::TcpStream, series: Arc<Vec<Exchange>>, mut rng: Rng) {
    let (mut read, mut write) = socket.into_split();
    for exchange in series.iter() {
        if rng.chance(20) {
            // An early answer: begun before the request is complete. Some of the head has to be
            // there.
            let head = exchange
                .request
                .windows(4)
                .position(|w| w == b"\r\n\r\n")
                .unwrap()
                + 4;
            read_exactly(&mut read, &exchange.request[..head], "request head").await;
            let reading = read_exactly(&mut read, &exchange.request[head..], "request body");
            tokio::join!(reading, write_cut(&mut write, &exchange.answer, &mut rng));
        } else {
            read_exactly(&mut read, &exchange.request, "request").await;
            write_cut(&mut write, &exchange.answer, &mut rng).await;
        }
    }
    if !series.last().unwrap().last {
        assert_eq!(
            read.read(&mut [0]).await.unwrap(),
            0,
            "the caller closed, so the app sees the end"
        );
    }
}

/// Writes in pieces that end anywhere, with pauses that let each go out alone now and then.
async fn write_cut(to: &mut (impl AsyncWriteExt + Unpin), bytes: &[u8], rng: &mut Rng) {
    let mut at = 0;
    let most = *rng.pick(&[7, 100, 1500, 40_000, 5 << 20]);
    while at < bytes.len() {
        let small = most < 100 && at < 3000;
        let n = (1 + rng.below(if small { most } else { most.max(20_000) })).min(bytes.len() - at);
        to.write_all(&bytes[at..at + n]).await.unwrap();
        at += n;
        if rng.chance(30) {
            tokio::task::yield_now().await;
        }
    }
}

async fn read_exactly(from: &mut (impl AsyncReadExt + Unpin), want: &[u8], what: &str) {
    let mut seen = vec![0; want.len()];
    let mut at = 0;
    while at < seen.len() {
        let n = from
            .read(&mut seen[at..])
            .await
            .unwrap_or_else(|e| panic!("{what} at {at} of {}: {e}", want.len()));
        assert!(n > 0, "{what} ended at {at} of {}", want.len());
        if seen[at..at + n] != want[at..at + n] {
            let off = (at..at + n).find(|i| seen[*i] != want[*i]).unwrap();
            panic!(
                "{what} differs at {off} of {}: {:?} instead of {:?}",
                want.len(),
                seen[off..at + n][..32.min(at + n - off)]
                    .escape_ascii()
                    .to_string(),
                want[off..][..32.min(want.len() - off)]
                    .escape_ascii()
                    .to_string()
            );
        }
        at += n;
    }
}
