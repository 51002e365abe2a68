//! The JSON and text bodies of the admin's read-only pages.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Instant;

use serde_json::{Value as Json, json};

use crate::admin::stats::Value;
use crate::admin::{Agent, memory as process_memory, stats};
use crate::proxy::context::PortContext;
use crate::telemetry::metrics::Route;
use crate::upstream::Transport;
use traffic_core::routing::dial_memory::Reachability;
use traffic_core::routing::matcher::PathFilter;
use traffic_core::routing::{Entry, Intercept, Mechanism, State};

/// Returns a statistic as one number.
#[must_use]
pub fn plain(value: &Value) -> Json {
    match value {
        Value::Counter(n) => json!(n),
        Value::Gauge(n) => json!(n),
        Value::Latency(buckets, sum) => {
            json!({ "count": buckets.iter().sum::<u64>(), "sum_us": sum })
        }
    }
}

/// `/server_info`, in Envoy's shape.
#[must_use]
pub fn server_info(agent: &Agent) -> Json {
    let uptime = format!("{}s", agent.started.elapsed().as_secs());
    json!({
        "version": format!("{}/{}", agent.version, "traffic-agent"),
        "state": agent.state(),
        "uptime_current_epoch": uptime,
        "uptime_all_epochs": uptime,
        "hot_restart_version": "disabled",
        "command_line_options": {
            "concurrency": agent.workers,
            "log_level": agent.log.configured().to_string(),
            "mode": "Serve",
        },
        "node": {
            "id": agent.pod,
            "cluster": agent.workload,
            "metadata": { "namespace": agent.namespace },
        },
        "traffic_agent": {
            "manager": agent.manager,
            "session_connected": agent.control.connected.get() != 0,
            "pending": agent.ready.pending(),
        },
    })
}

/// `/listeners` as text: `name::address`.
#[must_use]
pub fn listeners_text(agent: &Agent) -> String {
    agent.listeners.iter().fold(String::new(), |mut out, l| {
        let _ = writeln!(out, "{}::{}", l.name, l.address);
        out
    })
}

/// `/listeners?format=json`.
#[must_use]
pub fn listeners_json(agent: &Agent) -> Json {
    let statuses: Vec<_> = agent
        .listeners
        .iter()
        .map(|l| json!({ "name": l.name, "local_address": socket_address(l.address) }))
        .collect();
    json!({ "listener_statuses": statuses })
}

fn socket_address(address: SocketAddr) -> Json {
    let ip = address.ip().to_string();
    json!({ "socket_address": { "address": ip, "port_value": address.port() } })
}

fn app_address(port: &PortContext) -> String {
    port.app
        .plain_addr()
        .map_or_else(|| format!("app:{}", port.container_port), |a| a.to_string())
}

fn host_stats(port: &PortContext) -> [(&'static str, &'static str, u64); 4] {
    let m = &port.metrics;
    let requests = m.http1_requests.at(Route::App).get()
        + m.http2_requests.at(Route::App).get()
        + m.http2_relayed.get();
    [
        (
            "cx_active",
            "GAUGE",
            u64::try_from(m.active.get()).unwrap_or(0),
        ),
        ("cx_connect_fail", "COUNTER", m.app_connect_failures.get()),
        ("cx_total", "COUNTER", m.connections.get()),
        ("rq_total", "COUNTER", requests),
    ]
}

/// `/clusters` as text: one app is one cluster with one host.
#[must_use]
pub fn clusters_text(agent: &Agent) -> String {
    let mut out = String::new();
    for port in &agent.ports {
        let name = format!("app_{}", stats::port_name(port));
        let host = app_address(port);
        let _ = writeln!(
            out,
            "{name}::observability_name::{name}\n{name}::added_via_api::false"
        );
        for (stat, _, value) in host_stats(port) {
            let _ = writeln!(out, "{name}::{host}::{stat}::{value}");
        }
        let _ = writeln!(
            out,
            "{name}::{host}::health_flags::healthy\n{name}::{host}::weight::1"
        );
    }
    out
}

/// `/clusters?format=json`.
#[must_use]
pub fn clusters_json(agent: &Agent) -> Json {
    let statuses: Vec<_> = agent
        .ports
        .iter()
        .map(|port| {
            let stats: Vec<_> = host_stats(port)
                .iter()
                .map(|(name, kind, value)| {
                    let mut stat = serde_json::Map::new();
                    // Envoy leaves out the type of counters and values that are zero.
                    if *kind != "COUNTER" {
                        stat.insert("type".to_owned(), json!(kind));
                    }
                    if *value != 0 {
                        stat.insert("value".to_owned(), json!(value.to_string()));
                    }
                    stat.insert("name".to_owned(), json!(name));
                    Json::Object(stat)
                })
                .collect();
            let name = format!("app_{}", stats::port_name(port));
            let address = port
                .app
                .plain_addr()
                .map_or(Json::Null, |a| socket_address(a.0));
            json!({
                "name": name,
                "observability_name": name,
                "host_statuses": [{
                    "address": address,
                    "stats": stats,
                    "health_status": { "eds_health_status": "HEALTHY" },
                    "weight": 1,
                }],
            })
        })
        .collect();
    json!({ "cluster_statuses": statuses })
}

/// `/certs`, in Envoy's shape.
#[must_use]
pub fn certs(agent: &Agent) -> Json {
    let list: Vec<_> = agent
        .certificates
        .certificates()
        .iter()
        .map(|c| {
            let names: Vec<_> = c
                .names
                .iter()
                .map(|n| {
                    let is_ip = n.parse::<std::net::IpAddr>().is_ok();
                    let kind = if is_ip { "ip_address" } else { "dns" };
                    json!({ kind: n })
                })
                .collect();
            let days_left = c.seconds_until_expiry.div_euclid(86_400).max(0);
            json!({
                "ca_cert": [],
                "cert_chain": [{
                    "path": c.source,
                    "serial_number": c.serial,
                    "subject_alt_names": names,
                    "days_until_expiration": days_left.to_string(),
                    "valid_from": c.valid_from,
                    "expiration_time": c.expires,
                    "role": c.role,
                    "port": c.port,
                }],
            })
        })
        .collect();
    json!({ "certificates": list })
}

/// `/config_dump`: the sidecar's configuration and the current routes.
#[must_use]
pub fn config_dump(agent: &Agent) -> Json {
    let routes = &intercepts(agent)["ports"];
    json!({
        "configs": [
            { "@type": "traffic-agent/bootstrap", "bootstrap": agent.config },
            { "@type": "traffic-agent/routes", "dynamic_route_configs": routes },
        ],
    })
}

/// `/memory`, in Envoy's shape: byte counts as strings.
#[must_use]
pub fn memory() -> Json {
    let m = process_memory::read();
    json!({
        "allocated": m.data.to_string(),
        "heap_size": m.data.to_string(),
        "pageheap_unmapped": "0",
        "pageheap_free": "0",
        "total_thread_cache": "0",
        "total_physical_bytes": m.resident.to_string(),
    })
}

/// `/intercepts`: every port with its protocol and its intercepts.
#[must_use]
pub fn intercepts(agent: &Agent) -> Json {
    let ports: Vec<_> = agent
        .ports
        .iter()
        .map(|port| {
            let table = port.routes.load_full();
            let (declared, source) = port.app_protocol.get();
            let transport = match port.transport {
                Transport::Tcp => "TCP",
                Transport::Udp => "UDP",
            };
            json!({
                "containerPort": port.container_port,
                "agentPort": port.agent_port,
                "protocol": transport,
                "appProtocol": declared.word(),
                "source": source.word(),
                "intercepts": table.rules().map(|e| intercept(e, table.misses(e))).collect::<Vec<_>>(),
            })
        })
        .collect();
    json!({ "ports": ports })
}

/// Says whether the workstation was reached when it was last tried, and how it was not.
fn reached(intercept: &Intercept) -> (&'static str, Option<String>) {
    match intercept.stats.dials.reachability(Instant::now()) {
        Reachability::Untried => ("untried", None),
        Reachability::Reachable => ("reached", None),
        Reachability::Unreachable { reason, .. } => ("unreachable", Some(reason)),
    }
}

fn intercept(entry: &Entry, misses: u64) -> Json {
    let i = &entry.intercept;
    let headers: serde_json::Map<String, Json> = i
        .filters
        .on_wire()
        .map(|(name, text)| (name, json!(text)))
        .collect();
    let paths: Vec<_> = i
        .filters
        .paths
        .iter()
        .map(|p| match p {
            PathFilter::Equal(x) => format!(":path-equal:{x}"),
            PathFilter::Prefix(x) => format!(":path-prefix:{x}"),
            PathFilter::Regex(x, _) => format!(":path-regex:{x}"),
        })
        .collect();
    let last = i.stats.last_match.load(Ordering::Relaxed);
    let mechanism = match i.mechanism {
        Mechanism::Tcp => "tcp",
        Mechanism::Http => "http",
    };
    let state = match entry.state {
        State::Active => "active",
        State::Expired => "expired",
    };
    let (workstation, failure) = reached(i);
    json!({
        "id": i.id,
        "name": i.name,
        "client": i.client,
        "wiretap": i.wiretap,
        "mechanism": mechanism,
        "headers": headers,
        "paths": paths,
        "plaintext": i.plaintext,
        "state": state,
        "hits": i.stats.hits.load(Ordering::Relaxed),
        "misses": misses,
        "lastMatch": (last > 0).then_some(last),
        "tunnel": i.stats.tunnel().word(),
        "failedOpen": i.stats.failed_open.load(Ordering::Relaxed),
        "copiesDropped": i.stats.copies_dropped.load(Ordering::Relaxed),
        "workstation": workstation,
        "lastFailure": failure,
    })
}
