//! The admin server over a real socket: paths, methods, shapes, and that /explain asks what the
//! data path asks.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use agent_testkit::admin::AdminFixture;
use agent_testkit::intercept;
use agent_testkit::port::context;
use agent_testkit::tunnels::FakeTunnels;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use traffic_agent::proxy::context::{AppProtocol, DetectedProtocol, ProtocolSource};
use traffic_agent::telemetry::metrics::{Class, Protocol, Route};
use traffic_core::routing::{Entry, RouteTable, State};

fn intercept(name: &str, value: &str) -> Entry {
    let mut intercept = intercept::intercept(name, &[("x-dev", value)]);
    intercept.client = "<b>jane@host</b>".to_owned();
    intercept::entry(intercept, State::Active)
}

async fn start() -> AdminFixture {
    let mut port = context(([127, 0, 0, 1], 8080).into(), FakeTunnels::away());
    port.agent_port = 9900;
    port.app_protocol = DetectedProtocol::new(AppProtocol::Http1, ProtocolSource::AppProtocol);
    AdminFixture::start(Arc::new(port)).await
}

#[tokio::test]
async fn ready_follows_health_switches_which_are_posts() {
    let r = start().await;
    assert_eq!(r.ask("GET", "/ready", "").await.2, "LIVE\n");
    let (status, _, body) = r.ask("GET", "/healthcheck/fail", "").await;
    assert_eq!(
        (status, body.as_str()),
        (405, "Method GET not allowed, POST required.")
    );
    assert_eq!(r.ask("POST", "/healthcheck/fail", "").await.0, 200);
    let (status, _, body) = r.ask("GET", "/ready", "").await;
    assert_eq!((status, body.as_str()), (503, "DRAINING\n"));
    r.ask("POST", "/healthcheck/ok", "").await;
    assert_eq!(r.ask("GET", "/ready", "").await.0, 200);
}

#[tokio::test]
async fn a_page_of_another_site_cannot_make_a_browser_change_anything() {
    let r = start().await;
    assert_eq!(
        r.ask("POST", "/quitquitquit", "sec-fetch-site: cross-site\r\n")
            .await
            .0,
        403
    );
    assert_eq!(r.ask("POST", "/quitquitquit", "").await.0, 200);
    tokio::time::timeout(Duration::from_secs(10), r.agent.commands.quit.notified())
        .await
        .unwrap();
}

#[tokio::test]
async fn an_unknown_path_lists_the_known_ones() {
    let r = start().await;
    let (status, _, body) = r.ask("GET", "/nope", "").await;
    assert_eq!(status, 404);
    assert!(
        body.starts_with("invalid path. admin commands are:\n"),
        "{body}"
    );
    assert!(body.contains("/stats/prometheus"));
}

#[tokio::test]
async fn stats_can_be_filtered_and_read_as_json_and_text_and_reset() {
    let r = start().await;
    let m = &r.agent.ports[0].metrics;
    m.http1_requests.at(Route::App).add(5);
    m.responses.at(Class::C2xx).add(5);
    m.carried.at(Protocol::Http1).inc();
    let (_, _, text) = r.ask("GET", "/stats?filter=downstream_rq", "").await;
    assert!(
        text.contains("http.port_8080.downstream_rq_total: 5\n"),
        "{text}"
    );
    assert!(
        text.contains("http.port_8080.downstream_rq_2xx: 5\n"),
        "{text}"
    );
    assert!(text.lines().all(|l| l.contains("downstream_rq")), "{text}");
    let json = r
        .json("/stats?filter=downstream_rq_total&format=json")
        .await;
    assert_eq!(json["stats"][0]["value"], 5);
    assert_eq!(r.ask("GET", "/stats?filter=(", "").await.0, 400);
    r.ask("POST", "/reset_counters", "").await;
    assert_eq!(m.http1_requests.at(Route::App).get(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_come_while_the_counters_are_read_leave_them_true() {
    let r = start().await;
    let agent = r.agent.clone();
    let stop = CancellationToken::new();
    let done = stop.clone();
    let busy = std::thread::spawn(move || {
        while !done.is_cancelled() {
            agent.ports[0].metrics.http2_relayed.inc();
            agent.ports[0].metrics.http2_requests.at(Route::App).inc();
        }
    });
    for _ in 0..300 {
        let json = r
            .json("/stats?filter=downstream_rq_(total|http1|http2)&format=json")
            .await;
        let value = |name: &str| {
            let stats = json["stats"].as_array().unwrap();
            let of = |s: &&Value| s["name"].as_str().unwrap().ends_with(name);
            stats.iter().find(of).unwrap()["value"].as_u64().unwrap()
        };
        assert_eq!(value("downstream_rq_http1_total"), 0);
        assert_eq!(
            value("downstream_rq_total"),
            value("downstream_rq_http2_total")
        );
    }
    stop.cancel();
    busy.join().unwrap();
}

#[tokio::test]
async fn the_exposition_has_every_family_once_and_both_formats_agree() {
    let r = start().await;
    r.agent.ports[0]
        .metrics
        .own_time
        .observe(Duration::from_micros(300));
    let (_, head, plain) = r.ask("GET", "/stats/prometheus", "").await;
    assert!(
        head.contains("content-type: text/plain; charset=UTF-8"),
        "{head}"
    );
    let (_, head, open) = r
        .ask(
            "GET",
            "/stats/prometheus",
            "accept: application/openmetrics-text\r\n",
        )
        .await;
    assert!(head.contains("application/openmetrics-text"), "{head}");
    assert!(open.ends_with("# EOF\n") && !plain.contains("# EOF"));
    let mut families: Vec<_> = plain
        .lines()
        .filter_map(|l| l.strip_prefix("# TYPE "))
        .collect();
    let all = families.len();
    families.dedup();
    assert_eq!(all, families.len());
    assert!(
        plain.contains("traffic_agent_own_seconds_bucket{le=\"0.0005\",port=\"8080\"} 1"),
        "{plain}"
    );
    assert!(
        plain.contains("# TYPE traffic_agent_requests_total counter"),
        "{plain}"
    );
    assert!(plain.contains("envoy_http_downstream_rq_xx{envoy_response_code_class=\"2\",envoy_http_conn_manager_prefix=\"port_8080\"} \
        0"), "{plain}");
    for line in plain.lines().filter(|l| !l.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().is_ok(), "{line}");
        assert!(
            name.chars().next().is_some_and(|c| c.is_ascii_lowercase()),
            "{line}"
        );
    }
}

#[tokio::test]
async fn intercepts_and_explain_show_clauses_hits_and_the_first_failure() {
    let r = start().await;
    r.agent.ports[0].routes.store(RouteTable::new(vec![
        intercept("one", "a"),
        intercept("two", "b"),
    ]));
    let view = r.json("/intercepts").await;
    let port = &view["ports"][0];
    assert_eq!(
        (
            &port["containerPort"],
            &port["appProtocol"],
            &port["source"]
        ),
        (&8080.into(), &"http".into(), &"declared".into())
    );
    assert_eq!(port["intercepts"][0]["headers"]["x-dev"], "a");
    assert_eq!(port["intercepts"][0]["state"], "active");
    let why = r
        .json("/explain?port=8080&method=GET&path=/x&header=X-Dev:b")
        .await;
    assert_eq!(
        (&why["decision"], &why["intercept"]),
        (&"client".into(), &"session:two".into())
    );
    assert_eq!(why["considered"][0]["failed"], "header x-dev: a");
    let why = r.json("/explain?port=8080&path=/x").await;
    assert_eq!(why["decision"], "app");
    assert_eq!(
        why["considered"][0]["failed"],
        "header x-dev: a (header absent)"
    );
    let (status, _, body) = r.ask("GET", "/explain?port=81", "").await;
    assert_eq!(status, 400);
    assert!(body.contains("8080"), "{body}");
}

#[tokio::test]
async fn a_browser_gets_pages_and_nothing_in_them_is_markup_of_a_user() {
    let r = start().await;
    r.agent.ports[0]
        .routes
        .store(RouteTable::new(vec![intercept("one", "<script>")]));
    let browser = "accept: text/html,application/xhtml+xml\r\n";
    for path in [
        "/",
        "/intercepts",
        "/explain?port=8080&path=/&header=x-dev:%3Cscript%3E",
    ] {
        let (status, head, body) = r.ask("GET", path, browser).await;
        assert_eq!(status, 200);
        assert!(head.contains("content-type: text/html"), "{path}: {head}");
        assert!(
            !body.contains("<script>") && !body.contains("<b>jane"),
            "{path}: {body}"
        );
    }
}

#[tokio::test]
async fn logging_levels_are_listed_changed_and_refused_with_usage() {
    let r = start().await;
    let (_, _, body) = r
        .ask("POST", "/logging?paths=http1:debug,session:error", "")
        .await;
    assert!(
        body.starts_with("active loggers:\n")
            && body.contains("  http1: debug\n")
            && body.contains("  session: error\n"),
        "{body}"
    );
    let (status, _, body) = r.ask("POST", "/logging?level=bogus", "").await;
    assert_eq!(status, 400);
    assert!(
        body.contains("unknown logger level \"bogus\"")
            && body.contains("usage: /logging?<name>=<level>"),
        "{body}"
    );
    assert_eq!(r.ask("GET", "/logging", "").await.0, 405);
}

#[tokio::test]
async fn envoys_other_shapes() {
    let r = start().await;
    let info = r.json("/server_info").await;
    assert_eq!(info["state"], "LIVE");
    assert_eq!(info["command_line_options"]["concurrency"], 1);
    assert!(
        r.ask("GET", "/listeners", "")
            .await
            .2
            .starts_with("port_8080::127.0.0.1:")
    );
    assert!(
        r.json("/listeners?format=json").await["listener_statuses"][0]["local_address"]["socket_address"]["port_value"]
            .is_u64()
    );
    assert!(
        r.ask("GET", "/clusters", "")
            .await
            .2
            .contains("app_8080::127.0.0.1:8080::cx_total::0\n")
    );
    assert_eq!(
        r.json("/clusters?format=json").await["cluster_statuses"][0]["name"],
        "app_8080"
    );
    assert!(r.json("/certs").await["certificates"].is_array());
    assert!(r.json("/memory").await["total_physical_bytes"].is_string());
    assert_eq!(
        r.json("/config_dump").await["configs"][0]["bootstrap"]["agentName"],
        "echo"
    );
}
