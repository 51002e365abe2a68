//! Memory of the agent for callers of HTTP/2 that take nothing.

use std::net::SocketAddr;
use std::time::Duration;

use harness::caller::Caller;
use harness::pace::{Calls, Pace};
use harness::ports;
use harness::sidecar::Port;
use harness::system::System;
use harness::wait::{WAIT_TIMEOUT, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use traffic_core::http2::frames::{self, FrameHeader, HEAD, PREFACE, kind};
use traffic_core::http2::hpack::{Encoder, Field};
use traffic_core::http2::{section, settings};

use crate::app;

/// Callers that give no window, and streams of each.
const CALLERS: usize = 60;
const STREAMS: u32 = 60;
/// Memory for all of them.
const MAX_STALLED: u64 = 16 << 20;
/// Bytes that a workstation sends to somebody else beside them: many windows of a tunnel.
const NEIGHBOUR_BYTES: usize = 4 << 20;

/// How a caller takes nothing.
#[derive(Clone, Copy, Debug)]
enum Stall {
    /// Its streams have no window.
    NoStreamWindow,
    /// Its streams have all there is, its connection what every connection has at first.
    NoConnectionWindow,
    /// There are windows for everything, and nothing is read.
    NotRead,
}

/// A caller that says frames.
struct RawCaller {
    socket: TcpStream,
    input: Vec<u8>,
}

impl RawCaller {
    async fn connect(address: SocketAddr, stall: Stall) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        if matches!(stall, Stall::NotRead) {
            // The kernel is to take little of what is not read.
            socket.set_recv_buffer_size(4096).unwrap();
        }
        let socket = socket.connect(address).await.unwrap();
        let mut out = PREFACE.to_vec();
        let window = match stall {
            Stall::NoStreamWindow => 0,
            _ => frames::MAX_STREAM,
        };
        frames::settings(&[(settings::INITIAL_WINDOW_SIZE, window)], &mut out);
        if matches!(stall, Stall::NotRead) {
            let most = frames::MAX_STREAM - 65_535;
            out.extend_from_slice(&frames::window_update(0, most));
        }
        let mut caller = Self {
            socket,
            input: Vec::new(),
        };
        caller.socket.write_all(&out).await.unwrap();
        caller
    }

    async fn ask(&mut self, stream: u32, path: &str, dev: bool) {
        let mut fields = vec![
            (":method", "GET"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "app.example"),
        ];
        if dev {
            fields.push(("x-dev", "always"));
        }
        let fields = fields
            .iter()
            .map(|(name, value)| Field::plain(name.as_bytes(), value.as_bytes()));
        let (mut block, mut out) = (Vec::new(), Vec::new());
        Encoder::default().encode(fields, &mut block);
        section::write(stream, true, &block, &mut out);
        self.socket.write_all(&out).await.unwrap();
    }

    /// Returns the next frame's head and payload.
    async fn frame(&mut self) -> (FrameHeader, Vec<u8>) {
        loop {
            if let Some(head) =
                FrameHeader::peek(&self.input).filter(|h| h.size() <= self.input.len())
            {
                let frame: Vec<_> = self.input.drain(..head.size()).collect();
                if head.kind == kind::SETTINGS && head.flags == 0 {
                    self.socket.write_all(&frames::SETTINGS_ACK).await.unwrap();
                }
                return (head, frame[HEAD..].to_vec());
            }
            let read = timeout(WAIT_TIMEOUT, self.socket.read_buf(&mut self.input)).await;
            assert!(matches!(read, Ok(Ok(1..))), "{read:?}");
        }
    }

    /// Reads until that many streams have been answered, and the window of the connection is used
    /// up where streams have one.
    async fn hear(&mut self, streams: u32, stall: Stall) {
        let (mut heads, mut bytes) = (0, 0);
        let wants = match stall {
            Stall::NoConnectionWindow => 65_535,
            _ => 0,
        };
        while heads < streams || bytes < wants {
            let (head, payload) = self.frame().await;
            match head.kind {
                kind::HEADERS => heads += 1,
                kind::DATA => bytes += payload.len(),
                kind::RST_STREAM | kind::GOAWAY => panic!("{head:?} {payload:?}"),
                _ => {}
            }
        }
    }
}

/// Two ports of one agent: a rule for `x-dev: always` on the first, none on the second.
async fn start() -> (System, [SocketAddr; 2], harness::process::Process) {
    let apps = [app::start("app").await, app::start("app").await];
    let workstation = app::start("workstation").await;
    let ports = apps.map(|app| Port::tcp(app.port(), ports::free()));
    let begin = move || {
        let info = |command: &mut std::process::Command| {
            command.env("LOG_LEVEL", "info");
        };
        let system = System::start_with(|sidecar| sidecar.ports = ports.to_vec(), info);
        let keeps = system.intercept("keep", workstation, &["--http-header=x-dev=always"]);
        let address = |n: usize| ([127, 0, 0, 1], system.agent.sidecar.ports[n].agent).into();
        let addresses = [address(0), address(1)];
        (system, addresses, keeps)
    };
    tokio::task::spawn_blocking(begin).await.unwrap()
}

/// Bytes of a process that are its own, without those of its program.
fn heap(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.unwrap().trim().trim_end_matches(" kB");
    1024 * kib.parse::<u64>().unwrap()
}

/// Waits until the agent sends nothing any more, and returns its memory.
async fn settled(system: &System) -> u64 {
    let admin = system.agent.admin();
    let sent = move || sum(admin, "envoy_http_downstream_cx_tx_bytes_total{");
    let (mut before, mut quiet) = (0, 0);
    while quiet < 10 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let now = tokio::task::spawn_blocking(sent).await.unwrap();
        quiet = if now > before { 0 } else { quiet + 1 };
        before = now;
    }
    heap(system.agent.process.pid())
}

/// Sum of a statistic of all ports.
fn sum(admin: SocketAddr, name: &str) -> u64 {
    let page = harness::caller::get(admin, "/stats/prometheus", &[]).unwrap();
    let page = String::from_utf8(page.body).unwrap();
    let values = page.lines().filter(|line| line.starts_with(name));
    let values = values.map(|line| line.rsplit_once(' ').unwrap().1);
    values.map(|value| value.parse::<u64>().unwrap()).sum()
}

/// Waits until the agent has no connection any more.
async fn until_free(system: &System) {
    let admin = system.agent.admin();
    let active = move || (sum(admin, "envoy_http_downstream_cx_active{") == 0).then_some(());
    let wait = move || until("the end of all connections", active);
    tokio::task::spawn_blocking(wait).await.unwrap();
}

/// Has a workstation send a body in a tunnel of its own, beside those that stall.
fn neighbour(ruled: SocketAddr) {
    let body = vec![7; NEIGHBOUR_BYTES];
    let mut caller = Caller::connect(ruled).unwrap();
    let answer = caller.post("/", &[("x-dev", "always")], &body).unwrap();
    assert_eq!(answer.by(), "workstation");
    assert!(answer.body == body, "{} bytes", answer.body.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_without_window_cost_little_and_give_it_back() {
    let (system, [ruled, free], _keeps) = start().await;
    let rows = [
        (free, "no rule", &[false][..]),
        (ruled, "a rule", &[false]),
        (ruled, "through tunnels", &[true]),
        (ruled, "half through tunnels", &[false, true]),
    ];
    // Somebody else, at each port in turn, 200 times a second.
    let pid = system.agent.process.pid();
    let steady = move || {
        let mut callers = [ruled, free].map(|address| Caller::connect(address).unwrap());
        let mut turn = 0;
        move || {
            turn += 1;
            let answer = callers[turn % 2].get("/", &[]);
            let answer = answer.map_err(|error| error.to_string())?;
            (answer.status == 200).then_some(()).ok_or(answer.head)
        }
    };
    let control = tokio::task::spawn_blocking(move || Calls::control(pid, steady()));
    let control = control.await.unwrap();
    // Once for all: what one kind of callers leaves behind, the next has to make do with.
    let before = settled(&system).await;
    for stall in [
        Stall::NoStreamWindow,
        Stall::NoConnectionWindow,
        Stall::NotRead,
    ] {
        for (address, how, devs) in rows {
            let pace = Pace::start(pid, steady());
            let asking = (0..CALLERS).map(|_| async {
                let mut caller = RawCaller::connect(address, stall).await;
                for n in 0..STREAMS {
                    let dev = devs[n as usize % devs.len()];
                    caller.ask(2 * n + 1, "/endless", dev).await;
                }
                if !matches!(stall, Stall::NotRead) {
                    caller.hear(STREAMS, stall).await;
                }
                caller
            });
            let callers = futures_util::future::join_all(asking).await;
            let calls = tokio::task::spawn_blocking(|| pace.end()).await.unwrap();
            let grown = settled(&system).await.saturating_sub(before);
            eprintln!("{stall:?}, {how}: {} KiB", grown / 1024);
            assert!(grown < MAX_STALLED, "{stall:?}, {how}: {grown} bytes");
            calls.assert_unharmed(&control, MAX_STALLED >> 10);
            let neighbour = tokio::task::spawn_blocking(move || neighbour(ruled));
            neighbour.await.unwrap();
            drop(callers);
            until_free(&system).await;
        }
    }
}
