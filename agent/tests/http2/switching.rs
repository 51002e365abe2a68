//! Rules that come while connections are at full work: nothing fails, and nothing goes where it
//! should not.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use tokio::time::timeout;
use traffic_agent::telemetry::metrics::Protocol;

use crate::app::App;
use crate::rig::{Caller, Rig};
use agent_testkit::WAIT_TIMEOUT;

/// Works on one connection for the whole time with some requests in flight.
struct Client {
    rig: std::net::SocketAddr,
    /// Odd while the intercept is surely active; every change is a new number.
    epoch: Arc<AtomicU32>,
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU32>,
}

impl Client {
    async fn work(&self) {
        let caller = Caller::connect(self.rig).await;
        let lanes = (0..8).map(|n| self.lane(&caller, n % 2 == 0));
        futures_util::future::join_all(lanes).await;
    }

    /// One request after the other.
    async fn lane(&self, caller: &Caller, dev: bool) {
        while !self.stop.load(Ordering::SeqCst) {
            let epoch = self.epoch.load(Ordering::SeqCst);
            let answer = timeout(WAIT_TIMEOUT, caller.get("/", dev)).await;
            let answer = answer.expect("an answer").expect("no request fails");
            let unchanged = self.epoch.load(Ordering::SeqCst) == epoch;
            match (dev, epoch % 4) {
                (false, _) | (true, 0) if unchanged || !dev => assert_eq!(answer.server(), "app"),
                (true, 2) if unchanged => assert_eq!(answer.server(), "workstation"),
                _ => {}
            }
            self.answered.fetch_add(1, Ordering::SeqCst);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_at_full_work_follow_rules_without_a_failed_or_misrouted_request() {
    let (app, workstation) = (App::start("app").await, App::start("workstation").await);
    let rig = Rig::new(app.addr, Some(workstation.addr)).await;
    let (epoch, stop) = (
        Arc::new(AtomicU32::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    let answered = Arc::new(AtomicU32::new(0));
    let workers: Vec<_> = (0..4)
        .map(|_| {
            let client = Client {
                rig: rig.addr,
                epoch: epoch.clone(),
                stop: stop.clone(),
                answered: answered.clone(),
            };
            tokio::spawn(async move { client.work().await })
        })
        .collect();
    let until = |what: &'static str, more: u32| {
        let answered = answered.clone();
        let before = answered.load(Ordering::SeqCst);
        async move {
            let wait = async {
                while answered.load(Ordering::SeqCst) < before + more {
                    tokio::task::yield_now().await;
                }
            };
            timeout(WAIT_TIMEOUT, wait)
                .await
                .unwrap_or_else(|_| panic!("no progress: {what}"));
        }
    };
    until("relayed", 200).await;
    for _ in 0..40 {
        // Of four phases: off, coming, on, going.
        epoch.fetch_add(1, Ordering::SeqCst);
        rig.intercept();
        epoch.fetch_add(1, Ordering::SeqCst);
        until("on", 40).await;
        epoch.fetch_add(1, Ordering::SeqCst);
        rig.clear();
        epoch.fetch_add(1, Ordering::SeqCst);
        until("off", 40).await;
    }
    stop.store(true, Ordering::SeqCst);
    for worker in workers {
        timeout(WAIT_TIMEOUT, worker)
            .await
            .expect("workers end")
            .unwrap();
    }
    let carried = rig.metrics().carried.at(Protocol::Http2).get();
    assert_eq!(carried, 4, "the same connections all the time");
    assert_eq!(rig.metrics().http2_goaways.get(), 0);
}
