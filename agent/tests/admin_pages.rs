//! The admin server over a real socket: paths, methods, shapes, and that /explain asks what the
//! data path asks.
#![allow(clippy::unwrap_used)]
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use traffic_agent::addr::{AppAddr, Caller};
use traffic_agent::admin::{AdminCommands, Agent, ListenerInfo, NoCertificates, server};
use traffic_agent::io::conn::Conn;
use traffic_agent::proxy::context::{AppProtocol, DetectedProtocol, PortContext, ProtocolSource};
use traffic_agent::telemetry::logging::LogControl;
use traffic_agent::telemetry::metrics::{Class, Protocol, Route};
use traffic_agent::tls::alpn::TlsInfo;
use traffic_agent::upstream::{AppError, DialApp, OpenTunnel, Transport, TunnelError, TunnelIo};
use traffic_core::routing::matcher::{Filters, HeaderFilter};
use traffic_core::routing::{Entry, Intercept, Mechanism, RouteTable, State};

#[derive(Debug)]
struct Nowhere;

impl DialApp for Nowhere {
    fn dial<'a>(&'a self, _: Option<&'a TlsInfo>) -> BoxFuture<'a, Result<Conn, AppError>> {
        let addr = AppAddr("127.0.0.1:1".parse().unwrap());
        Box::pin(async move {
            Err(AppError::Timeout {
                addr,
                after: Duration::ZERO,
            })
        })
    }
    fn plain_addr(&self) -> Option<AppAddr> {
        Some(AppAddr("127.0.0.1:8080".parse().unwrap()))
    }
}

impl OpenTunnel for Nowhere {
    fn open(
        &self,
        _: Arc<Intercept>,
        _: Caller,
        _: Transport,
    ) -> BoxFuture<'static, Result<TunnelIo, TunnelError>> {
        Box::pin(async { Err(TunnelError::NoPath("test".to_owned())) })
    }
}

fn intercept(name: &str, value: &str) -> Entry {
    Entry {
        state: State::Active,
        intercept: Arc::new(Intercept {
            id: format!("session:{name}"),
            name: name.to_owned(),
            client: "<b>jane@host</b>".to_owned(),
            client_session: "session".to_owned(),
            mechanism: Mechanism::Http,
            filters: Filters {
                headers: vec![HeaderFilter::new("x-dev", value)],
                paths: Vec::new(),
            },
            plaintext: false,
            target_host: "127.0.0.1".to_owned(),
            target_port: 3000,
            roundtrip_latency: Duration::ZERO,
            dial_timeout: Duration::ZERO,
            stats: Arc::default(),
        }),
    }
}

fn port() -> Arc<PortContext> {
    Arc::new(PortContext {
        container_port: 8080,
        agent_port: 9900,
        routes: Arc::default(),
        transport: Transport::Tcp,
        app_protocol: DetectedProtocol::new(AppProtocol::Http1, ProtocolSource::AppProtocol),
        app: Arc::new(Nowhere),
        tls: None,
        access: traffic_agent::telemetry::access_log::Access::default(),
        tunnels: Arc::new(Nowhere),
        metrics: Arc::default(),
        drain: traffic_agent::drain::Drain::default(),
    })
}

struct Running {
    agent: Arc<Agent>,
    address: std::net::SocketAddr,
    stop: CancellationToken,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn start() -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let agent = Arc::new(Agent {
        version: "v0.0.0",
        workload: "echo".to_owned(),
        namespace: "shop".to_owned(),
        pod: "echo-1".to_owned(),
        manager: "traffic-manager.ambassador:8081".to_owned(),
        started: Instant::now(),
        workers: 1,
        listeners: vec![ListenerInfo {
            name: "port_8080".to_owned(),
            address,
            transport: "TCP",
        }],
        ports: vec![port()],
        control: Arc::default(),
        certificates: Arc::new(NoCertificates),
        ready: traffic_agent::ready::Ready::default(),
        drain: traffic_agent::drain::Drain::default(),
        log: LogControl::detached(),
        config: serde_json::json!({ "agentName": "echo" }),
        commands: Arc::new(AdminCommands::default()),
    });
    let stop = CancellationToken::new();
    tokio::spawn(server::serve(listener, agent.clone(), stop.clone()));
    Running {
        agent,
        address,
        stop,
    }
}

impl Running {
    async fn ask(&self, method: &str, path: &str, extra: &str) -> (u16, String, String) {
        let mut socket = TcpStream::connect(self.address).await.unwrap();
        let request =
            format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{extra}\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head.to_owned(), body.to_owned())
    }

    async fn json(&self, path: &str) -> Value {
        let (status, head, body) = self.ask("GET", path, "").await;
        assert_eq!(status, 200, "{path}: {body}");
        assert!(head.contains("content-type: application/json"), "{head}");
        serde_json::from_str(&body).unwrap()
    }
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
