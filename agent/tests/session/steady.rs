//! A caller of the app that goes on at 200 requests a second beside whatever happens to the agent.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::pod::{Pod, request};

/// Requests that are made at least, so that there is something to judge.
const MIN_REQUESTS: usize = 50;
/// How much later than in the control run 99 of 100 answers may come, on a machine that runs other
/// tests as well.
const MAX_LATER_DELAY: Duration = Duration::from_millis(400);
/// How much more memory the agent may have.
const MAX_GROWTH: usize = 16 << 20;

/// The caller; each of its requests has to be answered by the app.
pub struct Steady {
    stop: Arc<AtomicBool>,
    asked: tokio::task::JoinHandle<Vec<Duration>>,
}

/// The agent before anything happens to it.
pub struct Control {
    p99: Duration,
    memory: usize,
}

impl Steady {
    pub fn start(pod: &Pod) -> Self {
        let (stop, port) = (Arc::new(AtomicBool::new(false)), pod.agent_port);
        let stopped = Arc::clone(&stop);
        let asked = tokio::spawn(async move {
            let mut times = Vec::new();
            let mut ticks = tokio::time::interval(Duration::from_millis(5));
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
            while times.len() < MIN_REQUESTS || !stopped.load(Ordering::Relaxed) {
                ticks.tick().await;
                let started = Instant::now();
                let answer = request(port, "").await.unwrap();
                assert_eq!(answer, "app", "request {}", times.len());
                times.push(started.elapsed());
            }
            times
        });
        Self { stop, asked }
    }

    /// Ends it and returns how often it was answered.
    pub async fn stop(self) -> usize {
        self.times().await.len()
    }

    async fn times(self) -> Vec<Duration> {
        self.stop.store(true, Ordering::Relaxed);
        self.asked.await.unwrap()
    }

    async fn p99(self) -> Duration {
        let mut times = self.times().await;
        times.sort();
        times[times.len() * 99 / 100]
    }

    /// Ends it and compares with the control run: nobody has noticed anything.
    pub async fn unharmed(self, pod: &Pod, control: &Control) {
        let (p99, before) = (self.p99().await, control.p99);
        let growth = pod.memory("RssAnon").saturating_sub(control.memory);
        println!("p99 {p99:?} after {before:?}, {} KiB more", growth >> 10);
        assert!(
            p99 < before + MAX_LATER_DELAY,
            "p99 {p99:?} after {before:?}"
        );
        assert!(growth < MAX_GROWTH, "{} KiB more", growth >> 10);
    }
}

impl Control {
    pub async fn of(pod: &Pod) -> Self {
        let p99 = Steady::start(pod).p99().await;
        let memory = pod.memory("RssAnon");
        Self { p99, memory }
    }
}
