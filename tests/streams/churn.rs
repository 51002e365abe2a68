//! Intercepts that come and go twenty times a second: no request fails, and none goes to a wrong
//! target.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use harness::ports;
use harness::sidecar::Port;
use harness::system::System;
use tokio::time::Instant;

use crate::load::{Tally, Work};
use crate::rules::{Control, Rules};
use crate::{app, seconds};

/// Callers of each kind, half of them on each port.
const HTTP1: u64 = 100;
const HTTP2: u64 = 10;
const GRPC: u64 = 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn churning_intercepts_cost_no_request_and_misroute_none() {
    let lasts = seconds("CHURN_SECONDS", 5);
    let apps = [app::start("app").await, app::start("app").await];
    let workstation = app::start("workstation").await;
    let containers = apps.map(|app| app.port());
    let ports = containers
        .map(|container| Port::tcp(container, ports::free()))
        .to_vec();
    let (system, _keeps) = tokio::task::spawn_blocking(move || {
        let system = System::start_with(
            |sidecar| sidecar.ports = ports,
            |command| {
                command.env("LOG_LEVEL", "info");
            },
        );
        let keeps = system.intercept("keep", workstation, &["--http-header=x-dev=always"]);
        (system, keeps)
    })
    .await
    .unwrap();
    let rules = [true, false].map(Rules::of);
    let tallies: [Arc<Tally>; 3] = Default::default();
    let addresses = [0, 1].map(|n| ([127, 0, 0, 1], system.agent.sidecar.ports[n].agent).into());

    let mut callers = Vec::new();
    for (kind, count) in [HTTP1, HTTP2, GRPC].into_iter().enumerate() {
        for n in 0..count {
            let port = usize::try_from(n % 2).unwrap();
            let tally = tallies[kind].clone();
            let work = Work {
                address: addresses[port],
                rules: rules[port].clone(),
                tally,
            };
            callers.push(match kind {
                0 => tokio::spawn(work.http1(n)),
                1 => tokio::spawn(work.http2(n)),
                _ => tokio::spawn(work.grpc(n)),
            });
        }
    }
    let until = Instant::now() + lasts;
    let changed = rules.clone();
    // A thread of its own, so that callers at full work do not slow the changes down.
    let changing = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let control = Control::of(&system, "keep").await;
            let changes = [0, 1].map(|n| {
                let (quick, slow, rules) = (control.clone(), control.clone(), &changed[n]);
                futures_util::future::join(
                    quick.quick(containers[n], rules.clone(), until),
                    slow.slow(containers[n], rules.clone(), until),
                )
            });
            futures_util::future::join_all(changes).await;
        });
        system
    });
    let system = changing.await.unwrap();
    for tally in &tallies {
        tally.stop.store(true, Ordering::Relaxed);
    }
    for caller in callers {
        tokio::time::timeout(2 * harness::wait::WAIT_TIMEOUT, caller)
            .await
            .expect("callers end")
            .unwrap();
    }
    assert!(system.agent.process.is_running());
    report(&tallies, &rules, lasts);
    for tally in &tallies {
        let wrong = tally.wrong.lock().unwrap();
        let first: Vec<_> = wrong.iter().take(10).collect();
        assert!(
            wrong.is_empty(),
            "{} of {} went wrong: {first:#?}",
            wrong.len(),
            tally.answered()
        );
        assert!(tally.by_app.load(Ordering::Relaxed) > 100, "{tally:?}");
        assert!(
            tally.by_workstation.load(Ordering::Relaxed) > 100,
            "{tally:?}"
        );
    }
    assert_eq!(
        tallies[0].connections.load(Ordering::Relaxed),
        HTTP1,
        "the same sockets all the time"
    );
}

fn report(tallies: &[Arc<Tally>; 3], rules: &[Arc<Rules>; 2], lasts: Duration) {
    for (kind, tally) in ["HTTP/1", "HTTP/2", "gRPC"].iter().zip(tallies) {
        eprintln!(
            "{kind}: {} answered by the app, {} by the workstation, {} wrong, {} given back \
            unsent, {} connections, {lasts:?}",
            tally.by_app.load(Ordering::Relaxed),
            tally.by_workstation.load(Ordering::Relaxed),
            tally.wrong.lock().unwrap().len(),
            tally.unsent.load(Ordering::Relaxed),
            tally.connections.load(Ordering::Relaxed),
        );
    }
    let (quick, slow) = (
        rules.each_ref().map(|r| r.quick()),
        rules.each_ref().map(|r| r.slow()),
    );
    eprintln!("quick rules on each port: {quick:?}, slow ones: {slow:?}");
}
