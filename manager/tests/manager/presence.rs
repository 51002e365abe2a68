//! Clients that go away without a word, and come back, or do not.

use std::time::{Duration, Instant};

use traffic_proto::manager::{
    ClientInfo, InterceptDispositionType as Disposition, InterceptInfo, ReconnectClientRequest,
    RemainRequest, SessionInfo, TunnelMetrics,
};

use crate::fixture::{Fixture, Intercepts, Party, client, spec, within_timeout};

/// Time for which the next run waits for an earlier one that seems to be there.
const VANISH_TIMEOUT: Duration = Duration::from_secs(11);

/// A client whose program keeps its watches open as long as it lives.
async fn own_client(fixture: &Fixture) -> Party {
    let mut manager = fixture.connect().await;
    let info = ClientInfo {
        keeps_watches: true,
        ..client("dev@laptop")
    };
    let session = manager.arrive_as_client(info).await.unwrap().into_inner();
    Party { manager, session }
}

/// An active intercept, with the agent's watch of it and the client's.
async fn active(agent: &mut Party, dev: &mut Party) -> (Intercepts, Intercepts) {
    let (mut seen, mut own) = (agent.intercepts().await, dev.intercepts().await);
    let info = dev.create(spec("mine")).await;
    agent
        .review(&info.id, Disposition::Active, "10.0.0.49")
        .await;
    seen.until(Disposition::Active).await;
    own.until(Disposition::Active).await;
    (seen, own)
}

#[tokio::test]
async fn a_client_without_watches_is_suspended_within_seconds_and_resumed_when_it_is_back() {
    let fixture = Fixture::start().await;
    let (mut agent, mut dev) = (
        fixture.agent("app-1").await,
        fixture.client("dev@laptop").await,
    );
    let (mut seen, own) = active(&mut agent, &mut dev).await;
    let left = Instant::now();
    drop(own);
    let suspended = seen.until(Disposition::Waiting).await;
    assert!(left.elapsed() < Duration::from_secs(10));
    let message = suspended.message;
    assert!(
        message.starts_with("suspended: dev@laptop has been away since "),
        "{message}"
    );
    // A review of what is only suspended changes nothing.
    agent
        .review(&suspended.id, Disposition::AgentError, "10.0.0.49")
        .await;
    let mut own = dev.intercepts().await;
    let resumed = own.until(Disposition::Active).await;
    assert_eq!(
        (resumed.message.as_str(), resumed.pod_ip.as_str()),
        ("", "10.0.0.49")
    );
    seen.until(Disposition::Active).await;
}

#[tokio::test]
async fn a_client_that_reconnects_at_once_is_not_suspended() {
    let fixture = Fixture::start().await;
    let (mut agent, mut dev) = (
        fixture.agent("app-1").await,
        fixture.client("dev@laptop").await,
    );
    let (mut seen, own) = active(&mut agent, &mut dev).await;
    drop(own);
    let _own = dev.intercepts().await;
    let changed = tokio::time::timeout(Duration::from_secs(7), seen.0.message()).await;
    assert!(changed.is_err(), "{changed:?}");
}

#[tokio::test]
async fn who_keeps_watches_is_gone_after_the_grace_and_others_live_as_long_as_their_session() {
    let fixture = Fixture::with(|settings| settings.client_grace = Duration::from_secs(6)).await;
    let mut agent = fixture.agent("app-1").await;
    let mut dev = own_client(&fixture).await;
    let (mut seen, own) = active(&mut agent, &mut dev).await;
    drop(own);
    seen.until(Disposition::Waiting).await;
    assert!(seen.next().await.is_empty());
    let remain = RemainRequest {
        session: Some(dev.session.clone()),
        ..RemainRequest::default()
    };
    assert!(dev.manager.remain(remain).await.is_err());

    let mut stock = fixture.client("other@laptop").await;
    let (mut seen, own) = active(&mut agent, &mut stock).await;
    drop(own);
    seen.until(Disposition::Waiting).await;
    let changed = tokio::time::timeout(Duration::from_secs(3), seen.0.message()).await;
    assert!(changed.is_err(), "{changed:?}");
}

/// A client that was killed right after it had come back to a manager that had been restarted.
#[tokio::test]
async fn a_client_that_is_back_and_watches_nothing_is_away() {
    let fixture = Fixture::start().await;
    let mut agent = fixture.agent("app-1").await;
    let mut manager = fixture.connect().await;
    let session = SessionInfo {
        session_id: "earlier".into(),
        ..SessionInfo::default()
    };
    let mut info = InterceptInfo {
        id: "earlier:mine".into(),
        spec: Some(spec("mine")),
        client_session: Some(session.clone()),
        ..InterceptInfo::default()
    };
    info.set_disposition(Disposition::Active);
    let request = ReconnectClientRequest {
        session: Some(session),
        client: Some(client("dev@laptop")),
        intercepts: vec![info],
        agents: vec![],
    };
    manager.reconnect_client(request).await.unwrap();
    let mut seen = agent.intercepts().await;
    let suspended = seen.until(Disposition::Waiting).await;
    assert!(
        suspended.message.starts_with("suspended: "),
        "{suspended:?}"
    );
    let mut again = fixture.client("dev@laptop").await;
    let began = Instant::now();
    let next = again.create(spec("mine")).await;
    assert!(began.elapsed() < VANISH_TIMEOUT, "it was waited for");
    assert_eq!(seen_ids(&mut agent).await, [next.id]);
}

#[tokio::test]
async fn the_same_users_next_run_takes_the_place_of_one_that_is_gone_and_of_no_other() {
    let fixture = Fixture::start().await;
    let (mut agent, mut dev) = (
        fixture.agent("app-1").await,
        fixture.client("dev@laptop").await,
    );
    let (mut seen, own) = active(&mut agent, &mut dev).await;
    // While it gives signs of life, the new one has to be told apart by the agent.
    let mut again = fixture.client("dev@laptop").await;
    let heartbeat = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let remain = RemainRequest {
            session: Some(dev.session.clone()),
            ..RemainRequest::default()
        };
        dev.manager.remain(remain).await.unwrap();
    };
    let began = Instant::now();
    let (first, ()) = tokio::join!(again.create(spec("mine")), heartbeat);
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "it is not waited for"
    );
    assert_eq!(seen.next().await.len(), 2);
    again.manager.depart(again.session.clone()).await.unwrap();
    assert_eq!(seen.next().await.len(), 1);
    // The next one comes before the manager knows that the earlier one is gone.
    let mut again = fixture.client("dev@laptop").await;
    let end = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        drop(own);
    };
    let (second, ()) =
        within_timeout(async { tokio::join!(again.create(spec("mine")), end) }).await;
    assert_ne!(first.id, second.id);
    let now = seen_ids(&mut agent).await;
    assert_eq!(now, [second.id]);
}

async fn seen_ids(agent: &mut Party) -> Vec<String> {
    let shown = agent.intercepts().await.next().await;
    shown.into_iter().map(|info| info.id).collect()
}

#[tokio::test]
async fn requests_that_went_to_the_app_are_told_to_the_owner_until_that_is_over() {
    let fixture = Fixture::start().await;
    let (mut agent, mut dev) = (
        fixture.agent("app-1").await,
        fixture.client("dev@laptop").await,
    );
    let (_seen, mut own) = active(&mut agent, &mut dev).await;
    let id = format!("{}:mine", dev.id());
    let report = |failed_open, failure: &str| TunnelMetrics {
        intercept_id: id.clone(),
        failed_open,
        failure: failure.to_owned(),
        ..TunnelMetrics::default()
    };
    for (report, want) in [
        (
            report(1, "nothing listens on 127.0.0.1:3000"),
            "nothing listens on 127.0.0.1:3000; 1 request went to the app",
        ),
        (
            report(3, "nothing listens on 127.0.0.1:3000"),
            "nothing listens on 127.0.0.1:3000; 3 requests went to the app",
        ),
        (report(3, ""), ""),
    ] {
        agent.manager.report_metrics(report).await.unwrap();
        assert_eq!(own.until(Disposition::Active).await.message, want);
    }
}

#[tokio::test]
async fn one_that_is_back_is_reviewed_anew_if_another_was_accepted_meanwhile() {
    let fixture = Fixture::start().await;
    let (mut agent, mut dev) = (
        fixture.agent("app-1").await,
        fixture.client("dev@laptop").await,
    );
    let (mut seen, own) = active(&mut agent, &mut dev).await;
    drop(own);
    seen.until(Disposition::Waiting).await;
    let mut second = fixture.client("second").await;
    let id = second.create(spec("theirs")).await.id;
    agent.review(&id, Disposition::Active, "10.0.0.49").await;
    let mut own = dev.intercepts().await;
    let back = own.until(Disposition::Waiting).await;
    assert_eq!(back.message, "");
    agent
        .review(&back.id, Disposition::AgentError, "10.0.0.49")
        .await;
    own.until(Disposition::AgentError).await;
}
