//! Arriving, remaining, being reviewed, departing.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use traffic_proto::manager::InterceptDispositionType as Disposition;
use traffic_proto::manager::LogLevelRequest;

use crate::fake::{Fake, intercept};
use crate::pod::{Pod, free_ports, request};

fn anywhere() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_arrives_with_everything_managers_want_to_know_and_departs() {
    let (fake, _dialled) = Fake::start(anywhere()).await;
    let pod = Pod::start(fake.address, "").await;
    let seen = fake.until("arrival", |s| !s.arrivals.is_empty()).await;
    pod.until("readiness", Pod::ready).await;
    let info = &seen.arrivals[0];
    assert_eq!(
        (
            info.name.as_str(),
            info.namespace.as_str(),
            info.pod_name.as_str()
        ),
        ("web", "shop", "web-1")
    );
    assert_eq!(
        (info.pod_ip.as_str(), info.pod_uid.as_str()),
        ("127.0.0.1", "uid-1")
    );
    assert_eq!(info.api_port, i32::from(pod.api_port()));
    assert_eq!(
        info.mechanisms
            .iter()
            .map(|m| m.name.as_str())
            .collect::<Vec<_>>(),
        ["tcp", "http"]
    );
    assert_eq!(
        info.containers["app"]
            .environment
            .get("COLOUR")
            .map(String::as_str),
        Some("red")
    );
    fake.until("all watches", |s| {
        ["deltas", "dials", "questions", "levels"]
            .iter()
            .all(|w| s.watched.contains(w))
    })
    .await;
    fake.until("a heartbeat", |s| s.remains > 0).await;
    assert_eq!(pod.end().await, 0);
    assert_eq!(fake.seen().departed, ["session-0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_intercept_is_reviewed_and_its_traffic_flows_once_active() {
    let (fake, _dialled) = Fake::start(anywhere()).await;
    fake.script(|s| s.deltas = false);
    let pod = Pod::start(fake.address, "").await;
    let header = Some(("x-dev", "a"));
    fake.show(&[intercept("i", Disposition::Waiting, pod.app_port, header)]);
    let seen = fake.until("a review", |s| !s.reviews.is_empty()).await;
    let review = &seen.reviews[0];
    assert_eq!(
        (review.disposition(), review.id.as_str()),
        (Disposition::Active, "client-1:i")
    );
    assert_eq!(
        review.mechanism_args_desc,
        "HTTP requests with header x-dev: a"
    );
    assert_eq!(
        (
            review.pod_ip.as_str(),
            (review.sftp_port, review.ftp_port),
            review.mount_point.as_str()
        ),
        ("127.0.0.1", (0, 0), "")
    );
    assert_eq!(
        review
            .environment
            .get("TELEPRESENCE_CONTAINER")
            .map(String::as_str),
        Some("app")
    );
    assert!(
        seen.watched.contains(&"intercepts"),
        "an older manager has no deltas"
    );
    assert_eq!(
        pod.ask("x-dev: a\r\n").await.unwrap(),
        "app",
        "not before the manager shows it active"
    );
    fake.show(&[intercept("i", Disposition::Active, pod.app_port, header)]);
    pod.until_answered_by("X-Dev: a\r\n", "workstation").await;
    assert_eq!(pod.ask("x-dev: b\r\n").await.unwrap(), "app");
    let (info, session) = fake.seen().tunnels[0].clone();
    assert_eq!(
        (info.session_id.as_str(), session.as_deref()),
        ("session-0", Some("client-1"))
    );
    assert_eq!(info.conn_id.destination(), "127.0.0.1:1".parse().unwrap());
    let seen = fake.until("a report", |s| !s.reports.is_empty()).await;
    let report = &seen.reports[0];
    assert_eq!(report.client_session_id, "client-1");
    assert!(
        report.ingress_bytes > 50 && report.egress_bytes >= 40,
        "{report:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_intercept_of_an_unknown_port_is_refused_with_the_ports_there_are() {
    let (fake, _dialled) = Fake::start(anywhere()).await;
    let pod = Pod::start(fake.address, "").await;
    fake.show(&[intercept("i", Disposition::Waiting, 4, None)]);
    let seen = fake.until("a review", |s| !s.reviews.is_empty()).await;
    let review = &seen.reviews[0];
    assert_eq!(review.disposition(), Disposition::AgentError);
    let port = pod.app_port;
    assert_eq!(
        review.message,
        format!("no port 4 in this agent's configuration; it has {port}/TCP (http)")
    );
    assert_eq!(pod.ask("").await.unwrap(), "app");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leftover_of_this_pod_at_the_manager_is_departed_from() {
    let (fake, _dialled) = Fake::start(anywhere()).await;
    fake.script(|s| s.already_exists = true);
    let pod = Pod::start(fake.address, "").await;
    let seen = fake.until("arrival", |s| !s.arrivals.is_empty()).await;
    assert_eq!(seen.departed, ["agent:uid-1"]);
    assert_eq!(pod.ask("").await.unwrap(), "app");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_managers_log_level_holds_for_its_duration() {
    let (fake, _dialled) = Fake::start(anywhere()).await;
    let pod = Pod::start(fake.address, "").await;
    fake.until("the watch", |s| s.watched.contains(&"levels"))
        .await;
    let duration = Some(prost_types::Duration {
        seconds: 2,
        nanos: 0,
    });
    fake.levels
        .send(LogLevelRequest {
            log_level: "debug".to_owned(),
            duration,
        })
        .unwrap();
    pod.until("debug lines", |p| {
        let port = p.agent_port;
        tokio::spawn(async move { request(port, "").await });
        !p.lines("DEBUG").is_empty()
    })
    .await;
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    let deadline = std::time::Instant::now() + crate::WAIT_TIMEOUT;
    loop {
        let before = pod.lines("DEBUG").len();
        pod.ask("").await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        if pod.lines("DEBUG").len() == before {
            return;
        }
        assert!(
            std::time::Instant::now() < deadline,
            "debug lines never stopped"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_taken_ends_the_program_with_its_own_code() {
    let [manager] = free_ports();
    let (fake, _dialled) = Fake::start(SocketAddr::from(([127, 0, 0, 1], manager))).await;
    let first = Pod::start(fake.address, "").await;
    let config = first.root.path().join("config.yaml");
    let second = std::process::Command::new(env!("CARGO_BIN_EXE_traffic-agent"))
        .arg("--config")
        .arg(&config)
        .arg("--root")
        .arg(first.root.path().join("other"))
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(69), "{second:?}");
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(said.contains(&first.agent_port.to_string()), "{said}");
}

/// A port whose app accepts and says nothing keeps its own probe waiting, and nobody else.
#[tokio::test(flavor = "multi_thread")]
async fn changes_are_followed_at_once_while_another_port_says_nothing() {
    let quiet = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let quiet_port = quiet.local_addr().unwrap().port();
    let (fake, _dialled) = Fake::start(anywhere()).await;
    let pod = Pod::start_beside(&[quiet_port], fake.address).await;
    let header = Some(("x-dev", "a"));
    let waiting = intercept("quiet", Disposition::Waiting, quiet_port, header);
    fake.show(std::slice::from_ref(&waiting));
    let (_probe, _) = quiet.accept().await.expect("the port is probed");
    let mine = intercept("mine", Disposition::Active, pod.app_port, header);
    let mut slowest = Duration::ZERO;
    for _ in 0..5 {
        for (shown, by) in [
            (vec![waiting.clone(), mine.clone()], "workstation"),
            (vec![waiting.clone()], "app"),
        ] {
            fake.show(&shown);
            let begin = Instant::now();
            while pod.ask("x-dev: a\r\n").await.unwrap() != by {
                assert!(begin.elapsed() < Duration::from_secs(1), "not yet {by}");
            }
            slowest = slowest.max(begin.elapsed());
        }
    }
    eprintln!("the slowest of ten changes was followed after {slowest:?}");
    // The review that needs the probe came after all of this, or is still to come.
    let reviews = fake
        .until("a review", |s| !s.reviews.is_empty())
        .await
        .reviews;
    assert_eq!(reviews[0].id, "client-1:quiet");
}
