//! Names resolved by agents, or by the manager itself.

use std::time::{Duration, Instant};

use tonic::Code;
use traffic_proto::manager::{AgentInfo, DnsAgentResponse, DnsRequest, DnsResponse, LookupRequest};

use crate::fixture::{Fixture, Party, agent, spec, within_timeout};

fn question(client: &Party, name: &str, kind: u32) -> DnsRequest {
    DnsRequest {
        session: Some(client.session.clone()),
        name: name.into(),
        r#type: kind,
    }
}

/// Lets an agent give this answer to the first question.
async fn answering(mut agent: Party, r_code: i32, rrs: &'static [u8]) -> DnsRequest {
    let mut asked = agent
        .manager
        .watch_lookup_dns(agent.session.clone())
        .await
        .unwrap()
        .into_inner();
    let request = within_timeout(asked.message()).await.unwrap().unwrap();
    let answer = DnsAgentResponse {
        session: Some(agent.session.clone()),
        request: Some(request.clone()),
        response: Some(DnsResponse {
            r_code,
            rrs: rrs.into(),
        }),
    };
    agent
        .manager
        .agent_lookup_dns_response(answer)
        .await
        .unwrap();
    request
}

#[tokio::test]
async fn the_best_of_two_agents_answers_is_taken() {
    let fixture = Fixture::start().await;
    let (one, two) = (fixture.agent("app-1").await, fixture.agent("app-2").await);
    let mut dev = fixture.client("dev").await;
    let request = question(&dev, "db.default.", 1);
    let (_, asked, answer) = tokio::join!(
        answering(one, 3, b""),
        answering(two, 0, b"records"),
        dev.manager.lookup_dns(request.clone())
    );
    let answer = answer.unwrap().into_inner();
    assert_eq!((answer.r_code, &answer.rrs[..]), (0, &b"records"[..]));
    assert_eq!(asked, request, "the agent gets the request as it was made");
}

#[tokio::test]
async fn the_intercepted_agents_are_asked_first() {
    let fixture = Fixture::start().await;
    let mine = fixture.agent("app-1").await;
    let mut idle = fixture
        .arrive(AgentInfo {
            name: "other".into(),
            ..agent("other-2")
        })
        .await;
    let mut not_asked = idle
        .manager
        .watch_lookup_dns(idle.session.clone())
        .await
        .unwrap()
        .into_inner();
    let mut dev = fixture.client("dev").await;
    dev.create(spec("one")).await;
    let request = question(&dev, "db.", 28);
    let (_, answer) = tokio::join!(answering(mine, 0, b"mine"), dev.manager.lookup_dns(request));
    assert_eq!(&answer.unwrap().into_inner().rrs[..], b"mine");
    assert!(
        tokio::time::timeout(Duration::from_millis(200), not_asked.message())
            .await
            .is_err()
    );
}

#[tokio::test]
async fn an_agent_that_does_not_answer_delays_only_for_its_time() {
    let fixture = Fixture::with(|settings| settings.lookup = Duration::from_millis(200)).await;
    let mut silent = fixture.agent("app-1").await;
    let _asked = silent
        .manager
        .watch_lookup_dns(silent.session.clone())
        .await
        .unwrap();
    let mut dev = fixture.client("dev").await;
    let begin = Instant::now();
    let request = question(&dev, "localhost.", 1);
    let answer = within_timeout(dev.manager.lookup_dns(request))
        .await
        .unwrap()
        .into_inner();
    assert!(begin.elapsed() >= Duration::from_millis(200));
    // Name, type A, class IN, 4 seconds, 4 bytes: 127.0.0.1.
    assert_eq!(answer.r_code, 0);
    assert_eq!(
        &answer.rrs[..],
        b"\x09localhost\0\0\x01\0\x01\0\0\0\x04\0\x04\x7f\0\0\x01"
    );
    // NAPTR, which stock agents and managers do not look up.
    let request = question(&dev, "localhost.", 35);
    assert_eq!(
        dev.manager
            .lookup_dns(request)
            .await
            .unwrap()
            .into_inner()
            .r_code,
        4,
        "other types: not implemented"
    );
}

#[tokio::test]
async fn the_manager_looks_names_up_itself() {
    let fixture = Fixture::start().await;
    let mut dev = fixture.client("dev").await;
    let mut ask = async |name: &str| {
        let request = LookupRequest {
            session: Some(dev.session.clone()),
            name: name.into(),
        };
        dev.manager
            .lookup(request)
            .await
            .map(|found| found.into_inner().ips)
    };
    assert!(
        ask("localhost.")
            .await
            .unwrap()
            .iter()
            .any(|ip| ip[..] == [127, 0, 0, 1])
    );
    for name in [".", "localhost", ""] {
        assert_eq!(
            ask(name).await.unwrap_err().code(),
            Code::InvalidArgument,
            "{name:?}"
        );
    }
}
