//! The control plane is away for a while, again and again: leading managers, the API server, and
//! what it stores things in. Who calls an app notices nothing, and intercepts go on. Only a request
//! that is at the workstation in the moment the way through the API server ends may fail.
//!
//! `LEADER_SECONDS` and `AWAY_SECONDS` set the lengths; CONTRIBUTING names the long forms.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use cluster_tests::{
    Cluster, HEADER, Kind, Load, Manager, Namespace, Served, Workload, Workstation,
};
use harness::wait::until;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::DeleteParams;
use serde_json::json;

use super::life::has_agent;

/// Requests in a second through the Service.
const RATE: u32 = 200;
/// Time from one leader's death to the next one's.
const DEATH_INTERVAL: Duration = Duration::from_secs(10);
/// Longest time that a matched request takes on a busy machine while nothing is away.
const MAX_EXCHANGE_AGE: Duration = Duration::from_secs(1);
/// Time in which all is as before once the control plane is back.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);

fn seconds(variable: &str, short: u64) -> Duration {
    let text = std::env::var(variable);
    Duration::from_secs(text.map_or(short, |it| it.parse().unwrap()))
}

/// A workload with two pods, called all the time, and an intercept of it.
struct Scene<'a> {
    namespace: &'a Namespace<'a>,
    served: Served,
    plain: Load<'a>,
    matched: Load<'a>,
    pods: Vec<String>,
}

impl<'a> Scene<'a> {
    fn start(manager: &Manager<'_>, namespace: &'a Namespace<'a>) -> Self {
        Workload::new("Deployment", "web", 2, "http").start(namespace);
        let served = Workstation::new(manager).intercept(namespace.name(), "web", &[]);
        namespace.settled("web", 2, has_agent);
        let load = |rate, options: &[&str]| {
            let load = namespace.load("http://web", rate, options);
            load.goes_on_for(rate.into());
            load
        };
        let scene = Self {
            namespace,
            plain: load(RATE, &["-fresh"]),
            matched: load(20, &["-fresh", "-header", "x-dev=me"]),
            pods: namespace.pods("app=web"),
            served,
        };
        scene.is_intercepted();
        scene
    }

    /// Waits until the workstation answers, and returns how long it took.
    fn is_intercepted(&self) -> Duration {
        let (caller, begin) = (self.namespace.caller(), Instant::now());
        until("the intercept to go on", || {
            let answer = caller.try_get("http://web", &["-H", HEADER]).ok()?;
            (answer.by == self.served.answers_as).then_some(())
        });
        begin.elapsed()
    }

    /// Ends the load and asserts that no request failed, except matched ones that were in a tunnel
    /// at one of `cuts`: the workstation may have carried them out, so the app must not get them.
    fn nobody_noticed(self, cuts: &[Cut]) {
        let (plain, matched) = (self.plain.stop(), self.matched.stop());
        println!("all: {plain:?}\nmatched: {matched:?}");
        assert_eq!(plain.failed(), 0, "{plain:?}");
        assert_eq!(plain.answered_by("web"), plain.sent, "{plain:?}");
        // Whom the workstation cannot answer meanwhile, the app does.
        let begins = &matched.failed_begins;
        // The list is bounded; beyond it nothing is known of when they began.
        assert_eq!(begins.len() as u64, matched.failed(), "{matched:?}");
        let was_cut = |begin: &SystemTime| cuts.iter().any(|cut| cut.may_have_cut(*begin));
        assert!(begins.iter().all(was_cut), "{matched:?}, cut at {cuts:?}");
        assert!(
            matched.answered_by(&self.served.answers_as) > 0,
            "{matched:?}"
        );
        assert_eq!(self.namespace.pods("app=web"), self.pods, "web was rolled");
        assert!(self.served.process().is_running(), "the client gave up");
        self.served.leave();
    }
}

/// Kills the leader, and deletes its pod so that another one comes without the kubelet's ever longer
/// pauses; returns how long it took the other one to lead.
fn kill_leader(manager: &Manager<'_>, home: &Namespace<'_>) -> Duration {
    let (pods, before): (Api<Pod>, _) = (home.api(), manager.leader());
    let begin = Instant::now();
    manager.kill_in(&before);
    let at_once = DeleteParams::default().grace_period(0);
    let deleted = home.cluster().block_on(pods.delete(&before, &at_once));
    deleted.unwrap();
    until("another manager to lead", || {
        (manager.leader() != before).then_some(())
    });
    begin.elapsed()
}

#[test]
fn leaders_that_die_one_after_another_cost_no_request_and_no_intercept() {
    let length = seconds("LEADER_SECONDS", 20);
    let cluster = Cluster::shared();
    let (home, namespace) = (cluster.namespace("leaders"), cluster.namespace("led"));
    let manager = Manager::install(&home, &[&namespace], &json!({"replicaCount": 2}));
    manager.is_ready();
    let scene = Scene::start(&manager, &namespace);
    let is_over = AtomicBool::new(false);
    let takeovers = std::thread::scope(|scope| {
        // Intercepts come and go all the while.
        let churn = scope.spawn(|| {
            let mut lives = 0;
            while !is_over.load(Ordering::SeqCst) {
                let workstation = Workstation::new(&manager);
                let other = ["--http-header", "x-other=me"];
                workstation
                    .intercept(namespace.name(), "web", &other)
                    .leave();
                lives += 1;
            }
            lives
        });
        let (begin, mut takeovers) = (Instant::now(), Vec::new());
        while begin.elapsed() < length {
            let death = Instant::now();
            takeovers.push(kill_leader(&manager, &home));
            scene.is_intercepted();
            manager.is_ready();
            // The next death comes when it comes: there is no event to wait for.
            std::thread::sleep(DEATH_INTERVAL.saturating_sub(death.elapsed()));
        }
        is_over.store(true, Ordering::SeqCst);
        println!("{} intercepts came and went", churn.join().unwrap());
        takeovers
    });
    println!("takeovers: {takeovers:?}");
    scene.nobody_noticed(&[]);
}

/// A way in which the control plane is away.
#[derive(Clone, Copy, Debug)]
enum Outage {
    /// The API server takes connections and says nothing.
    Frozen,
    /// It refuses connections, and those that were open are cut.
    Refusing,
    /// It answers, and what it stores things in does not.
    NoStore,
}

/// The begin of an outage, between two times.
#[derive(Debug)]
struct Cut {
    earliest: SystemTime,
    latest: SystemTime,
}

impl Cut {
    /// Returns true if a request that began then may have been in a tunnel.
    fn may_have_cut(&self, begin: SystemTime) -> bool {
        self.earliest - MAX_EXCHANGE_AGE <= begin && begin <= self.latest
    }
}

/// An outage that goes on until this is dropped.
struct Away<'a> {
    cluster: &'a Cluster,
    outage: Outage,
}

impl<'a> Away<'a> {
    fn begin(cluster: &'a Cluster, outage: Outage) -> (Self, Cut) {
        let away = Self { cluster, outage };
        let earliest = SystemTime::now();
        away.turn(true);
        let latest = SystemTime::now();
        (away, Cut { earliest, latest })
    }

    fn turn(&self, is_away: bool) {
        let folder = self.cluster.folder().display();
        let signal = if is_away { "-STOP" } else { "-CONT" };
        let mut command = match self.outage {
            Outage::Frozen => {
                let mut command = self.cluster.on_node("pkill");
                command.args([signal, "-f", &format!("apiserver.*{folder}/log/audit")]);
                command
            }
            Outage::NoStore => {
                let mut command = self.cluster.on_node("pkill");
                command.args([signal, "-f", &format!("etcd --folder {folder}/")]);
                command
            }
            Outage::Refusing => {
                let mut command = self.cluster.on_node("iptables");
                let change = if is_away { "-I" } else { "-D" };
                command.args([change, "INPUT", "-p", "tcp", "--dport", "6443"]);
                command.args(["-j", "REJECT", "--reject-with", "tcp-reset"]);
                command
            }
        };
        let done = command.status().unwrap();
        assert!(done.success(), "{:?}: {done}", self.outage);
    }
}

impl Drop for Away<'_> {
    fn drop(&mut self) {
        self.turn(false);
    }
}

#[test]
fn a_control_plane_that_is_away_costs_no_request_and_no_intercept() {
    let length = seconds("AWAY_SECONDS", 15);
    // The others need theirs.
    let cluster = Cluster::start(Kind::Node);
    cluster.load_our_images();
    let (home, namespace) = (cluster.namespace("manager"), cluster.namespace("away"));
    let manager = Manager::install(&home, &[&namespace], &json!({}));
    let scene = Scene::start(&manager, &namespace);
    let mut cuts = Vec::new();
    for outage in [Outage::Frozen, Outage::Refusing, Outage::NoStore] {
        let (away, cut) = Away::begin(&cluster, outage);
        cuts.push(cut);
        // Nothing can be asked of a cluster that is away, so there is no event to wait for.
        std::thread::sleep(length);
        drop(away);
        let settled = scene.is_intercepted();
        println!("{outage:?} for {length:?}: intercepted again after {settled:?}");
        assert!(settled < SETTLE_TIMEOUT, "{outage:?}: {settled:?}");
        // The manager hears of what happens as before.
        let workstation = Workstation::new(&manager);
        let other = ["--http-header", "x-other=me"];
        workstation
            .intercept(namespace.name(), "web", &other)
            .leave();
    }
    scene.nobody_noticed(&cuts);
}
