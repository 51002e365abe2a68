//! The manager dies at moments that a seed chooses while intercepts come, serve and go. Callers and
//! developers go on, and no pod is replaced that nobody asked to replace.
//!
//! `DEATHS_SEED` chooses the moments.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use cluster_tests::{
    Caller, Cluster, HEADER, Load, Manager, Namespace, Served, Workload, Workstation,
};
use harness::random::Random;
use harness::wait::{SetAtEnd, until_within};
use serde_json::{Value, json};

use super::life::has_agent;

/// Seed, unless the environment has another one.
const SEED: u64 = 20_261_130;
/// Requests in a second of each of a workload's two loads.
const RATE: u32 = 20;
/// Longest life of a manager from the moment at which it is ready.
const MAX_TTL: Duration = Duration::from_secs(5);
/// Deaths that each intercept outlives.
const OUTLIVED: usize = 2;
/// Time for one step of a walk, through as many deaths as there are meanwhile.
const STEP_TIMEOUT: Duration = Duration::from_secs(180);

/// A workload, and how many changes of it bring an agent to its pods: none where they are evicted, one
/// for a roll-out of its own, two for one pod more and one less.
struct Row {
    workload: Workload,
    replicas: usize,
    changes: i64,
}

fn rows() -> [Row; 4] {
    let row = |kind, name, replicas, target, changes| Row {
        workload: Workload::new(kind, name, replicas, target),
        replicas,
        changes,
    };
    [
        row("Deployment", "by-name", 1, "http", 1),
        row("Deployment", "by-number", 2, "8080", 0),
        row("StatefulSet", "stateful", 1, "http", 1),
        row("ReplicaSet", "bare", 1, "8080", 2),
    ]
}

/// The manager's deaths so far.
#[derive(Default)]
struct Deaths {
    count: AtomicUsize,
    are_over: AtomicBool,
}

impl Deaths {
    fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    /// Kills each manager some time after it has become ready.
    fn happen(&self, manager: &Manager<'_>, mut random: Random) {
        let mut is_first_life = true;
        loop {
            manager.is_ready();
            let life = MAX_TTL.mul_f64(f64::from(random.byte()) / 256.0);
            let is_killed = random.once_in(2);
            std::thread::sleep(life);
            if self.are_over.load(Ordering::Relaxed) {
                return;
            }
            // The kubelet starts a container again at once, but the next time it takes its time.
            let by = if is_killed && is_first_life {
                manager.kill();
                "killed"
            } else {
                manager.delete_pod_at_once();
                "deleted"
            };
            is_first_life = by == "deleted";
            let count = self.count.fetch_add(1, Ordering::SeqCst) + 1;
            println!("death {count}: {by} {life:?} after it was ready");
        }
    }
}

/// A workload under load.
struct Walk<'a> {
    namespace: &'a Namespace<'a>,
    row: &'a Row,
    caller: Caller<'a>,
    matched: Load<'a>,
    others: Load<'a>,
}

impl<'a> Walk<'a> {
    fn start(namespace: &'a Namespace<'a>, row: &'a Row) -> Self {
        row.workload.start(namespace);
        let (caller, url) = (namespace.caller(), format!("http://{}", row.workload.name));
        harness::wait::until("the app", || caller.try_get(&url, &[]).ok());
        // A new connection for each request: a pod that ends is noticed.
        let matched = ["-fresh", "-header", "x-dev=me"];
        Self {
            namespace,
            row,
            caller,
            matched: namespace.load(&url, RATE, &matched),
            others: namespace.load(&url, RATE, &["-fresh"]),
        }
    }

    fn name(&self) -> &'a str {
        &self.row.workload.name
    }

    /// Waits until this one answers a matched request.
    fn answered_by(&self, wanted: &str) {
        let url = format!("http://{}", self.name());
        let what = format!("{wanted} to answer for {}", self.name());
        until_within(STEP_TIMEOUT, &what, || {
            let answer = self.caller.get(&url, &["-H", HEADER]);
            (answer.by == wanted).then_some(())
        });
    }

    fn intercepted(&self, workstation: &Workstation<'_>) -> Served {
        let served = workstation.start(self.namespace.name(), self.name(), &[]);
        let what = format!("an intercept of {}", self.name());
        until_within(STEP_TIMEOUT, &what, || {
            let process = served.process();
            let said = || process.lines("");
            assert!(process.is_running(), "{}: {:#?}", self.name(), said());
            (!process.lines("Intercepting").is_empty()).then_some(())
        });
        served
    }

    /// Creates an intercept, uses it through some deaths, and leaves.
    fn live(&self, workstation: &Workstation<'_>, deaths: &Deaths) {
        let served = self.intercepted(workstation);
        self.answered_by(&served.answers_as);
        for _ in 0..OUTLIVED {
            let before = deaths.count();
            until_within(STEP_TIMEOUT, "another death", || {
                (deaths.count() > before).then_some(())
            });
            self.answered_by(&served.answers_as);
        }
        assert!(served.process().is_running(), "the client gave up");
        served.leave();
        self.answered_by(self.name());
    }

    fn pods(&self) -> BTreeSet<String> {
        let pods = self.namespace.pods_with(&format!("app={}", self.name()));
        pods.into_iter().filter_map(|it| it.metadata.uid).collect()
    }

    fn generation(&self) -> i64 {
        let kind = self.row.workload.object["kind"].as_str().unwrap();
        let mut kubectl = self.namespace.cluster().kubectl();
        kubectl.args(["get", kind, self.name(), "-n", self.namespace.name()]);
        let output = kubectl.args(["-o", "json"]).output().unwrap();
        let object: Value = serde_json::from_slice(&output.stdout).unwrap();
        object["metadata"]["generation"].as_i64().unwrap()
    }

    /// Two lives: the first brings the agent, the second finds it there.
    fn go(&self, workstation: &Workstation<'_>, deaths: &Deaths) {
        let before = self.generation();
        self.live(workstation, deaths);
        self.namespace
            .settled(self.name(), self.row.replicas, has_agent);
        let pods = self.pods();
        self.live(workstation, deaths);
        assert_eq!(self.pods(), pods, "{} was rolled again", self.name());
        let changes = self.generation() - before;
        assert_eq!(changes, self.row.changes, "changes of {}", self.name());
    }

    /// What the loads saw: the number of requests, those that the workstation answered among them.
    fn end(self) -> (u64, u64) {
        let name = self.name();
        let (matched, others) = (self.matched.stop(), self.others.stop());
        let failed = matched.failed() + others.failed();
        assert_eq!(failed, 0, "{name}: {matched:?} {others:?}");
        assert_eq!(others.answered_by(name), others.sent, "{name}: {others:?}");
        let mine = matched.answered_by(&format!("beside-{name}"));
        // While nobody can reach the workstation the app answers.
        let all = mine + matched.answered_by(name);
        assert_eq!(all, matched.sent, "{name}: {matched:?}");
        (matched.sent + others.sent, mine)
    }
}

#[test]
fn a_manager_that_dies_at_any_moment_costs_no_request_no_intercept_and_no_rollout() {
    let seed = std::env::var("DEATHS_SEED");
    let seed = seed.map_or(SEED, |it| it.parse().expect("DEATHS_SEED, a number"));
    println!("DEATHS_SEED={seed}");
    let cluster = Cluster::shared();
    let (home, namespace) = (cluster.namespace("manager"), cluster.namespace("deaths"));
    let manager = Manager::install(&home, &[&namespace], &json!({}));
    let readiness = namespace.readiness();
    let (rows, deaths) = (rows(), Deaths::default());
    let walks = std::thread::scope(|scope| {
        let namespace = &namespace;
        let start = |row| scope.spawn(move || Walk::start(namespace, row));
        let starting = rows.each_ref().map(start);
        starting.map(|it| it.join().unwrap())
    });
    std::thread::scope(|scope| {
        scope.spawn(|| deaths.happen(&manager, Random::new(seed)));
        let _over = SetAtEnd(&deaths.are_over);
        let going = walks.each_ref().map(|walk| {
            let (manager, deaths) = (&manager, &deaths);
            scope.spawn(move || walk.go(&Workstation::new(manager), deaths))
        });
        for walk in going {
            walk.join().unwrap();
        }
    });
    readiness.was_kept();
    let ends = walks.map(|walk| (walk.name(), walk.end()));
    let ends: BTreeMap<_, _> = ends.into_iter().collect();
    println!(
        "{} deaths; by workload requests, and those that the workstation answered: {ends:?}",
        deaths.count()
    );
}
