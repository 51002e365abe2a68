//! Sessions that have keys: nobody else acts for them, whatever he knows.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{Binary, MetadataValue};
use tonic::{Code, Request, Response, Status};
use traffic_proto::manager::{
    AgentsRequest, CreateInterceptRequest, DnsRequest, EnsureAgentRequest, GetInterceptRequest,
    ReconnectAgentRequest, ReconnectClientRequest, RemainRequest, RemoveInterceptRequest2,
    ReviewInterceptRequest, SessionInfo, TunnelMessage, TunnelMetrics, UninstallAgentsRequest,
    WorkloadEventsRequest,
};
use traffic_proto::session_key::{KEY, PROOF, Peer, SessionKey};
use traffic_proto::tunnel::{Message, StreamInfo};
use traffic_proto::{ConnId, Transport};

use crate::fixture::{Client, Fixture, agent, client, spec, within_timeout};

type Proof = Option<MetadataValue<Binary>>;

fn with<T>(proof: &Proof, message: T) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(proof) = proof.clone() {
        request.metadata_mut().insert_bin(PROOF, proof);
    }
    request
}

fn bytes(proof: impl AsRef<[u8]>) -> Proof {
    Some(MetadataValue::from_bytes(proof.as_ref()))
}

fn own(key: &SessionKey) -> Proof {
    Some(key.metadata(&Peer::manager()))
}

fn session(id: &str) -> SessionInfo {
    SessionInfo {
        session_id: id.to_owned(),
        ..SessionInfo::default()
    }
}

/// A client arrives and announces a public half.
async fn arrive(manager: &mut Client, public: &[u8], proof: &Proof) -> Result<String, Status> {
    let mut request = with(proof, client("dev@laptop"));
    let public = MetadataValue::from_bytes(public);
    request.metadata_mut().insert_bin(KEY, public);
    let arrived = manager.arrive_as_client(request).await;
    arrived.map(|session| session.into_inner().session_id)
}

/// A client with a session of its own key.
async fn begun(manager: &mut Client) -> SessionKey {
    let key = SessionKey::generate().unwrap();
    let id = arrive(manager, key.public(), &own(&key)).await.unwrap();
    assert_eq!(id, key.id());
    key
}

/// Opens a tunnel as a client's; resolves with its first answer.
async fn tunnel(manager: &mut Client, id: &str, proof: &Proof) -> Result<(), Status> {
    let (tx, rx) = mpsc::channel(4);
    let destination = ([127, 0, 0, 1], 1).into();
    let conn = ConnId::new(Transport::Tcp, ([10, 9, 8, 7], 6543).into(), destination);
    let info = StreamInfo::new(conn, id, Duration::ZERO, Duration::from_secs(1));
    let payload = Message::StreamInfo(info).encode();
    tx.send(TunnelMessage { payload }).await.unwrap();
    let request = with(proof, ReceiverStream::new(rx));
    let mut answers = manager.tunnel(request).await?.into_inner();
    within_timeout(answers.message()).await.map(drop)
}

/// Makes each call that acts for a session, but for the one that only asks when it comes without a
/// proof; returns what came of them.
async fn all_calls(
    manager: &mut Client,
    id: &str,
    proof: &Proof,
) -> Vec<(&'static str, Result<(), Status>)> {
    let mut done = Vec::new();
    macro_rules! call {
        ($name:ident($message:expr)) => {
            let made = manager.$name(with(proof, $message)).await;
            done.push((stringify!($name), made.map(drop as fn(Response<_>))));
        };
    }
    let own = session(id);
    let some = Some(own.clone());
    call!(watch_agent_pods(own.clone()));
    call!(watch_agent_pods_delta(own.clone()));
    call!(watch_agents(own.clone()));
    call!(watch_agents_delta(own.clone()));
    call!(watch_agents_ns(AgentsRequest {
        session: some.clone(),
        ..AgentsRequest::default()
    }));
    call!(watch_intercepts(own.clone()));
    call!(watch_intercepts_delta(own.clone()));
    call!(watch_workloads(WorkloadEventsRequest {
        session_info: some.clone(),
        ..WorkloadEventsRequest::default()
    }));
    call!(watch_cluster_info(own.clone()));
    call!(watch_lookup_dns(own.clone()));
    call!(watch_dial(own.clone()));
    call!(get_intercept(GetInterceptRequest {
        session: some.clone(),
        name: "mine".to_owned(),
    }));
    let create = CreateInterceptRequest {
        session: some.clone(),
        intercept_spec: Some(spec("another")),
        ..CreateInterceptRequest::default()
    };
    call!(prepare_intercept(create.clone()));
    call!(create_intercept(create));
    call!(ensure_agent(EnsureAgentRequest {
        session: some.clone(),
        name: "app".to_owned(),
        ..EnsureAgentRequest::default()
    }));
    call!(lookup_dns(DnsRequest {
        session: some.clone(),
        name: "app.".to_owned(),
        ..DnsRequest::default()
    }));
    done.push(("tunnel", tunnel(manager, id, proof).await));
    call!(reconnect_client(ReconnectClientRequest {
        session: some.clone(),
        client: Some(client("dev@laptop")),
        ..ReconnectClientRequest::default()
    }));
    if proof.is_some() {
        call!(remain(RemainRequest {
            session: some.clone(),
            ..RemainRequest::default()
        }));
    }
    call!(remove_intercept(RemoveInterceptRequest2 {
        session: some,
        name: "another".to_owned(),
    }));
    call!(depart(own));
    done
}

#[tokio::test]
async fn every_call_for_a_session_with_a_key_needs_its_proof() {
    let fixture = Fixture::start().await;
    let _agent = fixture.agent("app-1").await;
    let mut manager = fixture.connect().await;
    let key = begun(&mut manager).await;
    let other = begun(&mut manager).await;
    let (id, proof) = (key.id(), own(&key));
    // Neither side of it may be taken for away.
    let watch = manager.watch_dial(with(&proof, session(id))).await.unwrap();
    let create = CreateInterceptRequest {
        session: Some(session(id)),
        intercept_spec: Some(spec("mine")),
        ..CreateInterceptRequest::default()
    };
    let created = manager.create_intercept(with(&proof, create)).await;
    assert_eq!(created.unwrap().into_inner().id, format!("{id}:mine"));

    let good = key.prove(&Peer::manager());
    let rows = [
        ("no proof", id, None),
        ("an empty one", id, bytes([])),
        ("half of it", id, bytes(&good[..32])),
        ("more behind it", id, bytes([&good[..], b"+"].concat())),
        ("zeros", id, bytes([0; 64])),
        ("kilobytes", id, bytes([7; 4096])),
        ("another session's", id, own(&other)),
        (
            "one for an agent",
            id,
            bytes(key.prove(&Peer::agent(&[1; 32]))),
        ),
    ];
    for (what, id, proof) in &rows {
        for (call, made) in all_calls(&mut manager, id, proof).await {
            let refused = made.expect_err(&format!("{call} with {what}"));
            let codes = [Code::Unauthenticated, Code::PermissionDenied];
            assert!(codes.contains(&refused.code()), "{call}, {what}: {refused}");
            assert!(
                refused.message().contains("has a key"),
                "{call}, {what}: {refused}"
            );
        }
    }
    // One to leave is for that alone.
    let leave = Some(key.metadata(&Peer::manager_to_leave()));
    for (call, made) in all_calls(&mut manager, id, &leave).await {
        let code = made.expect_err(call).code();
        let is_leave = call == "remove_intercept";
        let wanted = if is_leave {
            Code::NotFound
        } else {
            Code::PermissionDenied
        };
        assert_eq!(code, wanted, "{call}");
    }
    let remove = RemoveInterceptRequest2 {
        session: Some(session(id)),
        name: "mine".to_owned(),
    };
    // All is as before, and with the proof all of it is done.
    let get = GetInterceptRequest {
        session: Some(session(id)),
        name: "mine".to_owned(),
    };
    manager.get_intercept(with(&proof, get)).await.unwrap();
    manager
        .remove_intercept(with(&leave, remove))
        .await
        .unwrap();
    for (call, made) in all_calls(&mut manager, id, &proof).await {
        match made {
            Ok(()) => {}
            // There is no such intercept any more, and only agents look names up.
            Err(status) => assert_eq!(
                (call, status.code()),
                ("get_intercept", Code::NotFound),
                "{status}"
            ),
        }
    }
    drop(watch);
}

#[tokio::test]
async fn an_id_is_given_to_the_one_who_has_its_key() {
    let fixture = Fixture::start().await;
    let mut manager = fixture.connect().await;
    let key = begun(&mut manager).await;
    let (new, other) = (
        SessionKey::generate().unwrap(),
        SessionKey::generate().unwrap(),
    );
    let flipped = {
        let mut proof = new.prove(&Peer::manager());
        proof[3] ^= 1;
        proof
    };
    for (what, public, proof, code) in [
        ("no proof", new.public(), None, Code::Unauthenticated),
        (
            "another key's proof",
            new.public(),
            own(&other),
            Code::PermissionDenied,
        ),
        (
            "one bit off",
            new.public(),
            bytes(flipped),
            Code::PermissionDenied,
        ),
        (
            "a key that is in use, which the attacker saw",
            key.public(),
            own(&other),
            Code::PermissionDenied,
        ),
        (
            "its own key again",
            key.public(),
            own(&key),
            Code::AlreadyExists,
        ),
        (
            "half a key",
            &new.public()[..16],
            own(&new),
            Code::InvalidArgument,
        ),
        ("no key", &[], own(&new), Code::InvalidArgument),
        (
            "kilobytes of key",
            &[1; 4096],
            own(&new),
            Code::InvalidArgument,
        ),
    ] {
        let refused = arrive(&mut manager, public, &proof).await.unwrap_err();
        assert_eq!(refused.code(), code, "{what}: {refused}");
    }
    // Who announces no key has an id as ever, whatever he proves.
    let request = with(&own(&new), client("dev@desk"));
    let arrived = manager.arrive_as_client(request).await.unwrap();
    let id = arrived.into_inner().session_id;
    assert!(!id.starts_with("key-"), "{id}");
    manager.depart(session(&id)).await.unwrap();
}

#[tokio::test]
async fn sessions_with_keys_come_back_at_another_manager_by_their_proof_alone() {
    let (before, after) = (Fixture::start().await, Fixture::start().await);
    let key = begun(&mut before.connect().await).await;
    let mut manager = after.connect().await;
    let request = || ReconnectClientRequest {
        session: Some(session(key.id())),
        client: Some(client("dev@laptop")),
        ..ReconnectClientRequest::default()
    };
    let stolen = SessionKey::generate().unwrap();
    for (proof, code) in [
        (None, Code::Unauthenticated),
        (own(&stolen), Code::PermissionDenied),
    ] {
        let back = manager.reconnect_client(with(&proof, request())).await;
        assert_eq!(back.unwrap_err().code(), code);
    }
    // Nor may an agent take its place.
    let as_agent = ReconnectAgentRequest {
        session: Some(session(key.id())),
        agent: Some(agent("app-1")),
    };
    let back = manager.reconnect_agent(as_agent).await;
    assert_eq!(back.unwrap_err().code(), Code::Unauthenticated);
    let back = manager.reconnect_client(with(&own(&key), request())).await;
    back.unwrap();
    let dials = manager
        .watch_dial(with(&own(&key), session(key.id())))
        .await;
    dials.unwrap();
}

#[tokio::test]
async fn agents_name_sessions_with_keys_and_speak_for_themselves_alone() {
    let fixture = Fixture::start().await;
    let mut agent = fixture.agent("app-1").await;
    let mut manager = fixture.connect().await;
    let key = begun(&mut manager).await;
    let proof = own(&key);
    let watch = manager.watch_dial(with(&proof, session(key.id()))).await;
    let mut dials = watch.unwrap().into_inner();
    // Whether it is there.
    let remain = |id: &str| RemainRequest {
        session: Some(session(id)),
        ..RemainRequest::default()
    };
    agent.manager.remain(remain(key.id())).await.unwrap();
    let gone = SessionKey::generate().unwrap();
    let unknown = agent.manager.remain(remain(gone.id())).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    // A tunnel to it.
    let (tx, rx) = mpsc::channel(4);
    let destination = ([127, 0, 0, 1], 1).into();
    let conn = ConnId::new(Transport::Tcp, ([10, 9, 8, 7], 6543).into(), destination);
    let wait = Duration::from_secs(20);
    let info = StreamInfo::new(conn, agent.id(), wait, wait);
    for message in [
        Message::StreamInfo(info),
        Message::Session(key.id().to_owned()),
    ] {
        let payload = message.encode();
        tx.send(TunnelMessage { payload }).await.unwrap();
    }
    let opened = agent.manager.tunnel(ReceiverStream::new(rx)).await.unwrap();
    let asked = within_timeout(dials.message()).await.unwrap().unwrap();
    assert_eq!(ConnId::parse(&asked.conn_id).unwrap(), conn);
    let mut first = opened.into_inner();
    within_timeout(first.message()).await.unwrap().unwrap();
    // Who is not the client does not get the other end of it.
    let refused = tunnel(&mut agent.manager, key.id(), &None).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unauthenticated);
    // Reports and reviews name agents' sessions, and a client's is none.
    let report = TunnelMetrics {
        agent_session_id: key.id().to_owned(),
        ..TunnelMetrics::default()
    };
    let refused = agent.manager.report_metrics(report).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let review = ReviewInterceptRequest {
        session: Some(session(key.id())),
        ..ReviewInterceptRequest::default()
    };
    let refused = agent.manager.review_intercept(review).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let report = TunnelMetrics {
        client_session_id: key.id().to_owned(),
        ..TunnelMetrics::default()
    };
    agent.manager.report_metrics(report).await.unwrap();
}

#[tokio::test]
async fn a_question_keeps_no_session_alive() {
    let fixture = Fixture::with(|settings| {
        settings.client_ttl = Duration::from_millis(300);
        settings.scan = Duration::from_millis(50);
    })
    .await;
    let mut manager = fixture.connect().await;
    let key = begun(&mut manager).await;
    let remain = || RemainRequest {
        session: Some(session(key.id())),
        ..RemainRequest::default()
    };
    let asking = async {
        loop {
            match manager.remain(remain()).await {
                Ok(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(status) => return status.code(),
            }
        }
    };
    assert_eq!(within_timeout(asking).await, Code::NotFound);
}

#[tokio::test]
async fn intercepts_of_a_client_that_is_away_are_removed_without_its_key() {
    let fixture = Fixture::start().await;
    let _agent = fixture.agent("app-1").await;
    let (mut own_way, mut manager) = (fixture.connect().await, fixture.connect().await);
    let key = begun(&mut own_way).await;
    let proof = own(&key);
    let mine = Some(session(key.id()));
    let create = CreateInterceptRequest {
        session: mine.clone(),
        intercept_spec: Some(spec("mine")),
        ..CreateInterceptRequest::default()
    };
    let watch = own_way.watch_dial(with(&proof, session(key.id()))).await;
    own_way
        .create_intercept(with(&proof, create))
        .await
        .unwrap();
    let remove = || RemoveInterceptRequest2 {
        session: mine.clone(),
        name: "mine".to_owned(),
    };
    let refused = manager.remove_intercept(remove()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("intercept leave"), "{refused}");
    // It was killed.
    drop((watch, own_way));
    let removing = async {
        while let Err(status) = manager.remove_intercept(remove()).await {
            assert_eq!(status.code(), Code::PermissionDenied, "{status}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within_timeout(removing).await;
}

#[tokio::test]
async fn agents_are_taken_out_for_the_one_who_asks() {
    let fixture = Fixture::start().await;
    let mut manager = fixture.connect().await;
    let key = begun(&mut manager).await;
    let request = || UninstallAgentsRequest {
        session_info: Some(session(key.id())),
        agents: vec!["app".to_owned()],
    };
    let refused = manager.uninstall_agents(request()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let asked = manager.uninstall_agents(with(&own(&key), request())).await;
    // This one has no cluster.
    assert_eq!(asked.unwrap_err().code(), Code::Unimplemented);
}
