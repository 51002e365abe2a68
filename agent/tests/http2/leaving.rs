//! Callers that race against being told to leave: whoever behaves by RFC 9113 section 6.8 loses no request.

use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::app::App;
use crate::base::PATIENCE;
use crate::rig::Rig;

/// Connections that are told to leave in one test.
fn partings() -> u32 {
    std::env::var("HTTP2_PARTINGS").ok().and_then(|n| n.parse().ok()).unwrap_or(100)
}

/// Callers on hyper, each with many requests at a time on one connection after the other.
#[derive(Clone, Default)]
struct Racers {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU32>,
    connections: Arc<AtomicU32>,
}

impl Racers {
    fn start(&self, addr: SocketAddr) -> Vec<tokio::task::JoinHandle<()>> {
        (0..4).map(|_| tokio::spawn(self.clone().race(addr))).collect()
    }

    async fn race(self, addr: SocketAddr) {
        while !self.stop.load(Ordering::SeqCst) {
            let socket = TcpStream::connect(addr).await.unwrap();
            socket.set_nodelay(true).unwrap();
            let settings = http2::Builder::new(TokioExecutor::new());
            let Ok((send, connection)) = settings.handshake::<_, Full<Bytes>>(TokioIo::new(socket)).await else {
                continue;
            };
            tokio::spawn(connection);
            // On tasks of their own, so that requests come at any moment.
            let lanes: Vec<_> = (0..10).map(|n| tokio::spawn(self.clone().lane(send.clone(), n))).collect();
            drop(send);
            for lane in lanes {
                lane.await.unwrap();
            }
            self.connections.fetch_add(1, Ordering::SeqCst);
        }
    }

    async fn lane(self, mut send: http2::SendRequest<Full<Bytes>>, n: u32) {
        while !self.stop.load(Ordering::SeqCst) {
            if send.ready().await.is_err() {
                return;
            }
            let request = Request::post("http://app.example/x").header("x-dev", if n % 2 == 0 { "a" } else { "b" });
            let request = request.body(Full::new(Bytes::from_static(b"body"))).unwrap();
            let response = match timeout(PATIENCE, send.try_send_request(request)).await.expect("an answer") {
                Ok(response) => response,
                Err(mut error) => {
                    // Given back by the library: the connection was told to leave before the request was sent.
                    let unsent = error.take_message().is_some();
                    assert!(unsent, "a request was lost: {:?}", error.into_error());
                    return;
                }
            };
            response.into_body().collect().await.expect("a whole answer");
            self.answered.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Waits until there were so many more answers and so many more connections that have ended.
    async fn until(&self, answers: u32, connections: u32) {
        let now = (self.answered.load(Ordering::SeqCst), self.connections.load(Ordering::SeqCst));
        let wait = async {
            while self.answered.load(Ordering::SeqCst) < now.0 + answers
                || self.connections.load(Ordering::SeqCst) < now.1 + connections
            {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(2 * PATIENCE, wait).await.expect("callers go on");
    }

    async fn end(self, tasks: Vec<tokio::task::JoinHandle<()>>) {
        self.stop.store(true, Ordering::SeqCst);
        for task in tasks {
            timeout(PATIENCE, task).await.expect("callers end").unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relayed_callers_lose_nothing_when_a_rule_comes() {
    let (app, workstation) = (App::start("app").await, App::start("workstation").await);
    for _ in 0..partings() / 4 {
        let rig = Rig::new(app.addr, Some(workstation.addr)).await;
        let racers = Racers::default();
        let tasks = racers.start(rig.addr);
        racers.until(20, 0).await;
        let all = racers.until(0, 4);
        rig.intercept();
        all.await;
        racers.end(tasks).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_lose_nothing_when_the_app_leaves_or_the_agent_does() {
    let (app, workstation) = (App::start("app").await, App::start("workstation").await);
    for _ in 0..partings() / 8 {
        let rig = Rig::new(app.addr, Some(workstation.addr)).await;
        rig.intercept();
        let racers = Racers::default();
        let tasks = racers.start(rig.addr);
        racers.until(20, 0).await;
        app.leave.send(true).unwrap();
        racers.until(0, 4).await;
        app.leave.send(false).unwrap();
        racers.until(20, 4).await;
        let all = racers.until(0, 4);
        rig.port.drain.start();
        all.await;
        racers.end(tasks).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_loses_nothing_when_the_app_leaves_again_and_again() {
    let (app, workstation) = (App::start("app").await, App::start("workstation").await);
    let rig = Rig::new(app.addr, Some(workstation.addr)).await;
    rig.intercept();
    let url = format!("http://{}/[1-1000]", rig.addr);
    let args = ["--http2-prior-knowledge", "-sS", "--fail", "-m", "30", "-Z", "--parallel-max", "30", "-H", "x-dev: a"];
    let mut child = tokio::process::Command::new("curl")
        .args(args)
        .arg(&url)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let said = child.stdout.take().unwrap();
    let reading = tokio::spawn(async move {
        let (mut said, mut text) = (said, String::new());
        tokio::io::AsyncReadExt::read_to_string(&mut said, &mut text).await.unwrap();
        text
    });
    let mut partings = 0;
    let status = loop {
        tokio::select! {
            status = child.wait() => break status.unwrap(),
            () = tokio::time::sleep(Duration::from_millis(20)) => {
                partings += 1;
                app.leave.send(partings % 2 == 1).unwrap();
            }
        }
    };
    let text = timeout(PATIENCE, reading).await.expect("its output").unwrap();
    assert!(status.success(), "{status}");
    assert_eq!(text.matches("workstation /").count(), 1_000);
}
