//! Snapshots and deltas.

use std::time::Duration;

use prost_types::Duration as ProtoDuration;
use tokio::time::timeout;
use traffic_proto::manager::workload_event::Type;
use traffic_proto::manager::workload_info::AgentState;
use traffic_proto::manager::{
    AgentInfo, AgentsRequest, InterceptDispositionType as Disposition, LogLevelRequest,
    RemoveInterceptRequest2, SessionInfo, WorkloadEventsRequest,
};

use crate::fixture::{Fixture, agent, spec, within_timeout};

/// Long enough for a message that should not come to show up.
const QUIET_PERIOD: Duration = Duration::from_millis(300);

#[tokio::test]
async fn the_first_snapshot_comes_at_once_and_identical_ones_do_not_follow() {
    let fixture = Fixture::start().await;
    let (mut agent, mut dev) = (fixture.agent("app-1").await, fixture.client("dev").await);
    let mut watch = agent.intercepts().await;
    assert!(watch.next().await.is_empty());
    // Changes that do not concern this watch: another client, another workload's agent, heartbeats.
    fixture.client("other").await;
    fixture
        .arrive(AgentInfo {
            name: "other".into(),
            ..crate::fixture::agent("other-1")
        })
        .await;
    assert!(timeout(QUIET_PERIOD, watch.0.message()).await.is_err());
    dev.create(spec("one")).await;
    assert_eq!(watch.next().await.len(), 1);
}

#[tokio::test]
async fn snapshots_are_sorted_and_rapid_changes_are_one() {
    let fixture = Fixture::start().await;
    let (mut agent, mut dev) = (fixture.agent("app-1").await, fixture.client("dev").await);
    let mut watch = agent.intercepts().await;
    watch.next().await;
    // Nobody reads meanwhile, and yet the state that comes is the whole and last one, soon.
    for number in 0..200 {
        dev.create(spec(&format!("n{number:03}"))).await;
    }
    let mut messages = 0;
    let all = loop {
        messages += 1;
        let seen = watch.next().await;
        if seen.len() == 200 {
            break seen;
        }
    };
    assert!(all.is_sorted_by(|one, other| one.id < other.id));
    assert!(messages < 200, "{messages} messages for 200 changes");
}

#[tokio::test]
async fn an_empty_session_sees_the_intercepts_of_all() {
    let fixture = Fixture::start().await;
    let (mut one, mut two) = (fixture.client("one").await, fixture.client("two").await);
    one.create(spec("a")).await;
    two.create(spec("b")).await;
    let all = one
        .manager
        .watch_intercepts(SessionInfo::default())
        .await
        .unwrap()
        .into_inner()
        .message()
        .await;
    assert_eq!(all.unwrap().unwrap().intercepts.len(), 2);
    assert_eq!(
        one.intercepts().await.next().await.len(),
        1,
        "a client sees its own"
    );
}

#[tokio::test]
async fn an_agent_sees_only_what_it_can_act_on() {
    let fixture = Fixture::start().await;
    let mut dev = fixture.client("dev").await;
    let mut tcp_only = crate::fixture::agent("app-1");
    tcp_only.mechanisms.truncate(1);
    let mut agent = fixture.arrive(tcp_only).await;
    assert_eq!(
        dev.create(spec("one")).await.disposition(),
        Disposition::NoMechanism
    );
    assert!(agent.intercepts().await.next().await.is_empty());
    assert_eq!(dev.intercepts().await.next().await.len(), 1);
}

#[tokio::test]
async fn deltas_begin_with_everything_even_if_that_is_nothing() {
    let fixture = Fixture::start().await;
    let (mut agent, mut dev) = (fixture.agent("app-1").await, fixture.client("dev").await);
    let mut watch = agent
        .manager
        .watch_intercepts_delta(agent.session.clone())
        .await
        .unwrap()
        .into_inner();
    let first = within_timeout(watch.message()).await.unwrap().unwrap();
    assert!(first.upserts.is_empty() && first.removals.is_empty());
    let (one, two) = (
        dev.create(spec("one")).await.id,
        dev.create(spec("two")).await.id,
    );
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < 2 {
        seen.extend(
            within_timeout(watch.message())
                .await
                .unwrap()
                .unwrap()
                .upserts
                .into_keys(),
        );
    }
    assert_eq!(seen, [one.clone(), two.clone()].into());
    agent.review(&one, Disposition::Active, "10.0.0.49").await;
    let change = within_timeout(watch.message()).await.unwrap().unwrap();
    assert_eq!(
        change.upserts.keys().collect::<Vec<_>>(),
        [&one],
        "only what changed"
    );
    let request = RemoveInterceptRequest2 {
        session: Some(dev.session.clone()),
        name: "two".into(),
    };
    dev.manager.remove_intercept(request).await.unwrap();
    let change = within_timeout(watch.message()).await.unwrap().unwrap();
    assert!(change.upserts.is_empty() && change.removals == [two]);
    let mut fresh = agent
        .manager
        .watch_intercepts_delta(agent.session.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        within_timeout(fresh.message())
            .await
            .unwrap()
            .unwrap()
            .upserts
            .len(),
        1,
        "a new watch begins with everything"
    );
}

#[tokio::test]
async fn agents_are_shown_by_namespace() {
    let fixture = Fixture::start().await;
    let mut dev = fixture.client("dev").await;
    fixture.agent("app-1").await;
    fixture
        .arrive(AgentInfo {
            namespace: "elsewhere".into(),
            ..agent("app-2")
        })
        .await;
    let mut own = dev
        .manager
        .watch_agents(dev.session.clone())
        .await
        .unwrap()
        .into_inner();
    let pods = |agents: Vec<AgentInfo>| {
        agents
            .into_iter()
            .map(|agent| agent.pod_name)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        pods(within_timeout(own.message()).await.unwrap().unwrap().agents),
        ["app-1"]
    );
    let request = AgentsRequest {
        session: Some(dev.session.clone()),
        namespaces: vec!["elsewhere".into()],
    };
    let mut other = dev
        .manager
        .watch_agents_ns(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        pods(
            within_timeout(other.message())
                .await
                .unwrap()
                .unwrap()
                .agents
        ),
        ["app-2"]
    );
    let mut delta = dev
        .manager
        .watch_agents_delta(dev.session.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        within_timeout(delta.message())
            .await
            .unwrap()
            .unwrap()
            .upserts
            .len(),
        1
    );
    fixture.agent("app-3").await;
    assert_eq!(
        within_timeout(delta.message())
            .await
            .unwrap()
            .unwrap()
            .upserts
            .len(),
        1
    );
}

#[tokio::test]
async fn agent_pods_say_whether_this_client_intercepts_them() {
    let fixture = Fixture::start().await;
    fixture.agent("app-1").await;
    let (mut dev, mut other) = (fixture.client("dev").await, fixture.client("other").await);
    let mut pods = dev
        .manager
        .watch_agent_pods(dev.session.clone())
        .await
        .unwrap()
        .into_inner();
    let pod = within_timeout(pods.message())
        .await
        .unwrap()
        .unwrap()
        .agents
        .remove(0);
    assert_eq!(
        (pod.pod_name.as_str(), &pod.pod_ip[..], pod.api_port),
        ("app-1", &[10, 0, 0, 49][..], 4000)
    );
    assert!(!pod.intercepted);
    let mut delta = dev
        .manager
        .watch_agent_pods_delta(dev.session.clone())
        .await
        .unwrap()
        .into_inner();
    within_timeout(delta.message()).await.unwrap();
    dev.create(spec("one")).await;
    assert!(
        within_timeout(pods.message())
            .await
            .unwrap()
            .unwrap()
            .agents[0]
            .intercepted
    );
    assert!(
        within_timeout(delta.message())
            .await
            .unwrap()
            .unwrap()
            .upserts
            .values()
            .all(|pod| pod.intercepted)
    );
    let mut others = other
        .manager
        .watch_agent_pods(other.session.clone())
        .await
        .unwrap()
        .into_inner();
    assert!(
        !within_timeout(others.message())
            .await
            .unwrap()
            .unwrap()
            .agents[0]
            .intercepted
    );
}

#[tokio::test]
async fn workloads_are_what_agents_stand_for() {
    let fixture = Fixture::start().await;
    let mut agent = fixture.agent("app-1").await;
    let mut dev = fixture.client("dev").await;
    let request = WorkloadEventsRequest {
        session_info: Some(dev.session.clone()),
        ..Default::default()
    };
    let mut watch = dev
        .manager
        .watch_workloads(request)
        .await
        .unwrap()
        .into_inner();
    let event = within_timeout(watch.message())
        .await
        .unwrap()
        .unwrap()
        .events
        .remove(0);
    assert_eq!(
        (event.r#type(), event.workload.unwrap().agent_state()),
        (Type::AddedUnspecified, AgentState::Installed)
    );
    let id = dev.create(spec("one")).await.id;
    agent.review(&id, Disposition::Active, "10.0.0.49").await;
    let event = within_timeout(watch.message())
        .await
        .unwrap()
        .unwrap()
        .events
        .remove(0);
    let workload = event.workload.clone().unwrap();
    assert_eq!(
        (event.r#type(), workload.agent_state()),
        (Type::Modified, AgentState::Intercepted)
    );
    assert_eq!(workload.intercept_clients[0].client, "dev@laptop");
    agent.depart().await;
    assert_eq!(
        within_timeout(watch.message())
            .await
            .unwrap()
            .unwrap()
            .events[0]
            .r#type(),
        Type::Deleted
    );
}

#[tokio::test]
async fn log_levels_are_passed_on_once_and_only_temporary_ones_to_newcomers() {
    let fixture = Fixture::start().await;
    let mut manager = fixture.connect().await;
    let lasting = LogLevelRequest {
        log_level: "debug".into(),
        duration: None,
    };
    let temporary = LogLevelRequest {
        log_level: "trace".into(),
        duration: Some(ProtoDuration {
            seconds: 60,
            nanos: 0,
        }),
    };
    let mut early = manager.watch_log_level(()).await.unwrap().into_inner();
    manager.set_log_level(lasting.clone()).await.unwrap();
    assert_eq!(
        within_timeout(early.message()).await.unwrap(),
        Some(lasting.clone())
    );
    let mut late = manager.watch_log_level(()).await.unwrap().into_inner();
    manager.set_log_level(lasting).await.unwrap();
    manager.set_log_level(temporary.clone()).await.unwrap();
    assert_eq!(
        within_timeout(early.message()).await.unwrap(),
        Some(temporary.clone()),
        "the same level again is no news"
    );
    assert_eq!(
        within_timeout(late.message()).await.unwrap(),
        Some(temporary.clone())
    );
    let mut latest = manager.watch_log_level(()).await.unwrap().into_inner();
    assert_eq!(
        within_timeout(latest.message()).await.unwrap(),
        Some(temporary)
    );
}

#[tokio::test]
async fn all_watches_end_in_order_when_the_manager_stops() {
    let fixture = Fixture::start().await;
    let mut agent = fixture.agent("app-1").await;
    let mut intercepts = agent.intercepts().await;
    intercepts.next().await;
    let mut dials = agent
        .manager
        .watch_dial(agent.session.clone())
        .await
        .unwrap()
        .into_inner();
    let mut levels = agent
        .manager
        .watch_log_level(())
        .await
        .unwrap()
        .into_inner();
    let mut cluster = agent
        .manager
        .watch_cluster_info(agent.session.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        within_timeout(cluster.message())
            .await
            .unwrap()
            .unwrap()
            .manager_pod_port,
        i32::from(fixture.address.port())
    );
    fixture.stop.cancel();
    assert!(
        within_timeout(intercepts.0.message())
            .await
            .unwrap()
            .is_none()
    );
    assert!(within_timeout(dials.message()).await.unwrap().is_none());
    assert!(within_timeout(levels.message()).await.unwrap().is_none());
    assert!(within_timeout(cluster.message()).await.unwrap().is_none());
}
