//! Intercepts that come and go twenty times a second: no request fails, and none goes to a wrong
//! target.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use harness::caller;
use harness::ports;
use harness::sidecar::Port;
use harness::system::System;
use tokio::time::Instant;

use crate::go::GoChannels;
use crate::load::{Tally, Work};
use crate::rules::{Control, Rules};
use crate::{app, seconds};

/// Callers of each kind, half of them on each port.
const HTTP1: u64 = 100;
const HTTP2: u64 = 10;
const GRPC: u64 = 10;
const GO: u64 = 10;
const KINDS: [(&str, u64); 4] = [
    ("HTTP/1", HTTP1),
    ("HTTP/2", HTTP2),
    ("gRPC", GRPC),
    ("gRPC of Go", GO),
];

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
    let tallies: [Arc<Tally>; 4] = Default::default();
    let addresses = [0, 1].map(|n| ([127, 0, 0, 1], system.agent.sidecar.ports[n].agent).into());
    let to_port = |n: u64| usize::try_from(n % 2).unwrap();
    let channels: Vec<_> = (0..GO).map(|n| addresses[to_port(n)]).collect();
    let go = tokio::task::spawn_blocking(move || GoChannels::start(&channels));
    let go = Arc::new(go.await.unwrap());

    let mut callers = Vec::new();
    for (kind, (_, count)) in KINDS.into_iter().enumerate() {
        for n in 0..count {
            let port = to_port(n);
            let tally = tallies[kind].clone();
            let work = Work {
                address: addresses[port],
                rules: rules[port].clone(),
                tally,
            };
            callers.push(match kind {
                0 => tokio::spawn(work.http1(n)),
                1 => tokio::spawn(work.http2(n)),
                2 => tokio::spawn(work.grpc(n)),
                _ => tokio::spawn(go.clone().grpc(usize::try_from(n).unwrap(), work, n)),
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
            let control = Control::beside(&system, "keep").await;
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
    let go = Arc::into_inner(go).unwrap();
    let at_go = tallies[3].clone();
    tokio::task::spawn_blocking(move || go.end(&at_go))
        .await
        .unwrap();
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
    for (tally, (kind, callers)) in tallies.iter().zip(KINDS) {
        let connections = tally.connections.load(Ordering::Relaxed);
        assert_eq!(
            connections, callers,
            "{kind}: the same sockets all the time"
        );
        let of_app = tally.app_connections.lock().unwrap().len();
        assert_eq!(of_app as u64, callers, "{kind}: and the app's beside them");
        let unsent = tally.unsent.load(Ordering::Relaxed);
        assert_eq!(unsent, 0, "nothing is handed back unsent");
    }
    // A gRPC channel comes again without a word to its user, but not unseen by the agent.
    let counters = caller::get(system.agent.admin(), "/stats/prometheus", &[]).unwrap();
    let counters = String::from_utf8(counters.body).unwrap();
    let sum = |name: &str, label: &str| -> u64 {
        let lines = counters
            .lines()
            .filter(|line| line.starts_with(name) && line.contains(label));
        let values = lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok());
        values.sum()
    };
    let http2 = sum("traffic_agent_connections_total{", "\"http2\"");
    assert_eq!(
        http2,
        HTTP2 + GRPC + GO,
        "connections that were ever opened"
    );
    assert_eq!(sum("traffic_agent_http2_goaways_total{", ""), 0);
}

fn report(tallies: &[Arc<Tally>; 4], rules: &[Arc<Rules>; 2], lasts: Duration) {
    for ((kind, _), tally) in KINDS.iter().zip(tallies) {
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
