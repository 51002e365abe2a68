//! Rules that come while connections are at full work: nothing fails, and nothing goes where it
//! should not.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use tokio::time::timeout;

use crate::app::App;
use crate::rig::{Caller, Rig, request};
use agent_testkit::WAIT_TIMEOUT;

/// Works on one connection at a time with `lanes` requests in flight, as a client does that knows
/// RFC 9113: a connection that was told GOAWAY takes no more requests, and those in flight are
/// waited for.
struct Client {
    rig: std::net::SocketAddr,
    /// Odd while the intercept is surely active; every change is a new number.
    epoch: Arc<AtomicU32>,
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU32>,
    moved: Arc<AtomicU32>,
}

impl Client {
    async fn work(&self) {
        while !self.stop.load(Ordering::SeqCst) {
            let before = self.epoch.load(Ordering::SeqCst);
            let caller = Caller::connect(self.rig).await;
            // An answer proves that the connection has been accepted, and how.
            if caller.get("/", false).await.is_err() {
                continue;
            }
            let terminated = before % 2 == 1 && self.epoch.load(Ordering::SeqCst) == before;
            let lanes = (0..8).map(|n| self.lane(&caller, n % 2 == 0, terminated));
            futures_util::future::join_all(lanes).await;
            self.moved.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// One request after the other until the connection takes no more.
    async fn lane(&self, caller: &Caller, dev: bool, terminated: bool) {
        while !self.stop.load(Ordering::SeqCst) {
            let epoch = self.epoch.load(Ordering::SeqCst);
            let Ok(mut send) = caller.send.clone().ready().await else {
                return;
            };
            let (answer, _) = match send.send_request(request("/", dev).body(()).unwrap(), true) {
                Ok(sent) => sent,
                // The library had read a GOAWAY: nothing was sent.
                Err(_) => return,
            };
            let answer = match timeout(WAIT_TIMEOUT, answer).await.expect("an answer") {
                Ok(answer) => answer,
                Err(error) => panic!("a request failed: {error}"),
            };
            let server = answer.headers()["x-server"].to_str().unwrap();
            if !dev {
                assert_eq!(server, "app");
            } else if terminated && epoch % 2 == 1 && self.epoch.load(Ordering::SeqCst) == epoch {
                assert_eq!(server, "workstation");
            }
            self.answered.fetch_add(1, Ordering::SeqCst);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_at_full_work_move_without_a_failed_or_misrouted_request() {
    let (app, workstation) = (App::start("app").await, App::start("workstation").await);
    for round in 0..3 {
        let rig = Rig::new(app.addr, Some(workstation.addr)).await;
        let (epoch, stop) = (
            Arc::new(AtomicU32::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let (answered, moved) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let workers: Vec<_> = (0..4)
            .map(|_| {
                let client = Client {
                    rig: rig.addr,
                    epoch: epoch.clone(),
                    stop: stop.clone(),
                    answered: answered.clone(),
                    moved: moved.clone(),
                };
                tokio::spawn(async move { client.work().await })
            })
            .collect();
        let until = |what: &'static str, reached: &'static dyn Fn(u32, u32) -> bool| {
            let (answered, moved) = (answered.clone(), moved.clone());
            let (a, m) = (
                answered.load(Ordering::SeqCst),
                moved.load(Ordering::SeqCst),
            );
            let wait = async move {
                while !reached(
                    answered.load(Ordering::SeqCst) - a,
                    moved.load(Ordering::SeqCst) - m,
                ) {
                    tokio::task::yield_now().await;
                }
            };
            async move {
                timeout(WAIT_TIMEOUT, wait)
                    .await
                    .unwrap_or_else(|_| panic!("no progress: {what}"))
            }
        };
        until("relayed", &|answered, _| answered > 200).await;
        // Counted from before the rule, because a connection may move at once.
        let all_move = until("every connection moves", &|_, moved| moved >= 4);
        rig.intercept();
        epoch.fetch_add(1, Ordering::SeqCst);
        all_move.await;
        until("terminated", &|answered, _| answered > 200).await;
        let tunnels = rig.metrics().tunnels.get();
        assert!(tunnels >= 4, "round {round}: {tunnels} tunnels");
        for _ in 0..20 {
            epoch.fetch_add(1, Ordering::SeqCst);
            rig.clear();
            until("off", &|answered, _| answered > 20).await;
            rig.intercept();
            epoch.fetch_add(1, Ordering::SeqCst);
            until("on", &|answered, _| answered > 20).await;
        }
        stop.store(true, Ordering::SeqCst);
        for worker in workers {
            timeout(WAIT_TIMEOUT, worker)
                .await
                .expect("workers end")
                .unwrap();
        }
    }
}
