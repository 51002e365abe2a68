//! A stream with a stalled reader costs little memory and holds up no other, in either direction,
//! relayed and terminated, to the app and through a tunnel.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use harness::ports;
use harness::sidecar::Port;
use harness::system::System;
use http::Request;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::{app, seconds};

/// Maximum memory of the agent for stalled streams.
const MOST: u64 = 16 << 20;

/// Resident bytes of a process.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    1024 * line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
}

fn request(path: &str, dev: bool) -> Request<()> {
    let request = Request::post(format!("http://app.example{path}"));
    if dev {
        request.header("x-dev", "always")
    } else {
        request
    }
    .body(())
    .unwrap()
}

/// A caller that has room for much on its connection: what stalls are single streams.
async fn connect(address: SocketAddr) -> SendRequest<Bytes> {
    let socket = TcpStream::connect(address).await.unwrap();
    socket.set_nodelay(true).unwrap();
    let mut settings = h2::client::Builder::new();
    settings.initial_connection_window_size(64 << 20);
    let (send, connection) = settings.handshake(socket).await.unwrap();
    tokio::spawn(connection);
    send
}

/// Round trips of other streams for this long; the median.
async fn pace(send: &SendRequest<Bytes>, dev: bool, lasts: Duration) -> Duration {
    let (until, mut took) = (Instant::now() + lasts, Vec::new());
    while Instant::now() < until {
        let begin = Instant::now();
        let mut ready = send.clone().ready().await.unwrap();
        let (response, mut up) = ready.send_request(request("/", dev), false).unwrap();
        up.send_data(Bytes::from_static(&[1; 1_000]), true).unwrap();
        let mut body = timeout(harness::wait::WAIT_TIMEOUT, response)
            .await
            .expect("an answer")
            .unwrap()
            .into_body();
        while let Some(data) = timeout(harness::wait::WAIT_TIMEOUT, body.data())
            .await
            .expect("data")
        {
            let _ = body.flow_control().release_capacity(data.unwrap().len());
        }
        took.push(begin.elapsed());
    }
    took.sort();
    took[took.len() / 2]
}

/// Offers a gibibyte on a stream of which the other side reads nothing.
async fn offer(mut up: h2::SendStream<Bytes>) {
    for _ in 0..16_384 {
        let mut data = Bytes::from_static(&[7; 65_536]);
        while !data.is_empty() {
            up.reserve_capacity(data.len());
            match std::future::poll_fn(|cx| up.poll_capacity(cx)).await {
                Some(Ok(n)) => up
                    .send_data(data.split_to(n.min(data.len())), false)
                    .unwrap(),
                _ => return,
            }
        }
    }
    panic!("a gibibyte was taken though nobody reads it");
}

async fn stalls(system: &System, address: SocketAddr, dev: bool, what: &str) {
    let lasts = seconds("STALLED_SECONDS", 1);
    let send = connect(address).await;
    let free = pace(&send, dev, Duration::from_millis(500)).await;
    let before = resident(system.agent.process.pid());
    let mut ready = send.clone().ready().await.unwrap();
    let (endless, _) = ready.send_request(request("/endless", dev), true).unwrap();
    let _unread = timeout(harness::wait::WAIT_TIMEOUT, endless)
        .await
        .expect("a head")
        .unwrap();
    let (_pending, up) = send
        .clone()
        .ready()
        .await
        .unwrap()
        .send_request(request("/unread", dev), false)
        .unwrap();
    let offering = tokio::spawn(offer(up));
    let stalled = pace(&send, dev, lasts).await;
    let grown = resident(system.agent.process.pid()).saturating_sub(before);
    eprintln!(
        "{what}: {} KiB more, round trip {free:?} before, {stalled:?} meanwhile ({lasts:?})",
        grown / 1024
    );
    assert!(
        !offering.is_finished(),
        "what nobody reads was taken, or refused"
    );
    assert!(grown < MOST, "{what}: {grown} bytes");
    // A stream that is held up waits for ever, not a little longer.
    assert!(
        stalled < free * 20 + Duration::from_millis(200),
        "{what}: {free:?} became {stalled:?}"
    );
    offering.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_stream_costs_little_and_holds_up_no_other() {
    let apps = [app::start("app").await, app::start("app").await];
    let workstation = app::start("workstation").await;
    let ports = apps
        .map(|app| Port::tcp(app.port(), ports::free()))
        .to_vec();
    let (system, _keeps) = tokio::task::spawn_blocking(move || {
        let info = |command: &mut std::process::Command| {
            command.env("LOG_LEVEL", "info");
        };
        let system = System::start_with(|sidecar| sidecar.ports = ports, info);
        let keeps = system.intercept("keep", workstation, &["--http-header=x-dev=always"]);
        (system, keeps)
    })
    .await
    .unwrap();
    let [terminated, relayed] =
        [0, 1].map(|n| ([127, 0, 0, 1], system.agent.sidecar.ports[n].agent).into());
    stalls(&system, relayed, false, "relayed").await;
    stalls(&system, terminated, false, "terminated, to the app").await;
    stalls(&system, terminated, true, "terminated, through a tunnel").await;
}
