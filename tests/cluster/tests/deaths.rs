//! The whole life of intercepts while managers die, at moments that a seed decides.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use cluster_tests::{Cluster, Manager, Workstation};
use serde_json::json;

use super::life::{Row, live, rows};

/// Requests in a second to each app that is under load.
const RATE: u32 = 50;
/// Apps whose pods can be replaced without anybody's notice.
const LOADED: [&str; 3] = ["by-name", "by-number", "bare"];
/// Time for an intercept: in all the managers have to live long enough to replace the pods.
const INTERCEPT_TIMEOUT: Duration = Duration::from_secs(180);
/// Deaths that each intercept outlives.
const OUTLIVED: usize = 2;
/// Time for them.
const DEATHS_TIMEOUT: Duration = Duration::from_secs(180);

/// Seconds between a manager's start and its death: a sequence that a seed repeats.
struct Pauses(u64);

impl Pauses {
    fn new() -> Self {
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
        let seed = std::env::var("DEATHS_SEED").map_or(now, |it| it.parse().unwrap());
        println!("DEATHS_SEED={seed}");
        Self(seed | 1)
    }

    fn next(&mut self) -> Duration {
        // xorshift64: the numbers need no quality.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        Duration::from_millis(2_000 + self.0 % 10_000)
    }
}

/// Ends managers until all is over.
fn reap(manager: &Manager<'_>, deaths: &AtomicUsize, is_over: &AtomicBool) {
    let mut pauses = Pauses::new();
    while !is_over.load(Ordering::SeqCst) {
        manager.is_ready();
        // A moment that nothing announces, so there is no event to wait for.
        std::thread::sleep(pauses.next());
        // The kubelet waits ever longer before it starts what died in the same pod before.
        match deaths.load(Ordering::SeqCst) % 2 {
            0 => manager.kill(),
            _ => manager.delete_pod(),
        }
        deaths.fetch_add(1, Ordering::SeqCst);
    }
    manager.is_ready();
}

#[test]
fn intercepts_are_made_served_and_ended_while_managers_die() {
    let cluster = Cluster::shared();
    let (home, namespace) = (cluster.namespace("manager"), cluster.namespace("deaths"));
    let manager = Manager::install(&home, &[&namespace], &json!({}));
    let readiness = namespace.readiness();
    let (rows, deaths, is_over) = (rows(), AtomicUsize::new(0), AtomicBool::new(false));
    let loaded: Vec<&Row> = rows
        .iter()
        .filter(|it| LOADED.contains(&it.workload.name.as_str()))
        .collect();
    let loads = loaded.iter().map(|row| {
        row.workload.start(&namespace);
        let load = namespace.load(row.url, RATE, &["-fresh"]);
        load.goes_on_for(RATE.into());
        (row.workload.name.as_str(), load)
    });
    let loads: Vec<_> = loads.collect();
    std::thread::scope(|scope| {
        let reaper = scope.spawn(|| reap(&manager, &deaths, &is_over));
        let lives = rows.iter().map(|row| {
            let (manager, namespace, deaths) = (&manager, &namespace, &deaths);
            let outlive = move || {
                let until = deaths.load(Ordering::SeqCst) + OUTLIVED;
                harness::wait::until_within(DEATHS_TIMEOUT, "managers to die", || {
                    (deaths.load(Ordering::SeqCst) >= until).then_some(())
                });
            };
            let workstation = Workstation::new(manager).patient(INTERCEPT_TIMEOUT);
            scope.spawn(move || live(namespace, &workstation, row, &outlive))
        });
        let lives: Vec<_> = lives.collect();
        let ended: Vec<_> = lives.into_iter().map(|it| it.join()).collect();
        is_over.store(true, Ordering::SeqCst);
        reaper.join().unwrap();
        let failed = ended.iter().filter(|it| it.is_err()).count();
        assert_eq!(failed, 0, "lives that failed");
    });
    println!("{} deaths", deaths.load(Ordering::SeqCst));
    readiness.was_kept();
    for (name, load) in loads {
        let tally = load.stop();
        assert_eq!(tally.failed(), 0, "{name}: {tally:?}");
        assert_eq!(tally.answered_by(name), tally.sent, "{name}: {tally:?}");
    }
}
