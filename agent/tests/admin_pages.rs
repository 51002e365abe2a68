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
        plain.contains(
            "traffic_agent_own_seconds_bucket{le=\"0.0005\",port=\"8080\",transport=\"tcp\"} 1"
        ),
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
        "/stats?filter=&usedonly=",
        "/confirm?path=/drain_listeners&graceful=%3Cscript%3E",
    ] {
        let (status, head, body) = r.ask("GET", path, browser).await;
        assert_eq!(status, 200);
        assert!(head.contains("content-type: text/html"), "{path}: {head}");
        assert!(
            head.contains("content-security-policy: default-src 'none'"),
            "{head}"
        );
        assert!(
            body.contains("<a href='/stats'>stats</a>"),
            "{path}: {body}"
        );
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

#[tokio::test]
async fn only_the_agents_own_names_are_answered() {
    let r = start().await;
    for ours in [
        "localhost",
        "LOCALHOST:19000",
        "127.0.0.1:1",
        "[::1]",
        "echo-1:19000",
    ] {
        let (status, _, body) = r
            .ask_host("GET", "/ready", &format!("host: {ours}\r\n"))
            .await;
        assert_eq!(status, 200, "{ours}: {body}");
    }
    let foreign = [
        "host: evil.example\r\n",
        "host: localhost.evil.example:19000\r\n",
        "host: localhost\r\nhost: evil.example\r\n",
        "host: \r\n",
        "host: 10.9.9.9\r\n",
    ];
    for host in foreign {
        for (method, path) in [("GET", "/config_dump"), ("POST", "/quitquitquit")] {
            let (status, _, body) = r.ask_host(method, path, host).await;
            assert_eq!(status, 403, "{host}: {body}");
            assert!(body.contains("no name of this agent"), "{body}");
        }
    }
    let absolute = r.ask("GET", "http://evil.example/ready", "").await;
    assert_eq!(absolute.0, 403, "{absolute:?}");
    let (_, _, stats) = r.ask("GET", "/stats", "").await;
    assert!(
        stats.contains("traffic_agent.limits.admin_host: 11\n"),
        "{stats}"
    );
    // Clients of old name no host, and none of them is a browser.
    assert_eq!(r.ask_host("GET", "/ready", "").await.0, 200);
}

#[tokio::test]
async fn changes_are_refused_to_pages_of_other_servers() {
    let r = start().await;
    for origin in [
        "null",
        "http://evil.example",
        "http://localhost:3000",
        "https://localhost:1",
    ] {
        let (status, _, body) = r
            .ask(
                "POST",
                "/logging?level=debug",
                &format!("origin: {origin}\r\n"),
            )
            .await;
        assert_eq!(status, 403, "{origin}: {body}");
        let reading = r
            .ask("GET", "/ready", &format!("origin: {origin}\r\n"))
            .await;
        assert_eq!(reading.0, 200, "only changes are a matter of origin");
    }
    let own = r
        .ask("POST", "/logging", "origin: http://localhost\r\n")
        .await;
    assert_eq!(own.0, 200, "{own:?}");
    let twice = "origin: http://localhost\r\norigin: http://evil.example\r\n";
    assert_eq!(r.ask("POST", "/logging", twice).await.0, 403);
}

const BROWSER: &str = "accept: text/html,application/xhtml+xml\r\n";

/// Sends the fields of a form, as a browser does.
async fn submit(r: &AdminFixture, path: &str, fields: &str) -> (u16, String, String) {
    let head = format!(
        "{BROWSER}host: localhost\r\norigin: http://localhost\r\n\
         content-type: application/x-www-form-urlencoded\r\ncontent-length: {}\r\n\r\n{fields}",
        fields.len()
    );
    r.ask_host("POST", path, &head).await
}

#[tokio::test]
async fn the_index_says_whose_agent_it_is_and_has_a_field_for_each_parameter() {
    let r = start().await;
    let (_, _, index) = r.ask("GET", "/", BROWSER).await;
    for fact in [
        "<dt>workload</dt><dd>echo</dd>",
        "<dt>namespace</dt><dd>shop</dd>",
        "<dt>pod</dt><dd>echo-1</dd>",
        "<dt>version</dt><dd>0.",
        "<dt>state</dt><dd><span class='yes'>LIVE</span></dd>",
        "<dt>up for</dt><dd>0 s</dd>",
        "<select name='level'>",
        "<input name='filter'",
        "name='graceful'",
    ] {
        assert!(index.contains(fact), "no {fact} in {index}");
    }
}

#[tokio::test]
async fn a_dangerous_button_asks_first_and_only_the_answer_does_it() {
    let r = start().await;
    let (_, _, index) = r.ask("GET", "/", BROWSER).await;
    for path in [
        "/quitquitquit",
        "/drain_listeners",
        "/reset_counters",
        "/healthcheck/fail",
    ] {
        let button = format!("value='{path}'>");
        assert!(index.contains(&button), "{path} is no question in {index}");
        assert!(
            !index.contains(&format!("<form action='{path}'")),
            "{index}"
        );
        let (status, _, question) = r
            .ask("GET", &format!("/confirm?path={path}"), BROWSER)
            .await;
        assert_eq!(status, 200, "{question}");
        let answer = format!("<form action='{path}' method='post'>");
        assert!(question.contains(&answer), "{question}");
    }
    assert_eq!(r.ask("GET", "/confirm?path=/ready", BROWSER).await.0, 404);
    assert_eq!(
        r.ask("GET", "/ready", "").await.2,
        "LIVE\n",
        "nothing is done yet"
    );
    let (status, _, page) = submit(&r, "/healthcheck/fail", "").await;
    assert!(status == 200 && page.contains("<pre>OK</pre>"), "{page}");
    assert_eq!(r.ask("GET", "/ready", "").await.2, "DRAINING\n");
}

#[tokio::test]
async fn the_fields_of_a_form_are_parameters_and_empty_ones_are_none() {
    let r = start().await;
    let (status, _, page) = submit(&r, "/logging", "level=&paths=http1%3Adebug").await;
    assert!(status == 200 && page.contains("http1: debug"), "{page}");
    let (status, _, page) = submit(&r, "/logging", "level=bogus&paths=").await;
    assert!(
        status == 400 && page.contains("unknown logger level"),
        "{page}"
    );
    let too_long = format!("level={}", "x".repeat(5000));
    let (_, _, page) = submit(&r, "/logging", &too_long).await;
    assert!(page.contains("active loggers"), "as without fields: {page}");
    let (_, _, json) = r.ask("GET", "/stats?filter=&format=json", BROWSER).await;
    assert!(json.starts_with("{\"stats\":"), "{json}");
}

#[tokio::test]
async fn times_are_shown_by_percentile() {
    let r = start().await;
    let own = &r.agent.ports[0].metrics.own_time;
    (0..90).for_each(|_| own.observe(Duration::from_micros(150)));
    (0..10).for_each(|_| own.observe(Duration::from_millis(8)));
    let (_, _, page) = r.ask("GET", "/stats?filter=own", BROWSER).await;
    let row = page
        .lines()
        .find(|line| line.contains("title='p50'"))
        .unwrap();
    assert!(row.contains("title='p50'>183 µs<"), "{row}");
    assert!(row.contains("title='p99'>9.5 ms<"), "{row}");
    let (status, _, page) = r.ask("GET", "/stats?filter=(", BROWSER).await;
    assert!(
        status == 400 && page.contains("Invalid re2 regex"),
        "{page}"
    );
}

#[tokio::test]
async fn the_metrics_port_has_metrics_alone_and_no_session_of_a_user() {
    let r = start().await;
    r.agent.ports[0].routes.store(RouteTable::new(vec![
        intercept("one", "a"),
        intercept("two", "b"),
    ]));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let serving =
        traffic_agent::admin::metrics_port::serve(listener, r.agent.clone(), stop.clone());
    let serving = tokio::spawn(serving);
    // The name of a Service or a pod's address, as scrapers use them.
    let metrics =
        agent_testkit::admin::ask_at(address, "GET", "/metrics", "host: 10.1.2.3\r\n").await;
    assert_eq!(metrics.0, 200);
    assert!(
        metrics.2.contains("traffic_agent_build_info{version=\"0."),
        "{}",
        metrics.2
    );
    let ids: std::collections::BTreeSet<_> = metrics
        .2
        .lines()
        .filter(|line| line.starts_with("traffic_agent_intercept_hits_total{"))
        .map(|line| line.split("intercept=\"").nth(1).unwrap()[..16].to_owned())
        .collect();
    assert_eq!(ids.len(), 2, "{ids:?}");
    for entry in r.agent.ports[0].routes.load_full().entries() {
        assert!(!metrics.2.contains(&entry.intercept.id), "{}", metrics.2);
    }
    for (method, path) in [
        ("GET", "/"),
        ("GET", "/config_dump"),
        ("POST", "/quitquitquit"),
    ] {
        let (status, _, body) =
            agent_testkit::admin::ask_at(address, method, path, "host: x\r\n").await;
        assert_eq!(
            (status, body.as_str()),
            (404, "this port has /metrics and nothing else\n")
        );
    }
    let posted = agent_testkit::admin::ask_at(address, "POST", "/metrics", "host: x\r\n").await;
    assert_eq!(posted.0, 405);
    let (_, _, body) = r.ask("GET", "/metrics", "").await;
    assert!(body.contains("traffic_agent_build_info"), "{body}");
    stop.cancel();
    serving.await.unwrap();
}
