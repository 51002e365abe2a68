//! The dispositions of intercepts, from creation to removal.

use tonic::Code;
use traffic_proto::manager::{
    AgentInfo, CreateInterceptRequest, EnsureAgentRequest, GetInterceptRequest,
    InterceptDispositionType as Disposition, InterceptSpec, RemoveInterceptRequest2,
    ReviewInterceptRequest,
};

use crate::fixture::{Fixture, Spoil, agent, mechanism, spec};

#[tokio::test]
async fn an_intercept_waits_becomes_active_and_is_removed() {
    let fixture = Fixture::with(|settings| settings.excluded_env = vec!["SECRET".into()]).await;
    let (mut agent, mut dev) = (fixture.agent("app-1").await, fixture.client("dev").await);
    let created = dev.create(spec("one")).await;
    assert_eq!(created.id, format!("{}:one", dev.id()));
    assert_eq!(created.disposition(), Disposition::Waiting);
    assert_eq!(created.client_session.as_ref(), Some(&dev.session));
    let kept = created.spec.unwrap();
    assert_eq!(
        (kept.header_filters, kept.path_filters),
        (spec("x").header_filters, spec("x").path_filters)
    );

    let mut seen_by_agent = agent.intercepts().await;
    assert_eq!(
        seen_by_agent.next().await[0].disposition(),
        Disposition::Waiting
    );
    agent
        .review(&created.id, Disposition::Active, "10.0.0.49")
        .await;
    let active = seen_by_agent.until(Disposition::Active).await;
    assert_eq!(
        (active.pod_name.as_str(), active.pod_ip.as_str()),
        ("app-1", "10.0.0.49")
    );
    assert_eq!(
        active.environment.keys().collect::<Vec<_>>(),
        ["A"],
        "excluded variables are left out"
    );
    assert_eq!(dev.intercepts().await.next().await, vec![active]);

    let request = RemoveInterceptRequest2 {
        session: Some(dev.session.clone()),
        name: "one".into(),
    };
    dev.manager.remove_intercept(request.clone()).await.unwrap();
    assert!(seen_by_agent.next().await.is_empty());
    assert_eq!(
        dev.manager
            .remove_intercept(request)
            .await
            .unwrap_err()
            .code(),
        Code::NotFound
    );
}

#[tokio::test]
async fn only_the_first_review_counts() {
    let fixture = Fixture::start().await;
    let (mut one, mut two) = (fixture.agent("app-1").await, fixture.agent("app-2").await);
    let mut dev = fixture.client("dev").await;
    let id = dev.create(spec("one")).await.id;
    let mut watch = dev.intercepts().await;
    one.review(&id, Disposition::Active, "10.0.0.49").await;
    two.review(&id, Disposition::AgentError, "10.0.0.50").await;
    let info = watch.until(Disposition::Active).await;
    assert_eq!(info.pod_name, "app-1");
    let again = dev.intercepts().await.next().await;
    assert_eq!(again, vec![info]);
}

#[tokio::test]
async fn reviews_of_strangers_change_nothing() {
    let fixture = Fixture::start().await;
    let mut agent_there = fixture.agent("app-1").await;
    let mut stranger = fixture
        .arrive(AgentInfo {
            name: "other".into(),
            ..agent("other-1")
        })
        .await;
    let mut dev = fixture.client("dev").await;
    let id = dev.create(spec("one")).await.id;
    stranger.review(&id, Disposition::Active, "10.0.0.9").await;
    stranger.depart().await;
    stranger
        .review("no such intercept", Disposition::Active, "")
        .await;
    assert_eq!(
        dev.intercepts().await.next().await[0].disposition(),
        Disposition::Waiting
    );
    let request = ReviewInterceptRequest {
        session: Some(agent_there.session.clone()),
        id: "no such intercept".into(),
        ..ReviewInterceptRequest::default()
    };
    assert_eq!(
        agent_there
            .manager
            .review_intercept(request)
            .await
            .unwrap_err()
            .code(),
        Code::NotFound
    );
}

#[tokio::test]
async fn without_an_agent_there_is_no_agent_until_one_comes() {
    let fixture = Fixture::start().await;
    let mut dev = fixture.client("dev").await;
    let info = dev.create(spec("one")).await;
    assert_eq!(info.disposition(), Disposition::NoAgent);
    assert!(
        info.message.contains("\"app\"") && info.message.contains("\"default\""),
        "{}",
        info.message
    );
    let mut watch = dev.intercepts().await;
    let mut agent = fixture.agent("app-1").await;
    watch.until(Disposition::Waiting).await;
    agent.depart().await;
    watch.until(Disposition::NoAgent).await;
}

#[tokio::test]
async fn agents_in_other_namespaces_do_not_count() {
    let fixture = Fixture::start().await;
    fixture
        .arrive(AgentInfo {
            namespace: "elsewhere".into(),
            ..agent("app-1")
        })
        .await;
    let mut dev = fixture.client("dev").await;
    assert_eq!(
        dev.create(spec("one")).await.disposition(),
        Disposition::NoAgent
    );
}

#[tokio::test]
async fn replicas_that_differ_are_no_agent_until_they_agree() {
    let fixture = Fixture::start().await;
    let mut old = fixture.agent("app-1").await;
    let mut dev = fixture.client("dev").await;
    let id = dev.create(spec("one")).await.id;
    let mut watch = dev.intercepts().await;
    old.review(&id, Disposition::Active, "10.0.0.49").await;
    watch.until(Disposition::Active).await;
    fixture
        .arrive(AgentInfo {
            version: "v1.0.1".into(),
            ..agent("app-2")
        })
        .await;
    let info = watch.until(Disposition::NoAgent).await;
    assert!(
        info.message.contains("not consistent") && info.message.contains("app-2"),
        "{}",
        info.message
    );
    old.depart().await;
    watch.until(Disposition::Waiting).await;
}

#[tokio::test]
async fn a_mechanism_the_agent_lacks_is_no_mechanism() {
    let fixture = Fixture::start().await;
    let only_tcp = |pod: &str| AgentInfo {
        mechanisms: vec![mechanism("tcp")],
        ..agent(pod)
    };
    fixture.arrive(only_tcp("app-1")).await;
    let mut dev = fixture.client("dev").await;
    let info = dev.create(spec("one")).await;
    assert_eq!(info.disposition(), Disposition::NoMechanism);
    assert!(
        info.message.contains("\"http\"") && info.message.contains("tcp"),
        "{}",
        info.message
    );
}

#[tokio::test]
async fn a_doubled_mechanism_is_not_consistent() {
    let fixture = Fixture::start().await;
    fixture
        .arrive(AgentInfo {
            mechanisms: vec![mechanism("http"), mechanism("http")],
            ..agent("app-1")
        })
        .await;
    let mut dev = fixture.client("dev").await;
    assert_eq!(
        dev.create(spec("one")).await.disposition(),
        Disposition::NoAgent
    );
}

#[tokio::test]
async fn when_the_reviewing_agent_leaves_another_reviews() {
    let fixture = Fixture::start().await;
    let (mut one, mut two) = (fixture.agent("app-1").await, fixture.agent("app-2").await);
    let mut dev = fixture.client("dev").await;
    let id = dev.create(spec("one")).await.id;
    let mut watch = dev.intercepts().await;
    one.review(&id, Disposition::Active, "10.0.0.49").await;
    watch.until(Disposition::Active).await;
    one.depart().await;
    watch.until(Disposition::Waiting).await;
    two.review(&id, Disposition::Active, "10.0.0.50").await;
    assert_eq!(watch.until(Disposition::Active).await.pod_name, "app-2");
}

#[tokio::test]
async fn an_intercept_survives_the_departure_of_an_agent_that_did_not_review_it() {
    let fixture = Fixture::start().await;
    let (mut one, mut two) = (fixture.agent("app-1").await, fixture.agent("app-2").await);
    let mut dev = fixture.client("dev").await;
    let id = dev.create(spec("one")).await.id;
    let mut watch = dev.intercepts().await;
    one.review(&id, Disposition::Active, "10.0.0.49").await;
    let active = watch.until(Disposition::Active).await;
    two.depart().await;
    // Departing has been answered, so whatever it changes is changed.
    assert_eq!(dev.intercepts().await.next().await, vec![active]);
}

#[tokio::test]
async fn a_departing_client_takes_its_intercepts_along() {
    let fixture = Fixture::start().await;
    let (mut agent, mut dev, mut other) = (
        fixture.agent("app-1").await,
        fixture.client("dev").await,
        fixture.client("other").await,
    );
    dev.create(spec("one")).await;
    let kept = other.create(spec("one")).await;
    let mut seen = agent.intercepts().await;
    assert_eq!(
        seen.next().await.len(),
        2,
        "names are unique for each client only"
    );
    dev.depart().await;
    assert_eq!(seen.next().await, vec![kept]);
}

#[tokio::test]
async fn an_intercept_in_error_stays_so() {
    let fixture = Fixture::start().await;
    let (mut agent, mut dev) = (fixture.agent("app-1").await, fixture.client("dev").await);
    let id = dev.create(spec("one")).await.id;
    let mut watch = dev.intercepts().await;
    agent.review(&id, Disposition::AgentError, "").await;
    watch.until(Disposition::AgentError).await;
    agent.review(&id, Disposition::Active, "10.0.0.49").await;
    fixture.agent("app-2").await;
    assert_eq!(
        dev.intercepts().await.next().await[0].disposition(),
        Disposition::AgentError
    );
}

#[tokio::test]
async fn mistakes_in_a_spec_are_named() {
    let fixture = Fixture::start().await;
    fixture.agent("app-1").await;
    let mut dev = fixture.client("dev").await;
    let cases: [(Spoil<InterceptSpec>, &str); 6] = [
        (|spec| spec.name.clear(), "name"),
        (|spec| spec.agent.clear(), "agent"),
        (|spec| spec.namespace.clear(), "namespace"),
        (|spec| spec.mechanism.clear(), "mechanism"),
        (|spec| spec.target_host.clear(), "target_host"),
        (|spec| spec.target_port = 0, "target_port"),
    ];
    for (spoil, said) in cases {
        let mut spoilt = spec("one");
        spoil(&mut spoilt);
        let request = dev.create_request(spoilt);
        let refused = dev.manager.create_intercept(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains(said), "{}", refused.message());
    }
    dev.create(spec("one")).await;
    let request = dev.create_request(spec("one"));
    assert_eq!(
        dev.manager
            .create_intercept(request)
            .await
            .unwrap_err()
            .code(),
        Code::AlreadyExists
    );
    let request = CreateInterceptRequest {
        intercept_spec: Some(spec("two")),
        ..CreateInterceptRequest::default()
    };
    assert_eq!(
        dev.manager
            .create_intercept(request)
            .await
            .unwrap_err()
            .code(),
        Code::NotFound
    );
}

#[tokio::test]
async fn intercepts_are_found_by_name_or_id() {
    let fixture = Fixture::start().await;
    fixture.agent("app-1").await;
    let mut dev = fixture.client("dev").await;
    let info = dev.create(spec("one")).await;
    for name in ["one", &info.id] {
        let request = GetInterceptRequest {
            session: Some(dev.session.clone()),
            name: name.into(),
        };
        assert_eq!(
            dev.manager
                .get_intercept(request)
                .await
                .unwrap()
                .into_inner(),
            info
        );
    }
    let request = GetInterceptRequest {
        session: Some(dev.session.clone()),
        name: "two".into(),
    };
    assert_eq!(
        dev.manager.get_intercept(request).await.unwrap_err().code(),
        Code::NotFound
    );
}

#[tokio::test]
async fn preparing_resolves_a_numeric_port_and_says_what_is_wrong() {
    let fixture = Fixture::start().await;
    let mut dev = fixture.client("dev").await;
    let request = dev.create_request(spec("one"));
    let prepared = dev
        .manager
        .prepare_intercept(request.clone())
        .await
        .unwrap()
        .into_inner();
    assert!(
        prepared.error.contains("no agent") && prepared.error_category == 1,
        "{prepared:?}"
    );
    fixture.agent("app-1").await;
    let prepared = dev
        .manager
        .prepare_intercept(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (
            prepared.error.as_str(),
            prepared.container_port,
            prepared.protocol.as_str()
        ),
        // The agent knows whether its port is TCP, UDP or both.
        ("", 80, "")
    );
    let request = dev.create_request(InterceptSpec {
        port_identifier: "80/TCP".into(),
        ..spec("one")
    });
    let named = dev.manager.prepare_intercept(request).await.unwrap();
    assert_eq!(named.into_inner().protocol, "TCP");
    assert_eq!(prepared.workload_kind, "Deployment");
    for (port_identifier, mechanism, said) in [
        ("80/SCTP", "http", "/TCP or /UDP"),
        ("80", "quic", "\"quic\""),
    ] {
        let spec = InterceptSpec {
            port_identifier: port_identifier.into(),
            mechanism: mechanism.into(),
            ..spec("one")
        };
        let request = dev.create_request(spec);
        let prepared = dev
            .manager
            .prepare_intercept(request)
            .await
            .unwrap()
            .into_inner();
        assert!(prepared.error.contains(said), "{prepared:?}");
    }
}

#[tokio::test]
async fn preparing_waits_for_the_agent_to_arrive() {
    let fixture =
        Fixture::with(|settings| settings.agent_arrival = crate::fixture::WAIT_TIMEOUT).await;
    let mut dev = fixture.client("dev").await;
    let mut asking = dev.manager.clone();
    let request = EnsureAgentRequest {
        session: Some(dev.session.clone()),
        name: "app".into(),
        ..Default::default()
    };
    let (ensured, prepared, _) = tokio::join!(
        asking.ensure_agent(request),
        {
            let request = dev.create_request(spec("one"));
            dev.manager.prepare_intercept(request)
        },
        fixture.agent("app-1")
    );
    assert_eq!(ensured.unwrap().into_inner().agents, vec![agent("app-1")]);
    assert_eq!(prepared.unwrap().into_inner().error, "");
}
