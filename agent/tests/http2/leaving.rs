//! Callers that race against a GOAWAY: a client that follows RFC 9113 section 6.8 loses no request.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::time::timeout;

use crate::app::App;
use crate::rig::{Caller, Rig, request, whole};
use agent_testkit::WAIT_TIMEOUT;

/// Connections that are told to leave in one test.
fn partings() -> u32 {
    std::env::var("HTTP2_PARTINGS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(100)
}

/// Callers on the library below hyper and tonic, which tells what was sent from what was not; each
/// with many requests at a time on one connection after the other.
#[derive(Clone, Default)]
struct Racers {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU32>,
    /// Connections that have answered once, and those that have ended.
    begun: Arc<AtomicU32>,
    connections: Arc<AtomicU32>,
    /// Requests that crossed a GOAWAY and were not processed.
    unprocessed: Arc<AtomicU32>,
}

fn is_unprocessed(error: &h2::Error) -> bool {
    let leaves = error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR);
    let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
    error.is_remote() && (leaves || refused)
}

impl Racers {
    fn start(&self, addr: SocketAddr) -> Vec<tokio::task::JoinHandle<()>> {
        (0..4)
            .map(|_| tokio::spawn(self.clone().race(addr)))
            .collect()
    }

    async fn race(self, addr: SocketAddr) {
        while !self.stop.load(Ordering::SeqCst) {
            let caller = Caller::connect(addr).await;
            if caller.get("/", false).await.is_ok() {
                self.begun.fetch_add(1, Ordering::SeqCst);
            }
            // On tasks of their own, so that requests come at any moment.
            let lanes: Vec<_> = (0..10)
                .map(|n| tokio::spawn(self.clone().lane(caller.send.clone(), n)))
                .collect();
            for lane in lanes {
                lane.await.unwrap();
            }
            self.connections.fetch_add(1, Ordering::SeqCst);
        }
    }

    async fn lane(self, send: SendRequest<Bytes>, n: u32) {
        while !self.stop.load(Ordering::SeqCst) {
            // The library refuses by itself once it has read a GOAWAY: nothing was sent.
            let Ok(mut send) = send.clone().ready().await else {
                return;
            };
            let post = request("/x", n.is_multiple_of(2))
                .method("POST")
                .body(())
                .unwrap();
            let Ok((response, mut up)) = send.send_request(post, false) else {
                return;
            };
            let _ = up.send_data(Bytes::from_static(b"body"), true);
            let response = timeout(WAIT_TIMEOUT, response).await.expect("an answer");
            let response = match response {
                Ok(response) => response,
                // It crossed the GOAWAY, and may be sent again.
                Err(error) if is_unprocessed(&error) => {
                    self.unprocessed.fetch_add(1, Ordering::SeqCst);
                    return;
                }
                Err(error) => panic!("a request was lost: {error:?}"),
            };
            whole(response).await.expect("a whole answer");
            self.answered.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Waits until there are so many more answers and so many more connections that have ended.
    fn until(&self, answers: u32, connections: u32) -> impl Future<Output = ()> + use<> {
        let (answered, ended) = (self.answered.clone(), self.connections.clone());
        let now = (
            answered.load(Ordering::SeqCst),
            ended.load(Ordering::SeqCst),
        );
        async move {
            let wait = async {
                while answered.load(Ordering::SeqCst) < now.0 + answers
                    || ended.load(Ordering::SeqCst) < now.1 + connections
                {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            timeout(WAIT_TIMEOUT, wait).await.expect("callers go on");
        }
    }

    /// Waits until every racer has a connection that is known to be served.
    async fn all_begun(&self) {
        let wait = async {
            while self.begun.load(Ordering::SeqCst) < 4 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(WAIT_TIMEOUT, wait).await.expect("callers begin");
    }

    async fn end(self, tasks: Vec<tokio::task::JoinHandle<()>>) {
        self.stop.store(true, Ordering::SeqCst);
        for task in tasks {
            timeout(WAIT_TIMEOUT, task)
                .await
                .expect("callers end")
                .unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_keep_their_connections_and_lose_nothing_when_rules_come_and_go() {
    let (app, workstation) = (App::start("app").await, App::start("workstation").await);
    let rig = Rig::new(app.addr, Some(workstation.addr)).await;
    let racers = Racers::default();
    let tasks = racers.start(rig.addr);
    racers.all_begun().await;
    for _ in 0..partings() / 4 {
        rig.intercept();
        racers.until(20, 0).await;
        rig.clear();
        racers.until(20, 0).await;
    }
    assert_eq!(
        racers.connections.load(Ordering::SeqCst),
        0,
        "nobody had to come again"
    );
    racers.end(tasks).await;
    assert_eq!(rig.metrics().http2_goaways.get(), 0);
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
        racers.until(20, 0).await;
        // The app's own way of leaving may have refused some, as it does without the agent.
        let before = racers.unprocessed.load(Ordering::SeqCst);
        let all = racers.until(0, 4);
        rig.port.drain.start();
        all.await;
        assert_eq!(racers.unprocessed.load(Ordering::SeqCst), before);
        racers.end(tasks).await;
    }
}
