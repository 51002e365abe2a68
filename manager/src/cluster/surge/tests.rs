use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use injector::Kind;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::codegen::http::{Request, Response};
use traffic_proto::sync::lock;

use super::*;
use crate::cluster::announce::Announcer;
use crate::cluster::caches::{Caches, Key};
use crate::cluster::env::ClusterSettings;
use crate::cluster::objects::{PodFacts, PodObject, WorkloadFacts};
use crate::cluster::rollout::Roller;
use crate::cluster::wishes::Wishes;

mod server;

use server::{STEP_TIMEOUT, STEPS, Server, Step, replica_set};

/// A manager that leads, until it is dropped.
struct Leader {
    planner: Planner,
    roller: Arc<Roller>,
    state: Arc<SavedState>,
    stop: CancellationToken,
}

impl Leader {
    async fn start(server: &Arc<Server>) -> Self {
        let settings = ClusterSettings::read(|name| {
            let value = match name {
                "SERVER_PORT" => "8081",
                "MANAGER_NAMESPACE" => "home",
                "AGENT_INJECT_POLICY" => "OnDemand",
                "AGENT_REGISTRY" => "registry",
                "AGENT_IMAGE_NAME" => "agent",
                "AGENT_IMAGE_TAG" => "1",
                _ => return None,
            };
            Some(value.to_owned())
        });
        let settings = settings.unwrap();
        let client = server.client();
        let wishes = Arc::new(Wishes::default());
        let state = SavedState::new(client.clone(), "home", wishes.clone());
        let caches = Caches::new(&[Kind::ReplicaSet]);
        let planner = Planner::new(caches.clone(), wishes, settings.injector.clone());
        let map = server.change(|state| {
            state.caches = caches;
            state.last = None;
            state.show();
            ConfigMap {
                data: Some(state.config.clone()),
                ..ConfigMap::default()
            }
        });
        state.load(&map).await;
        let state = Arc::new(state);
        let stop = CancellationToken::new();
        let roller = Roller::new(
            client.clone(),
            planner.clone(),
            Announcer::new(client, "manager"),
            state.clone(),
            &settings,
            TaskTracker::new(),
            stop.clone(),
        );
        tokio::spawn(roller.clone().run());
        Self {
            planner,
            roller,
            state,
            stop,
        }
    }

    /// Somebody wants an agent; the webhook gives it to new pods.
    fn want(&self, server: &Server) {
        let wishes = &self.planner.wishes;
        wishes.want(&key(), std::time::SystemTime::UNIX_EPOCH);
        let plan = self.planner.plan(&replica_set(1)).unwrap();
        server.change(|state| state.digest = Some(plan.digest));
        self.planner.caches.touch("n");
    }

    /// Waits until the replacement has failed; returns why.
    async fn fails(&self) -> String {
        let mut ends = self.roller.ends();
        loop {
            if let Some(why) = self.roller.failure(&key()) {
                return why;
            }
            ends.changed().await.unwrap();
        }
    }

    async fn is_settled(&self, server: &Server) {
        let mut ends = self.roller.ends();
        let mut changes = self.planner.caches.changes();
        let settled = async {
            while !self.roller.is_settled(&key()) {
                tokio::select! {
                    _ = ends.changed() => {}
                    _ = changes.changed() => {}
                }
            }
        };
        let in_time = timeout(STEP_TIMEOUT, settled).await.is_ok();
        let why = self.roller.failure(&key());
        assert!(
            in_time,
            "{why:?} {:?}",
            server.change(|state| state.steps.clone())
        );
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn key() -> Key {
    Key {
        namespace: "n".to_owned(),
        kind: Kind::ReplicaSet,
        name: "bare".to_owned(),
    }
}

/// A ReplicaSet whose manager ended right after a step of its surge.
async fn left_at(last: Step) -> Arc<Server> {
    let server = Server::new();
    let leader = Leader::start(&server).await;
    server.change(|state| state.last = Some(last));
    leader.want(&server);
    server.has_done(last).await;
    server
}

fn assert_done(server: &Server, what: &str) {
    server.change(|state| {
        let agents: Vec<_> = state.pods.iter().map(|pod| pod.has_agent).collect();
        assert_eq!(
            (state.replicas, agents),
            (1, vec![true]),
            "{what}: {:?}",
            state.steps
        );
        assert!(
            !state.config.contains_key("surges.yaml"),
            "{what}: {:?}",
            state.config
        );
    });
}

#[tokio::test(start_paused = true)]
async fn a_surge_is_written_down_before_it_begins_and_forgotten_when_it_is_over() {
    let server = Server::new();
    let leader = Leader::start(&server).await;
    leader.want(&server);
    leader.is_settled(&server).await;
    server.change(|state| assert_eq!(state.steps, STEPS));
    assert_done(&server, "undisturbed");
}

#[tokio::test(start_paused = true)]
async fn the_next_manager_ends_a_surge_wherever_the_last_one_died() {
    for last in STEPS {
        let server = left_at(last).await;
        let next = Leader::start(&server).await;
        assert_eq!(
            next.planner.wishes.all(),
            [key()],
            "the wish is lost: {last:?}"
        );
        next.is_settled(&server).await;
        assert_done(&server, &format!("{last:?}"));
        let evicted = server.change(|state| {
            let steps = state.steps.iter();
            steps.filter(|it| **it == Step::Evict).count()
        });
        assert_eq!(evicted, 1, "{last:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_came_without_an_agent_meanwhile_is_replaced_as_well() {
    let server = left_at(Step::Evict).await;
    // The webhook was not there: only the second pod of the surge has an agent.
    server.change(|state| {
        state.digest = None;
        state.pods.clear();
        state.reconcile();
    });
    let next = Leader::start(&server).await;
    next.want(&server);
    next.is_settled(&server).await;
    assert_done(&server, "without an agent");
}

#[tokio::test(start_paused = true)]
async fn a_number_that_somebody_chose_meanwhile_stays() {
    for (last, chosen) in [
        (Step::WriteDown, 3),
        (Step::Grow, 3),
        (Step::Evict, 5),
        (Step::Shrink, 3),
    ] {
        let server = left_at(last).await;
        server.change(|state| {
            state.replicas = chosen;
            state.reconcile();
        });
        let next = Leader::start(&server).await;
        next.is_settled(&server).await;
        server.change(|state| {
            assert_eq!(state.replicas, chosen, "{last:?}: {:?}", state.steps);
            assert!(state.pods.iter().all(|pod| pod.has_agent), "{last:?}");
            assert!(!state.config.contains_key("surges.yaml"), "{last:?}");
        });
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_pod_that_is_never_ready_goes_and_the_first_stays() {
    let server = left_at(Step::Grow).await;
    server.change(|state| {
        state.serves = false;
        state.pods[1].ready = false;
    });
    let next = Leader::start(&server).await;
    server.has_done(Step::Forget).await;
    server.change(|state| {
        let names: Vec<_> = state.pods.iter().map(|pod| pod.name.as_str()).collect();
        assert_eq!((state.replicas, names), (1, vec!["bare-1"]));
    });
    let why = next.fails().await;
    assert!(next.state.surge(&key()).is_none());
    assert!(
        why.contains("a second pod was not ready within 120s"),
        "{why}"
    );
}

/// A budget's controller sees a moment later than the manager that the second pod is ready.
#[tokio::test(start_paused = true)]
async fn a_budget_that_lets_the_pod_go_a_little_later_is_waited_for() {
    let server = Server::new();
    server.change(|state| state.refusals = 3);
    let leader = Leader::start(&server).await;
    leader.want(&server);
    leader.is_settled(&server).await;
    server.change(|state| assert_eq!(state.steps, STEPS));
    assert_done(&server, "refused three times");
}

#[tokio::test(start_paused = true)]
async fn a_budget_that_keeps_the_pod_is_named_and_the_first_pod_stays() {
    let server = Server::new();
    server.change(|state| state.refusals = usize::MAX);
    let leader = Leader::start(&server).await;
    leader.want(&server);
    let why = leader.fails().await;
    assert!(
        why.contains("PodDisruptionBudget keeps pod bare-1"),
        "{why}"
    );
    server.change(|state| {
        let names: Vec<_> = state.pods.iter().map(|pod| pod.name.as_str()).collect();
        assert_eq!((state.replicas, names), (1, vec!["bare-1"]));
    });
}

/// The ReplicaSet's controller may hear of an eviction later than of a smaller size.
#[tokio::test(start_paused = true)]
async fn the_second_pod_stays_though_the_controller_hears_late_of_the_eviction() {
    let server = Server::new();
    server.change(|state| state.hears_after = Duration::from_secs(3));
    let leader = Leader::start(&server).await;
    leader.want(&server);
    leader.is_settled(&server).await;
    server.change(|state| assert_eq!(state.steps, STEPS));
    assert_done(&server, "heard late");
}

/// No third pod ever comes, as where a quota leaves no room.
#[tokio::test(start_paused = true)]
async fn a_surge_ends_without_a_pod_in_place_of_the_evicted_one() {
    let server = Server::new();
    server.change(|state| state.most = 2);
    let leader = Leader::start(&server).await;
    leader.want(&server);
    leader.is_settled(&server).await;
    server.change(|state| assert_eq!(state.steps, STEPS));
    assert_done(&server, "no room");
}

#[tokio::test(start_paused = true)]
async fn a_surge_of_a_replica_set_without_pods_is_forgotten() {
    let server = left_at(Step::Grow).await;
    server.change(|state| {
        state.replicas = 0;
        state.reconcile();
    });
    let next = Leader::start(&server).await;
    next.is_settled(&server).await;
    server.change(|state| assert!(!state.config.contains_key("surges.yaml")));
}
