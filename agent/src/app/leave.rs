//! Leaving in order: not ready, then no session and all to the app, then a lame-duck time in which connections are
//! still accepted because the redirect outlives us, then no new ones, then a grace for the open ones.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use traffic_proto::sidecar;

use crate::admin::Orders;
use crate::drain::Drain;
use crate::ready::Ready;

/// Waits for SIGTERM, SIGINT or an order, then drains. Returns the exit code: 0 when everything ended by itself, 1
/// when connections had to be cut.
pub(super) async fn wait_and_drain<F: Future<Output = ()>>(
    times: &sidecar::Drain,
    ready: &Ready,
    drain: &Drain,
    orders: &Orders,
    depart: F,
) -> u8 {
    let mut signals = Signals::new();
    tokio::select! {
        () = signals.next() => {}
        () = orders.quit.notified() => {}
        () = drain_on_order(times, drain, orders) => {}
    }
    tracing::info!(lame_duck = ?times.lame_duck, grace = ?times.grace, open = drain.alive(), "leaving");
    ready.fail(true);
    let lame_duck = async {
        depart.await;
        tokio::time::sleep(times.lame_duck).await;
    };
    let mut hurried = false;
    tokio::select! {
        () = lame_duck => {}
        () = signals.next() => {
            tracing::info!("second signal: the lame-duck time is skipped");
            hurried = true;
        }
    }
    drain.start();
    tokio::select! {
        () = drain.finished() => return u8::from(hurried),
        () = tokio::time::sleep(times.grace) => {}
        () = signals.next() => {
            tracing::info!("another signal: the grace is skipped");
            hurried = true;
        }
    }
    let cut = drain.kill();
    if cut > 0 {
        tracing::warn!(connections = cut, "cut at the drain's end");
    }
    // Killed tasks need a turn to be dropped.
    let _ = tokio::time::timeout(Duration::from_secs(1), drain.finished()).await;
    u8::from(cut > 0 || hurried)
}

/// The admin's order to stop accepting; the agent stays. Never returns.
async fn drain_on_order(times: &sidecar::Drain, drain: &Drain, orders: &Orders) {
    orders.drain.notified().await;
    if orders.graceful.load(Ordering::Relaxed) {
        tokio::time::sleep(times.lame_duck).await;
    }
    tracing::info!("ordered to stop accepting");
    drain.start();
    std::future::pending().await
}

struct Signals {
    term: Option<Signal>,
    int: Option<Signal>,
}

impl Signals {
    fn new() -> Self {
        let listen =
            |kind| signal(kind).inspect_err(|error| tracing::error!(%error, "a signal cannot be handled")).ok();
        Self { term: listen(SignalKind::terminate()), int: listen(SignalKind::interrupt()) }
    }

    async fn next(&mut self) {
        tokio::select! {
            () = of(&mut self.term) => {}
            () = of(&mut self.int) => {}
        }
    }
}

async fn of(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}
