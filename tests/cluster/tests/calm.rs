//! Nobody who calls an app notices what happens to it: agents that come and go, intercepts, and a
//! manager that dies.

use cluster_tests::{Cluster, HEADER, Load, Manager, Namespace, Tally, Workload, Workstation};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::Api;
use serde_json::{Value, json};

use super::life::has_agent;

/// Requests in a second through each Service.
const RATE: u32 = 200;

/// A workload under load.
struct Busy<'a> {
    namespace: &'a Namespace<'a>,
    name: String,
    replicas: usize,
    load: Load<'a>,
}

impl<'a> Busy<'a> {
    fn start(namespace: &'a Namespace<'a>, name: &str, replicas: usize, target: &str) -> Self {
        let workload = Workload::new("Deployment", name, replicas, target);
        Self::of(namespace, &workload, replicas)
    }

    fn of(namespace: &'a Namespace<'a>, workload: &Workload, replicas: usize) -> Self {
        workload.start(namespace);
        let name = workload.name.as_str();
        let (caller, url) = (namespace.caller(), format!("http://{name}"));
        harness::wait::until("the app", || caller.try_get(&url, &[]).ok());
        // A new connection for each request: a pod that ends is noticed.
        let load = namespace.load(&url, RATE, &["-fresh"]);
        load.goes_on_for(RATE.into());
        Self {
            namespace,
            name: name.to_owned(),
            replicas,
            load,
        }
    }

    fn live(&self, workstation: &Workstation<'_>, options: &[&str]) {
        let (namespace, name) = (self.namespace, self.name.as_str());
        let served = workstation.intercept(namespace.name(), name, options);
        namespace.settled(name, self.replicas, has_agent);
        let (caller, url) = (namespace.caller(), format!("http://{name}"));
        let mine = || caller.get(&url, &["-H", HEADER]).by;
        harness::wait::until("the intercept", || {
            (mine() == served.answers_as).then_some(())
        });
        self.load.goes_on_for(RATE.into());
        served.leave();
        let removed = workstation.run(&["uninstall", name, "--namespace", namespace.name()]);
        assert_eq!(removed.code, 0, "{}", removed.text);
        namespace.settled(name, self.replicas, |pod| !has_agent(pod));
        self.load.goes_on_for(RATE.into());
    }

    fn none_failed(self) -> Tally {
        let tally = self.load.stop();
        assert_eq!(tally.failed(), 0, "{}: {tally:?}", self.name);
        assert_eq!(
            tally.answered_by(&self.name),
            tally.sent,
            "{}: {tally:?}",
            self.name
        );
        println!(
            "{}: {} requests, slowest {} ms",
            self.name, tally.sent, tally.slowest_ms
        );
        tally
    }
}

/// What a rollout would change in a Deployment.
fn template_of(namespace: &Namespace<'_>, name: &str) -> (Option<i64>, Value) {
    let api: Api<Deployment> = namespace.api();
    let deployment = namespace.cluster().block_on(api.get(name)).unwrap();
    let template = deployment.spec.map(|it| it.template);
    (
        deployment.metadata.generation,
        serde_json::to_value(template).unwrap(),
    )
}

#[test]
fn no_request_fails_while_an_agent_comes_and_goes() {
    let cluster = Cluster::shared();
    let (home, namespace) = (cluster.namespace("manager"), cluster.namespace("calm"));
    let manager = Manager::install(&home, &[&namespace], &json!({}));
    let readiness = namespace.readiness();
    let before = std::thread::scope(|scope| {
        let lives = [("one", 1, "http"), ("three", 3, "8080")].map(|(name, replicas, target)| {
            let (manager, namespace) = (&manager, &namespace);
            scope.spawn(move || {
                let busy = Busy::start(namespace, name, replicas, target);
                let before = template_of(namespace, name);
                busy.live(&Workstation::new(manager), &[]);
                busy.none_failed();
                (name, before)
            })
        });
        lives.map(|it| it.join().unwrap())
    });
    readiness.was_kept();
    // Where enough pods are ready they are evicted: the workload is as it was, to the last byte.
    let (name, three) = &before[1];
    assert_eq!(&template_of(&namespace, name), three, "{name} was changed");
}

#[test]
fn where_restarts_are_not_wanted_the_workload_is_as_it_was_even_with_one_pod() {
    let cluster = Cluster::shared();
    let (home, namespace) = (cluster.namespace("manager"), cluster.namespace("evicted"));
    let values = json!({"agent": {"rollout": "evict"}});
    let manager = Manager::install(&home, &[&namespace], &values);
    Workload::new("Deployment", "web", 1, "http").start(&namespace);
    let before = template_of(&namespace, "web");
    let workstation = Workstation::new(&manager);
    let served = workstation.intercept(namespace.name(), "web", &[]);
    namespace.settled("web", 1, has_agent);
    served.leave();
    let removed = workstation.run(&["uninstall", "web", "--namespace", namespace.name()]);
    assert_eq!(removed.code, 0, "{}", removed.text);
    namespace.settled("web", 1, |pod| !has_agent(pod));
    assert_eq!(template_of(&namespace, "web"), before);
}

#[test]
fn a_manager_that_is_killed_again_and_again_costs_nothing() {
    let cluster = Cluster::shared();
    let (home, namespace) = (cluster.namespace("manager"), cluster.namespace("killed"));
    let manager = Manager::install(&home, &[&namespace], &json!({}));
    let workstation = Workstation::new(&manager);
    let busy = Busy::start(&namespace, "web", 1, "http");
    let served = workstation.intercept(namespace.name(), "web", &[]);
    namespace.settled("web", 1, has_agent);
    let matched = namespace.load("http://web", 20, &["-fresh", "-header", "x-dev=me"]);
    let (before, pods) = (template_of(&namespace, "web"), namespace.pods("app=web"));
    for kind in [Death::Killed, Death::Restarted, Death::Killed] {
        end(&manager, kind);
        busy.load.goes_on_for(u64::from(RATE) * 3);
        manager.is_ready();
        let caller = namespace.caller();
        harness::wait::until("the intercept to go on", || {
            let answer = caller.get("http://web", &["-H", HEADER]);
            (answer.by == served.answers_as).then_some(())
        });
    }
    assert!(served.process().is_running(), "the client gave up");
    assert_eq!(template_of(&namespace, "web"), before, "web was changed");
    assert_eq!(namespace.pods("app=web"), pods, "web was rolled");
    let matched = matched.stop();
    // Whom the workstation cannot answer meanwhile, the app does.
    assert_eq!(matched.failed(), 0, "{matched:?}");
    busy.none_failed();
    served.leave();
}

/// Returns something once a pod's container runs again after its death.
fn is_back(pod: Option<&Pod>) -> Option<()> {
    let container = pod?.status.as_ref()?.container_statuses.as_ref()?.first()?;
    (container.restart_count > 0 && container.ready).then_some(())
}

#[test]
fn with_two_managers_the_other_one_takes_over() {
    let cluster = Cluster::shared();
    let (home, namespace) = (cluster.namespace("managers"), cluster.namespace("two"));
    // Helm waits for both to be ready: the one that waits passes on what it is asked.
    let values = json!({"replicaCount": 2, "podDisruptionBudget": {"enabled": true}});
    let manager = Manager::install(&home, &[&namespace], &values);
    manager.is_ready();
    let workstation = Workstation::new(&manager);
    let busy = Busy::start(&namespace, "web", 2, "http");
    let served = workstation.intercept(namespace.name(), "web", &[]);
    namespace.settled("web", 2, has_agent);
    let pods = namespace.pods("app=web");
    let caller = namespace.caller();
    let goes_on = || {
        harness::wait::until("the intercept to go on", || {
            let answer = caller.get("http://web", &["-H", HEADER]);
            (answer.by == served.answers_as).then_some(())
        });
    };
    goes_on();
    for _ in 0..2 {
        let before = manager.leader();
        manager.kill_in(&before);
        busy.load.goes_on_for(u64::from(RATE));
        let after = harness::wait::until("the other one to lead", || {
            Some(manager.leader()).filter(|it| *it != before)
        });
        goes_on();
        println!("{after} leads after {before}");
        // The next one to die needs somebody who waits.
        home.wait(&before, "the killed manager to be back", is_back);
    }
    // Every replica answers clients, whichever leads.
    for pod in home.pods("app=traffic-manager") {
        let address = home.ready_pod(&pod).status.unwrap().pod_ip.unwrap();
        let health = caller.run(&["curl", "-sSk", &format!("https://{address}:8443/healthz")]);
        assert_eq!(health.stdout, "ok\n", "{pod}: {health:?}");
    }
    assert!(served.process().is_running(), "the client gave up");
    assert_eq!(namespace.pods("app=web"), pods, "web was rolled");
    busy.none_failed();
    served.leave();
}

#[test]
fn a_manager_that_is_killed_amid_the_replacement_of_the_only_pod_leaves_one() {
    let cluster = Cluster::shared();
    let (home, namespace) = (cluster.namespace("manager"), cluster.namespace("surge"));
    let manager = Manager::install(&home, &[&namespace], &json!({}));
    let bare = Workload::new("ReplicaSet", "bare", 1, "8080");
    let busy = Busy::of(&namespace, &bare, 1);
    let workstation = Workstation::new(&manager);
    let asked = workstation.start(namespace.name(), "bare", &[]);
    harness::wait::until("a second pod", || {
        (namespace.pods("app=bare").len() == 2).then_some(())
    });
    manager.kill();
    manager.is_ready();
    // What the killed manager had begun is over when nothing is written down about it.
    let state = |map: Option<&ConfigMap>| {
        let is_surging = map?.data.as_ref()?.contains_key("surges.yaml");
        (!is_surging).then_some(())
    };
    home.wait("traffic-manager", "the end of the replacement", state);
    namespace.settled("bare", 1, has_agent);
    let sets: Api<ReplicaSet> = namespace.api();
    let set = cluster.block_on(sets.get("bare")).unwrap();
    assert_eq!(set.spec.unwrap().replicas, Some(1));
    busy.load.goes_on_for(RATE.into());
    busy.none_failed();
    drop(asked);
}

/// How a manager ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Death {
    /// SIGKILL: the kubelet starts it again in its pod.
    Killed,
    /// Its pod is deleted, and another one takes over.
    Restarted,
}

fn end(manager: &Manager<'_>, death: Death) {
    match death {
        Death::Killed => manager.kill(),
        Death::Restarted => manager.delete_pod(),
    }
}
