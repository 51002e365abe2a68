//! All documented metrics exist under every protocol, and the names in dashboard, alerts and
//! documents are exported.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use harness::apps::App;
use harness::caller;
use harness::certs::Authority;
use harness::system::System;
use harness::wait::until;

use crate::exposition;
use crate::mixed_load::{GRPC, HTTP, RELAYED, Testbed, WEBSOCKET};

type Families = BTreeMap<String, Vec<(BTreeMap<String, String>, f64)>>;

fn families(system: &System) -> Families {
    let page = caller::get(system.agent.admin(), "/stats/prometheus", &[]).unwrap();
    exposition::parse(&String::from_utf8(page.body).unwrap())
}

/// The sum of a metric's samples that have these labels.
fn sum(families: &Families, metric: &str, labels: &[(&str, &str)]) -> f64 {
    let samples = families
        .get(metric)
        .unwrap_or_else(|| panic!("{metric} is not exported"));
    let fits = |of: &BTreeMap<String, String>| {
        labels
            .iter()
            .all(|(name, value)| of.get(*name).is_some_and(|v| v == value))
    };
    samples
        .iter()
        .filter(|(of, _)| fits(of))
        .map(|(_, value)| *value)
        .sum()
}

#[test]
fn a_crowd_is_counted_by_port_protocol_route_class_and_time() {
    let testbed = Arc::new(Testbed::start("", |_| {}));
    let mut odd = TcpStream::connect(testbed.address(HTTP)).unwrap();
    odd.write_all(b"\x00\x01\x02").unwrap();
    odd.read_to_end(&mut Vec::new()).unwrap();
    drop(odd);
    let mixed_load = testbed.start_load();
    mixed_load.busy(4);
    let during = families(&testbed.system);
    mixed_load.stop();
    // A stream's tunnel may be said goodbye to a moment after its connection has ended.
    let after = until("the last connection and the last tunnel to end", || {
        let active = [
            "envoy_http_downstream_cx_active",
            "traffic_agent_tunnels_active",
        ];
        Some(families(&testbed.system))
            .filter(|f| active.iter().all(|gauge| sum(f, gauge, &[]) == 0.0))
    });
    let port = |at: usize| testbed.system.agent.sidecar.ports[at].container.to_string();
    let [http, grpc, relayed, websocket] = [HTTP, GRPC, RELAYED, WEBSOCKET].map(port);
    let counted = |metric: &str, labels: &[(&str, &str)]| {
        assert!(sum(&after, metric, labels) > 0.0, "{metric} {labels:?}");
    };
    for route in ["app", "client"] {
        counted(
            "traffic_agent_requests_total",
            &[("port", &http), ("protocol", "http1"), ("route", route)],
        );
        counted(
            "traffic_agent_requests_total",
            &[("port", &grpc), ("protocol", "http2"), ("route", route)],
        );
        counted(
            "traffic_agent_requests_total",
            &[
                ("port", &websocket),
                ("protocol", "http1"),
                ("route", route),
            ],
        );
    }
    counted("traffic_agent_http2_relayed_total", &[("port", &relayed)]);
    for (port, protocol) in [
        (&http, "http1"),
        (&grpc, "http2"),
        (&relayed, "http2"),
        (&websocket, "http1"),
        (&http, "opaque"),
    ] {
        counted(
            "traffic_agent_connections_total",
            &[("port", port), ("protocol", protocol)],
        );
    }
    counted(
        "traffic_agent_opaque_total",
        &[("port", &http), ("reason", "not_http")],
    );
    counted(
        "traffic_agent_opaque_total",
        &[("port", &websocket), ("reason", "upgraded")],
    );
    for port in [&http, &grpc, &websocket] {
        counted("traffic_agent_tunnels_total", &[("port", port)]);
        let [own, upstream] = ["own", "upstream"].map(|what| {
            sum(
                &after,
                &format!("traffic_agent_{what}_seconds_count"),
                &[("port", port)],
            )
        });
        assert!(
            own > 0.0 && (own - upstream).abs() < 1.0,
            "each request has both times: {own} {upstream}"
        );
    }
    // The app takes a millisecond and more for every request; what the agent takes is none of that.
    let mean = |what: &str| {
        let of = |part: &str| {
            sum(
                &after,
                &format!("traffic_agent_{what}_seconds_{part}"),
                &[("port", &http)],
            )
        };
        of("sum") / of("count")
    };
    assert!(mean("upstream") > 0.001, "{}", mean("upstream"));
    for port in [&http, &grpc, &relayed, &websocket] {
        let of_port = [("envoy_http_conn_manager_prefix", format!("port_{port}"))];
        let of_port = of_port
            .each_ref()
            .map(|(name, value)| (*name, value.as_str()));
        for metric in [
            "cx_total",
            "cx_rx_bytes_total",
            "cx_tx_bytes_total",
            "rq_total",
        ] {
            counted(&format!("envoy_http_downstream_{metric}"), &of_port);
        }
        counted(
            "envoy_cluster_upstream_rq_total",
            &[("envoy_cluster_name", &format!("app_{port}"))],
        );
        counted(
            "traffic_agent_connections_ended_total",
            &[("port", port), ("how", "clean")],
        );
    }
    for port in [&http, &grpc] {
        counted(
            "envoy_http_downstream_rq_xx",
            &[
                ("envoy_http_conn_manager_prefix", &format!("port_{port}")),
                ("envoy_response_code_class", "2"),
            ],
        );
    }
    assert!(sum(&during, "traffic_agent_tunnels_active", &[]) > 0.0);
    assert_eq!(sum(&during, "traffic_agent_session_connected", &[]), 1.0);
    assert_eq!(sum(&during, "traffic_agent_intercepts", &[]), 3.0);
    assert!(sum(&during, "envoy_server_memory_physical_size", &[]) > 1e6);
    assert_eq!(
        sum(&after, "traffic_agent_self_connections_total", &[]),
        0.0
    );
}

#[test]
fn failures_are_counted_by_their_reason() {
    let system = System::start();
    let local = App::start("local");
    let _intercept = system.intercept("mine", local.address(), &["--http-header=x-dev=a"]);
    local.stop();
    until("the local app to be away", || {
        TcpStream::connect(local.address()).is_err().then_some(())
    });
    assert_eq!(
        caller::get(system.address(), "/", &[("x-dev", "a")])
            .unwrap()
            .by(),
        "app"
    );
    system.app.stop();
    until("the app to be away", || {
        TcpStream::connect(system.app.address())
            .is_err()
            .then_some(())
    });
    assert!(caller::get(system.address(), "/", &[]).is_err());
    let failed = until("the ending", || {
        Some(families(&system)).filter(|f| {
            sum(
                f,
                "traffic_agent_connections_ended_total",
                &[("how", "app_refused")],
            ) > 0.0
        })
    });
    assert_eq!(
        sum(
            &failed,
            "traffic_agent_fail_open_total",
            &[("reason", "dial_rejected")]
        ),
        1.0
    );
    assert!(sum(&failed, "envoy_cluster_upstream_cx_connect_fail", &[]) > 0.0);
}

/// An agent that terminates TLS, so that nothing is left out of what it exports.
fn with_tls() -> (System, Authority) {
    let authority = Authority::new("cluster");
    let app = Cell::new(0);
    let system = System::start_with(
        |sidecar| app.set(sidecar.ports[0].container),
        |command| {
            let root = command
                .get_args()
                .skip_while(|arg| *arg != "--root")
                .nth(1)
                .unwrap();
            let root = Path::new(root).to_owned();
            authority.write_secret(
                &root.join("downstream-tls/server"),
                &authority.sign(&["app.test"]),
            );
            std::fs::create_dir_all(root.join("etc/podinfo")).unwrap();
            let line = format!(
                "telepresence.io/downstream-tls-secret.{}=\"server\"\n",
                app.get()
            );
            std::fs::write(root.join("etc/podinfo/annotations"), line).unwrap();
        },
    );
    (system, authority)
}

#[test]
fn what_dashboard_alerts_and_documents_name_is_what_is_exported() {
    let (system, authority) = with_tls();
    let ca = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(ca.path(), authority.pem()).unwrap();
    let port = system.address().port();
    let curl = |more: &[&str]| {
        let mut command = Command::new("curl");
        command
            .args([
                "-sS",
                "--max-time",
                "30",
                "--resolve",
                &format!("app.test:{port}:127.0.0.1"),
            ])
            .args(more);
        command
            .arg(format!("https://app.test:{port}/"))
            .output()
            .unwrap()
            .status
            .success()
    };
    assert!(curl(&["--cacert", ca.path().to_str().unwrap()]));
    assert!(!curl(&[]), "an authority nobody knows");
    // Intercepts have metrics of their own.
    let laptop = App::start("laptop");
    let flags = ["--http-header=x-dev=a", "--no-direct"];
    let _client = system.intercept("mine", laptop.address(), &flags);
    let exported = until("the failed handshake", || {
        Some(families(&system)).filter(|f| sum(f, "traffic_agent_tls_failures_total", &[]) > 0.0)
    });
    assert_eq!(sum(&exported, "envoy_listener_ssl_handshake", &[]), 1.0);
    let days = sum(
        &exported,
        "envoy_server_days_until_first_cert_expiring",
        &[],
    );
    let seconds = sum(
        &exported,
        "traffic_agent_certificate_seconds_until_expiry",
        &[("role", "terminating")],
    );
    assert!(
        days > 0.0 && (seconds / 86_400.0 - days).abs() <= 1.0,
        "{days} days, {seconds} s"
    );

    let exported: BTreeSet<String> = exported.into_keys().collect();
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    for file in [
        "deploy/grafana-dashboard.json",
        "deploy/alerts.yaml",
        "docs/operations.md",
    ] {
        let named = names(&std::fs::read_to_string(repository.join(file)).unwrap());
        assert!(named.len() > 5, "{file}");
        let unknown: Vec<_> = named
            .iter()
            .filter(|name| !exported.contains(*name) && !histogram(name, &exported))
            .collect();
        assert!(
            unknown.is_empty(),
            "{file} names what is not exported: {unknown:?}"
        );
    }
    let documented =
        names(&std::fs::read_to_string(repository.join("docs/operations.md")).unwrap());
    let base = |name: &String| {
        ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|s| name.strip_suffix(s))
            .unwrap_or(name)
            .to_owned()
    };
    let missing: Vec<_> = exported
        .iter()
        .map(base)
        .filter(|name| !documented.contains(name))
        .collect();
    assert!(
        missing.is_empty(),
        "docs/operations.md does not list {missing:?}"
    );
}

/// Returns true if a name without a sample of its own is a histogram's.
fn histogram(name: &str, exported: &BTreeSet<String>) -> bool {
    exported.contains(&format!("{name}_bucket"))
}

/// The metrics that a text names.
fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let labels = [
        "envoy_http_conn_manager_prefix",
        "envoy_response_code_class",
        "envoy_cluster_name",
        "envoy_listener_address",
    ];
    words
        .filter(|word| word.starts_with("traffic_agent_") || word.starts_with("envoy_"))
        .filter(|word| !labels.contains(word))
        .map(str::to_owned)
        .collect()
}
