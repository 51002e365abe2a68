//! Arriving, remaining, departing, expiring, coming back.

use std::time::Duration;

use tonic::Code;
use traffic_proto::manager::{
    AgentInfo, ReconnectAgentRequest, ReconnectClientRequest, RemainRequest, SessionInfo,
    agent_info::ContainerInfo,
};

use crate::fixture::{Fixture, Party, Spoil, agent, client, mechanism, spec, within_timeout};

fn remain(session: &SessionInfo) -> RemainRequest {
    RemainRequest {
        session: Some(session.clone()),
        ..RemainRequest::default()
    }
}

#[tokio::test]
async fn ids_are_an_agents_uid_or_random() {
    let fixture = Fixture::start().await;
    assert_eq!(fixture.agent("app-1").await.id(), "agent:uid-app-1");
    let without_uid = |pod: &str| AgentInfo {
        pod_uid: String::new(),
        ..agent(pod)
    };
    let (two, three) = (
        fixture.arrive(without_uid("app-2")).await,
        fixture.arrive(without_uid("app-3")).await,
    );
    assert!(two.id().starts_with("agent:") && two.id().len() > 30 && two.id() != three.id());
    let client = fixture.client("dev").await;
    assert_eq!(client.id().len(), 36);
    assert_eq!(client.session.install_id.as_deref(), Some("install"));
    assert!(!client.session.cluster_id.is_empty());
}

#[tokio::test]
async fn the_same_pod_may_arrive_again_and_another_with_its_uid_may_not() {
    let fixture = Fixture::start().await;
    let mut first = fixture.agent("app-1").await;
    let mut watch = first.intercepts().await;
    watch.next().await;
    let mut again = fixture.agent("app-1").await;
    assert!(
        within_timeout(watch.0.message()).await.unwrap().is_none(),
        "the old session's watches end"
    );
    again.manager.remain(remain(&again.session)).await.unwrap();
    let stranger = AgentInfo {
        pod_uid: "uid-app-1".into(),
        ..agent("other-1")
    };
    let refused = fixture
        .connect()
        .await
        .arrive_as_agent(stranger)
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists);
}

#[tokio::test]
async fn what_is_missing_in_an_arrival_is_named() {
    let fixture = Fixture::start().await;
    let mut manager = fixture.connect().await;
    let cases: [(Spoil<AgentInfo>, &str); 6] = [
        (|agent| agent.name.clear(), "agent name"),
        (|agent| agent.namespace.clear(), "agent namespace"),
        (|agent| agent.product.clear(), "agent product"),
        (|agent| agent.version.clear(), "agent version"),
        (|agent| agent.mechanisms.clear(), "without a mechanism"),
        (
            |agent| agent.mechanisms[0].version.clear(),
            "mechanism version",
        ),
    ];
    for (spoil, said) in cases {
        let mut spoilt = agent("app-1");
        spoil(&mut spoilt);
        let refused = manager.arrive_as_agent(spoilt).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains(said), "{}", refused.message());
    }
}

#[tokio::test]
async fn clients_below_2_6_are_refused() {
    let fixture = Fixture::start().await;
    let mut manager = fixture.connect().await;
    for version in ["2.5.9", "v1.14.0", "two", "2.6"] {
        let mut old = client("dev");
        old.version = version.into();
        let refused = manager.arrive_as_client(old).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{version}");
    }
    for version in ["2.6.0", "v2.20.2", "2.32.0-rc.1"] {
        let mut new = client("dev");
        new.version = version.into();
        manager.arrive_as_client(new).await.unwrap();
    }
}

#[tokio::test]
async fn unknown_sessions_are_not_found_and_may_depart_all_the_same() {
    let fixture = Fixture::start().await;
    let mut manager = fixture.connect().await;
    let unknown = SessionInfo {
        session_id: "nobody".into(),
        ..SessionInfo::default()
    };
    assert_eq!(
        manager.remain(remain(&unknown)).await.unwrap_err().code(),
        Code::NotFound
    );
    assert_eq!(
        manager
            .watch_intercepts(unknown.clone())
            .await
            .unwrap_err()
            .code(),
        Code::NotFound
    );
    assert_eq!(
        manager
            .watch_dial(unknown.clone())
            .await
            .unwrap_err()
            .code(),
        Code::NotFound
    );
    manager.depart(unknown).await.unwrap();
}

/// Remains often enough, so that one session expires and the other does not.
async fn only_remaining_sessions_stay(mut here: Party, mut silent: Party) {
    let mut watch = silent.intercepts().await;
    watch.next().await;
    let mut dials = silent
        .manager
        .watch_dial(silent.session.clone())
        .await
        .unwrap()
        .into_inner();
    let ended = async {
        assert!(watch.0.message().await.unwrap().is_none());
        assert!(dials.message().await.unwrap().is_none());
    };
    let remaining = async {
        loop {
            here.manager.remain(remain(&here.session)).await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    within_timeout(async {
        tokio::select! { () = ended => {}, () = remaining => {} }
    })
    .await;
    assert_eq!(
        silent
            .manager
            .remain(remain(&silent.session))
            .await
            .unwrap_err()
            .code(),
        Code::NotFound
    );
}

#[tokio::test]
async fn agents_expire_when_they_are_not_heard_of() {
    let fixture = Fixture::with(|settings| {
        settings.agent_ttl = Duration::from_secs(1);
        settings.scan = Duration::from_millis(100);
    })
    .await;
    only_remaining_sessions_stay(fixture.agent("app-1").await, fixture.agent("app-2").await).await;
}

#[tokio::test]
async fn clients_expire_by_their_own_time() {
    let fixture = Fixture::with(|settings| {
        settings.client_ttl = Duration::from_secs(1);
        settings.scan = Duration::from_millis(100);
    })
    .await;
    only_remaining_sessions_stay(fixture.client("one").await, fixture.client("two").await).await;
}

#[tokio::test]
async fn a_new_manager_takes_sessions_and_intercepts_back() {
    let before = Fixture::start().await;
    let (mut agent_there, mut dev) = (before.agent("app-1").await, before.client("dev").await);
    dev.create(spec("one")).await;
    let mut watch = dev.intercepts().await;
    let id = watch.next().await[0].id.clone();
    agent_there
        .review(
            &id,
            traffic_proto::manager::InterceptDispositionType::Active,
            "10.0.0.49",
        )
        .await;
    let active = watch
        .until(traffic_proto::manager::InterceptDispositionType::Active)
        .await;

    let after = Fixture::start().await;
    let mut manager = after.connect().await;
    let request = ReconnectClientRequest {
        session: Some(dev.session.clone()),
        client: Some(client("dev")),
        intercepts: vec![active.clone()],
        agents: vec![],
    };
    manager.reconnect_client(request).await.unwrap();
    let request = ReconnectAgentRequest {
        session: Some(agent_there.session.clone()),
        agent: Some(agent("app-1")),
    };
    manager.reconnect_agent(request).await.unwrap();
    let mut agent_there = Party {
        manager,
        session: agent_there.session.clone(),
    };
    let seen = agent_there.intercepts().await.next().await;
    assert_eq!(
        seen,
        vec![active],
        "the agent sees the intercept as it was, under the ids it had"
    );
}

#[tokio::test]
async fn what_a_new_manager_took_on_trust_does_not_last_without_agents() {
    use traffic_proto::manager::InterceptDispositionType as Disposition;
    let fixture = Fixture::with(|settings| {
        settings.agent_ttl = Duration::from_millis(300);
        settings.scan = Duration::from_millis(50);
    })
    .await;
    let mut manager = fixture.connect().await;
    let session = SessionInfo {
        session_id: "earlier".into(),
        ..SessionInfo::default()
    };
    let mut info = traffic_proto::manager::InterceptInfo {
        spec: Some(spec("one")),
        ..Default::default()
    };
    info.set_disposition(Disposition::Active);
    let request = ReconnectClientRequest {
        session: Some(session.clone()),
        client: Some(client("dev")),
        intercepts: vec![info],
        agents: vec![],
    };
    manager.reconnect_client(request).await.unwrap();
    let mut dev = Party { manager, session };
    let mut watch = dev.intercepts().await;
    assert_eq!(watch.next().await[0].disposition(), Disposition::Active);
    watch.until(Disposition::NoAgent).await;
}

#[tokio::test]
async fn excluded_variables_are_not_handed_on() {
    let fixture = Fixture::with(|settings| settings.excluded_env = vec!["SECRET".into()]).await;
    let mut info = agent("app-1");
    let environment = [("SECRET".into(), "x".into()), ("PLAIN".into(), "y".into())].into();
    info.containers.insert(
        "app".into(),
        ContainerInfo {
            environment,
            ..ContainerInfo::default()
        },
    );
    fixture.arrive(info).await;
    let mut dev = fixture.client("dev").await;
    let mut agents = dev
        .manager
        .watch_agents(dev.session.clone())
        .await
        .unwrap()
        .into_inner();
    let seen = within_timeout(agents.message())
        .await
        .unwrap()
        .unwrap()
        .agents;
    let names: Vec<_> = seen[0].containers["app"]
        .environment
        .keys()
        .cloned()
        .collect();
    assert_eq!(names, ["PLAIN"]);
    assert_eq!(seen[0].mechanisms, [mechanism("tcp"), mechanism("http")]);
}
