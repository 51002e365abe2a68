//! Accepted callers, and calls that are not offered.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::Code;
use tonic::transport::Endpoint;
use traffic_proto::manager::{GetLogsRequest, SessionInfo, UpdateInterceptRequest};

use crate::fixture::Fixture;

#[tokio::test]
async fn what_is_no_grpc_is_answered_with_a_line_of_text() {
    let fixture = Fixture::start().await;
    for path in ["/", "/telepresence.manager.Manager/Version"] {
        let mut stream = TcpStream::connect(fixture.address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: manager\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(
            answer.contains(&format!("{path} is not a gRPC call")),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn health_is_served() {
    use tonic_health::pb::health_check_response::ServingStatus;
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    let fixture = Fixture::start().await;
    let channel = Endpoint::from_shared(format!("http://{}", fixture.address))
        .unwrap()
        .connect()
        .await
        .unwrap();
    let mut health = HealthClient::new(channel);
    for service in ["", "telepresence.manager.Manager"] {
        let answer = health
            .check(HealthCheckRequest {
                service: service.into(),
            })
            .await
            .unwrap()
            .into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving);
    }
}

#[tokio::test]
async fn the_version_is_one_that_agents_and_clients_can_read() {
    let fixture = Fixture::start().await;
    let version = fixture
        .connect()
        .await
        .version(())
        .await
        .unwrap()
        .into_inner();
    let number = version.version.strip_prefix('v').unwrap();
    assert!(semver::Version::parse(number).unwrap() >= semver::Version::new(2, 25, 0));
}

#[tokio::test]
async fn what_is_not_offered_is_unimplemented() {
    let fixture = Fixture::start().await;
    let mut manager = fixture.connect().await;
    let codes = [
        manager.get_license(()).await.unwrap_err().code(),
        manager
            .can_connect_ambassador_cloud(())
            .await
            .unwrap_err()
            .code(),
        manager.get_cloud_config(()).await.unwrap_err().code(),
        manager
            .update_intercept(UpdateInterceptRequest::default())
            .await
            .unwrap_err()
            .code(),
    ];
    assert_eq!(codes, [Code::Unimplemented; 4]);
    assert!(
        manager
            .get_logs(GetLogsRequest::default())
            .await
            .unwrap()
            .into_inner()
            .pod_logs
            .is_empty()
    );
    assert_eq!(
        manager
            .get_telepresence_api(())
            .await
            .unwrap()
            .into_inner()
            .port,
        0
    );
    let kinds = manager
        .get_known_workload_kinds(SessionInfo::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(kinds.kinds, [1, 2, 3]);
    let config = manager
        .get_client_config(())
        .await
        .unwrap()
        .into_inner()
        .config_yaml;
    assert!(std::str::from_utf8(&config).is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_authority_that_grpc_clients_send_is_accepted() {
    let fixture = Fixture::start().await;
    let url = format!(
        "http://{}/telepresence.manager.Manager/Version",
        fixture.address
    );
    for authority in [
        "svc%2Ftraffic-manager.ambassador:api",
        "pod%2Fx.demo:18000",
        "unix:%2Fvar%2Frun%2Fsock",
        "under_score:8081",
        "manager:8081",
    ] {
        let (url, host) = (url.clone(), format!("Host: {authority}"));
        let curl = move || {
            std::process::Command::new("curl")
                .args(["--silent", "--show-error", "--max-time", "20"])
                .args([
                    "--http2-prior-knowledge",
                    "--output",
                    "-",
                    "--header",
                    &host,
                ])
                .args(["--header", "content-type: application/grpc"])
                .args(["--header", "te: trailers", "--write-out", "%{http_code}"])
                // An empty message: no compression, no bytes.
                .args(["--data-binary", "@/dev/stdin", &url])
                .stdin(std::process::Stdio::piped())
                .stdout(std::process::Stdio::piped())
                .spawn()
                .and_then(|mut child| {
                    use std::io::Write as _;
                    child.stdin.take().unwrap().write_all(&[0; 5])?;
                    child.wait_with_output()
                })
                .unwrap()
        };
        let answer = tokio::task::spawn_blocking(curl).await.unwrap().stdout;
        let text = String::from_utf8_lossy(&answer);
        assert!(text.ends_with("200"), "{authority}: {text}");
        // Stock clients warn of a manager whose name begins otherwise.
        assert!(text.contains("OSS Traffic Manager"), "{authority}: {text}");
    }
}

/// Sends a request to the API's port from loopback, and returns status, head and body.
async fn ask(fixture: &Fixture, request: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(fixture.address).await.unwrap();
    let request = format!("{request}connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head.to_owned(), body.to_owned())
}

#[tokio::test]
async fn people_on_this_machine_get_a_page_and_pages_of_others_do_not() {
    let fixture = Fixture::start().await;
    let (status, head, page) = ask(&fixture, "GET / HTTP/1.1\r\nhost: localhost:8081\r\n").await;
    assert_eq!(status, 200);
    assert!(head.contains("content-type: text/html"), "{head}");
    assert!(
        head.contains("content-security-policy: default-src 'none'"),
        "{head}"
    );
    assert!(page.contains("Nobody intercepts anything"), "{page}");
    for host in [
        "evil.example",
        "traffic-manager.ambassador:8081",
        "10.0.0.1",
    ] {
        for path in ["/", "/metrics", "/logging"] {
            let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n");
            let (_, _, body) = ask(&fixture, &request).await;
            let expected = format!("traffic-manager: {path} is not a gRPC call\n");
            assert_eq!(body, expected, "{host}");
        }
    }
    let (status, _, body) = ask(&fixture, "GET /ready HTTP/1.1\r\nhost: 10.0.0.1\r\n").await;
    assert_eq!((status, body.as_str()), (200, "READY\n"));
    let (status, _, body) = ask(&fixture, "GET /nope HTTP/1.1\r\nhost: localhost\r\n").await;
    assert_eq!(status, 404, "{body}");
}

#[tokio::test]
async fn figures_name_no_user_and_tell_build_sessions_and_states() {
    let fixture = Fixture::start().await;
    let (_, head, figures) = ask(&fixture, "GET /metrics HTTP/1.1\r\nhost: localhost\r\n").await;
    assert!(head.contains("openmetrics-text"), "{head}");
    for series in [
        "traffic_manager_build_info{version=\"0.",
        "traffic_manager_sessions{party=\"agent\"} 0",
        "traffic_manager_intercepts{state=\"ACTIVE\"} 0",
        "traffic_manager_tunnel_streams_total 0",
        "traffic_manager_tunnel_streams_active 0",
        "traffic_manager_tunnel_streams_failed_total 0",
        "telepresence_agent_count 0",
    ] {
        assert!(figures.contains(series), "no {series} in {figures}");
    }
    assert_eq!(figures.matches("# EOF").count(), 1, "{figures}");
}

#[tokio::test]
async fn the_level_of_the_log_changes_while_it_runs() {
    let fixture = Fixture::start().await;
    let to = |level: &str, more: &str| {
        format!(
            "POST /logging?level={level} HTTP/1.1\r\nhost: localhost\r\n{more}content-length: 0\r\n"
        )
    };
    let (status, _, body) = ask(&fixture, &to("debug", "")).await;
    assert_eq!((status, body.as_str()), (200, "debug\n"));
    assert_eq!(ask(&fixture, &to("loud", "")).await.0, 400);
    let foreign = to("trace", "origin: http://evil.example\r\n");
    assert_eq!(ask(&fixture, &foreign).await.0, 403);
    let (_, _, body) = ask(&fixture, "GET /logging HTTP/1.1\r\nhost: localhost\r\n").await;
    assert_eq!(body, "debug\n");
}
