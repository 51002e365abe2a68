//! Dashboard and alerts, evaluated by a real Prometheus that scrapes an agent and a stand-in for a
//! real Envoy, whose metrics have some of the same names.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;

use harness::process::Process;
use harness::system::System;
use harness::wait::until;
use harness::{caller, ports};
use serde_json::Value;

/// Metrics of a server that is not ours.
const ENVOY: &str = "# TYPE envoy_server_uptime gauge\nenvoy_server_uptime{pod=\"envoy\"} 5\n\
    # TYPE envoy_http_downstream_cx_active gauge\nenvoy_http_downstream_cx_active{pod=\"envoy\"} 4242\n\
    # TYPE envoy_server_memory_physical_size gauge\nenvoy_server_memory_physical_size{pod=\"envoy\"} 4242\n";

/// Serves `ENVOY` to whoever connects.
fn foreign() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let _ = stream.read(&mut [0; 4096]);
            let head = "HTTP/1.1 200 OK\r\ncontent-type: text/plain; version=0.0.4\r\n";
            let length = ENVOY.len();
            let _ = write!(
                stream,
                "{head}content-length: {length}\r\nconnection: close\r\n\r\n{ENVOY}"
            );
        }
    });
    address
}

struct Prometheus {
    address: SocketAddr,
    _process: Process,
    _folder: tempfile::TempDir,
}

impl Prometheus {
    fn start(agent: SocketAddr, envoy: SocketAddr) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("prometheus.yml");
        let text = format!(
            "global: {{scrape_interval: 1s}}\nscrape_configs:\n- job_name: pods\n  \
             metrics_path: /stats/prometheus\n  static_configs:\n  \
             - {{targets: ['{agent}'], labels: {{namespace: shop, pod: agent}}}}\n  \
             - {{targets: ['{envoy}'], labels: {{namespace: shop}}}}\n"
        );
        std::fs::write(&config, text).unwrap();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, ports::free()));
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().display()))
            .arg(format!("--web.listen-address={address}"));
        Self {
            address,
            _process: Process::start("prometheus", &mut command),
            _folder: folder,
        }
    }

    /// Evaluates an expression; panics if Prometheus does not understand it.
    fn query(&self, expression: &str) -> Option<Vec<Value>> {
        let encoded: String = expression
            .bytes()
            .map(|byte| format!("%{byte:02X}"))
            .collect();
        let path = format!("/api/v1/query?query={encoded}");
        let answer = caller::get(self.address, &path, &[]).ok()?;
        // Before it is ready it answers with plain text.
        let answer: Value = serde_json::from_slice(&answer.body).ok()?;
        assert_eq!(answer["status"], "success", "{expression}: {answer}");
        Some(answer["data"]["result"].as_array().unwrap().clone())
    }
}

/// Expressions of the dashboard, its variables filled in.
fn expressions(dashboard: &Value) -> Vec<String> {
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels
        .iter()
        .filter_map(|panel| panel["targets"].as_array())
        .flatten();
    targets
        .filter_map(|target| target["expr"].as_str())
        .map(|text| {
            text.replace("$namespace", ".*")
                .replace("$pod", ".*")
                .replace("$__rate_interval", "10s")
        })
        .collect()
}

fn repository(file: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(file)
}

#[test]
fn the_dashboard_shows_our_agents_and_no_other_server() {
    let system = System::start();
    let prometheus = Prometheus::start(system.agent.admin(), foreign());
    until("both servers to be scraped", || {
        let scraped = prometheus.query("up == 1")?;
        (scraped.len() == 2).then_some(())
    });
    until("the session to be seen", || {
        let seen = prometheus.query("traffic_agent_session_connected")?;
        (!seen.is_empty()).then_some(())
    });
    let text = std::fs::read_to_string(repository("deploy/grafana-dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let expressions = expressions(&dashboard);
    assert!(expressions.len() > 20, "{}", expressions.len());
    for expression in expressions {
        let result = prometheus.query(&expression).expect("a ready Prometheus");
        for series in result {
            assert_ne!(series["metric"]["pod"], "envoy", "{expression}");
            assert_ne!(series["value"][1], "4242", "{expression}");
        }
    }
    let active = prometheus.query("envoy_http_downstream_cx_active").unwrap();
    assert_eq!(
        active.len(),
        2,
        "the stand-in has the metric as well: {active:?}"
    );
}

#[test]
fn the_alerts_are_valid_and_each_names_its_section() {
    let rules = repository("deploy/alerts.yaml");
    let checked = Command::new("promtool")
        .args(["check", "rules"])
        .arg(&rules)
        .output()
        .unwrap();
    assert!(
        checked.status.success(),
        "{}",
        String::from_utf8_lossy(&checked.stderr)
    );
    let rules = std::fs::read_to_string(rules).unwrap();
    let guide = std::fs::read_to_string(repository("docs/troubleshooting.md")).unwrap();
    let names: Vec<_> = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    assert!(names.len() > 5);
    for name in names {
        let anchor = format!("docs/troubleshooting.md#{}", name.to_lowercase());
        assert!(rules.contains(&anchor), "{name} has no runbook");
        assert!(
            guide.contains(&format!("### {name}\n")),
            "{name} is not explained"
        );
    }
}
