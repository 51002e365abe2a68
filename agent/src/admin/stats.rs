//! All values that can be read from outside, as one list: dotted names in Envoy's tree for
//! `/stats`, metric names with labels for Prometheus. Values with Envoy's meaning have Envoy's
//! name.

use crate::admin::Agent;
use crate::proxy::context::PortContext;
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::metrics::{Class, LATENCY_BOUNDS_US, Label, Latency, PerLabel, Route};

/// A value with its kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A value that only grows (except for `/reset_counters`).
    Counter(u64),
    /// A value that goes up and down.
    Gauge(i64),
    /// Bucket counts (not cumulative) and the sum, in microseconds.
    Latency(Vec<u64>, u64),
}

/// One value with its two names.
#[derive(Clone, Debug)]
pub struct Stat {
    /// Dotted name, as in `http.port_8080.downstream_rq_total`.
    pub name: String,
    /// Prometheus metric name.
    pub metric: &'static str,
    /// Help text.
    pub help: &'static str,
    /// Prometheus labels.
    pub labels: Vec<(&'static str, String)>,
    /// The value.
    pub value: Value,
}

/// Collects all values.
#[must_use]
pub fn collect(agent: &Agent) -> Vec<Stat> {
    let mut list = List(Vec::with_capacity(64 + 96 * agent.ports.len()));
    server(agent, &mut list);
    for port in &agent.ports {
        port_stats(port, &mut list);
    }
    list.0
}

struct List(Vec<Stat>);

impl List {
    fn counter(
        &mut self,
        name: String,
        metric: &'static str,
        help: &'static str,
        labels: Labels,
        value: u64,
    ) {
        self.0.push(Stat {
            name,
            metric,
            help,
            labels,
            value: Value::Counter(value),
        });
    }

    fn gauge(
        &mut self,
        name: String,
        metric: &'static str,
        help: &'static str,
        labels: Labels,
        value: i64,
    ) {
        self.0.push(Stat {
            name,
            metric,
            help,
            labels,
            value: Value::Gauge(value),
        });
    }

    fn per<L: Label>(
        &mut self,
        of: &PerLabel<L>,
        base: &str,
        metric: &'static str,
        help: &'static str,
        labels: &Labels,
        key: &'static str,
    ) {
        for (label, value) in of.iter() {
            let mut labels = labels.clone();
            labels.push((key, label.label().to_owned()));
            self.counter(
                format!("{base}.{}", label.label()),
                metric,
                help,
                labels,
                value,
            );
        }
    }

    fn latency(
        &mut self,
        of: &Latency,
        name: String,
        metric: &'static str,
        help: &'static str,
        labels: Labels,
    ) {
        let (buckets, sum) = of.read();
        self.0.push(Stat {
            name,
            metric,
            help,
            labels,
            value: Value::Latency(buckets.to_vec(), sum),
        });
    }
}

/// The labels with one more.
fn with(labels: &Labels, name: &'static str, value: &str) -> Labels {
    let mut labels = labels.clone();
    labels.push((name, value.to_owned()));
    labels
}

type Labels = Vec<(&'static str, String)>;

fn server(agent: &Agent, list: &mut List) {
    let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let memory = crate::admin::memory::read();
    let c = &agent.control;
    let open: i64 = agent.ports.iter().map(|p| p.metrics.active.get()).sum();
    for (name, metric, help, value) in [
        (
            "server.live",
            "envoy_server_live",
            "1 while the agent serves and is not draining",
            i64::from(agent.ready.is_ready()),
        ),
        (
            "server.uptime",
            "envoy_server_uptime",
            "Seconds since the start",
            signed(agent.started.elapsed().as_secs()),
        ),
        (
            "server.concurrency",
            "envoy_server_concurrency",
            "Data-path worker threads",
            signed(agent.workers as u64),
        ),
        (
            "server.memory_physical_size",
            "envoy_server_memory_physical_size",
            "Resident memory in bytes",
            signed(memory.resident),
        ),
        (
            "server.memory_heap_size",
            "envoy_server_memory_heap_size",
            "Data segment in bytes",
            signed(memory.data),
        ),
        (
            "server.total_connections",
            "envoy_server_total_connections",
            "Open downstream connections",
            open,
        ),
        (
            "server.days_until_first_cert_expiring",
            "envoy_server_days_until_first_cert_expiring",
            "Whole days until the first certificate expires",
            agent.days_until_first_expiry(),
        ),
        (
            "traffic_agent.session.connected",
            "traffic_agent_session_connected",
            "1 while a session with the traffic-manager is alive",
            c.connected.get(),
        ),
        (
            "traffic_agent.intercepts",
            "traffic_agent_intercepts",
            "Intercepts in the last snapshot",
            c.intercepts.get(),
        ),
        (
            "traffic_agent.workstations",
            "traffic_agent_workstations",
            "Workstations attached directly",
            c.workstations.get(),
        ),
    ] {
        list.gauge(name.to_owned(), metric, help, Vec::new(), value);
    }
    for (name, metric, help, value) in [
        (
            "traffic_agent.session.arrivals",
            "traffic_agent_session_arrivals_total",
            "Sessions begun with the traffic-manager",
            c.arrivals.get(),
        ),
        (
            "traffic_agent.session.failures",
            "traffic_agent_session_failures_total",
            "Sessions lost or attempts failed",
            c.failures.get(),
        ),
        (
            "traffic_agent.session.snapshots",
            "traffic_agent_session_snapshots_total",
            "Intercept snapshots received",
            c.snapshots.get(),
        ),
        (
            "traffic_agent.session.reviews",
            "traffic_agent_session_reviews_total",
            "Reviews sent",
            c.reviews.get(),
        ),
        (
            "traffic_agent.session.dials",
            "traffic_agent_session_dials_total",
            "Connections dialled for workstations",
            c.dials.get(),
        ),
        (
            "traffic_agent.access_log_dropped",
            "traffic_agent_access_log_dropped_total",
            "Access log lines dropped because the reader stalled",
            access_log(agent).map_or(0, |log| log.dropped.get()),
        ),
        (
            "traffic_agent.session.denied",
            "traffic_agent_session_denied_total",
            "Calls of the agent's API refused for an unknown session",
            c.denied.get(),
        ),
        (
            "traffic_agent.session.lookups",
            "traffic_agent_session_lookups_total",
            "DNS questions answered",
            c.lookups.get(),
        ),
    ] {
        list.counter(name.to_owned(), metric, help, Vec::new(), value);
    }
    for cert in agent.certificates.certificates() {
        list.gauge(
            format!(
                "traffic_agent.port_{}.cert.{}.{}.seconds_until_expiry",
                cert.port,
                cert.role,
                cert.source.replace(['/', '.'], "_")
            ),
            "traffic_agent_certificate_seconds_until_expiry",
            "Seconds until a certificate expires; negative when it has",
            vec![
                ("port", cert.port.to_string()),
                ("source", cert.source.clone()),
                ("role", cert.role.to_owned()),
            ],
            cert.seconds_until_expiry,
        );
    }
}

fn port_stats(port: &PortContext, list: &mut List) {
    let m = &port.metrics;
    let prefix = format!("port_{}", port.container_port);
    let http = vec![("envoy_http_conn_manager_prefix", prefix.clone())];
    let base = format!("http.{prefix}");
    // Each is read once: requests arrive meanwhile, and what is read twice need not agree.
    let http1: u64 = m.http1_requests.iter().map(|(_, n)| n).sum();
    let http2: u64 = m.http2_requests.iter().map(|(_, n)| n).sum::<u64>() + m.http2_relayed.get();
    for (name, metric, help, value) in [
        (
            "downstream_cx_total",
            "envoy_http_downstream_cx_total",
            "Accepted connections",
            m.connections.get(),
        ),
        (
            "downstream_cx_rx_bytes_total",
            "envoy_http_downstream_cx_rx_bytes_total",
            "Bytes from callers",
            m.bytes_in.get(),
        ),
        (
            "downstream_cx_tx_bytes_total",
            "envoy_http_downstream_cx_tx_bytes_total",
            "Bytes to callers",
            m.bytes_out.get(),
        ),
        (
            "downstream_cx_ssl_total",
            "envoy_http_downstream_cx_ssl_total",
            "TLS connections terminated",
            m.tls_handshakes.get(),
        ),
        (
            "downstream_rq_total",
            "envoy_http_downstream_rq_total",
            "Requests",
            http1 + http2,
        ),
        (
            "downstream_rq_http1_total",
            "envoy_http_downstream_rq_http1_total",
            "HTTP/1 requests",
            http1,
        ),
        (
            "downstream_rq_http2_total",
            "envoy_http_downstream_rq_http2_total",
            "HTTP/2 requests",
            http2,
        ),
    ] {
        list.counter(format!("{base}.{name}"), metric, help, http.clone(), value);
    }
    list.gauge(
        format!("{base}.downstream_cx_active"),
        "envoy_http_downstream_cx_active",
        "Open connections",
        http.clone(),
        m.active.get(),
    );
    for class in Class::ALL {
        let mut labels = http.clone();
        labels.insert(
            0,
            ("envoy_response_code_class", class.label()[..1].to_owned()),
        );
        list.counter(
            format!("{base}.downstream_rq_{}", class.label()),
            "envoy_http_downstream_rq_xx",
            "Responses by class",
            labels,
            m.responses.at(*class).get(),
        );
    }
    upstream_stats(port, list);
    own_stats(port, list);
}

fn upstream_stats(port: &PortContext, list: &mut List) {
    let m = &port.metrics;
    let cluster = format!("app_{}", port.container_port);
    let labels = vec![("envoy_cluster_name", cluster.clone())];
    for (name, metric, help, value) in [
        (
            "upstream_cx_connect_fail",
            "envoy_cluster_upstream_cx_connect_fail",
            "Connections to the app that failed",
            m.app_connect_failures.get(),
        ),
        (
            "upstream_rq_total",
            "envoy_cluster_upstream_rq_total",
            "Requests to the app",
            m.http1_requests.at(Route::App).get()
                + m.http2_requests.at(Route::App).get()
                + m.http2_relayed.get(),
        ),
    ] {
        list.counter(
            format!("cluster.{cluster}.{name}"),
            metric,
            help,
            labels.clone(),
            value,
        );
    }
    let listener = format!("0.0.0.0_{}", port.agent_port);
    let labels = vec![("envoy_listener_address", listener.clone())];
    let failed: u64 = m.tls_failures.iter().map(|(_, n)| n).sum();
    for (name, metric, help, value) in [
        (
            "downstream_cx_total",
            "envoy_listener_downstream_cx_total",
            "Accepted connections",
            m.connections.get(),
        ),
        (
            "ssl.handshake",
            "envoy_listener_ssl_handshake",
            "TLS handshakes completed",
            m.tls_handshakes.get(),
        ),
        (
            "ssl.connection_error",
            "envoy_listener_ssl_connection_error",
            "TLS handshakes failed",
            failed,
        ),
    ] {
        list.counter(
            format!("listener.{listener}.{name}"),
            metric,
            help,
            labels.clone(),
            value,
        );
    }
}

fn own_stats(port: &PortContext, list: &mut List) {
    let m = &port.metrics;
    let base = format!("traffic_agent.port_{}", port.container_port);
    let labels = vec![("port", port.container_port.to_string())];
    let protocol = |p: &str| {
        let mut l = labels.clone();
        l.push(("protocol", p.to_owned()));
        l
    };
    list.per(
        &m.carried,
        &format!("{base}.connections"),
        "traffic_agent_connections_total",
        "Connections by protocol",
        &labels,
        "protocol",
    );
    list.per(
        &m.opaque,
        &format!("{base}.opaque"),
        "traffic_agent_opaque_total",
        "Opaque connections by reason",
        &labels,
        "reason",
    );
    list.per(
        &m.http1_requests,
        &format!("{base}.http1.requests"),
        "traffic_agent_requests_total",
        "Requests by protocol and route",
        &protocol("http1"),
        "route",
    );
    list.per(
        &m.http2_requests,
        &format!("{base}.http2.requests"),
        "traffic_agent_requests_total",
        "Requests by protocol and route",
        &protocol("http2"),
        "route",
    );
    list.per(
        &m.fail_open,
        &format!("{base}.fail_open"),
        "traffic_agent_fail_open_total",
        "Matched requests that failed open to the app, by reason",
        &labels,
        "reason",
    );
    list.per(
        &m.tls_failures,
        &format!("{base}.tls_failures"),
        "traffic_agent_tls_failures_total",
        "Failed TLS handshakes, with callers and with the app, by cause",
        &with(&labels, "peer", "caller"),
        "cause",
    );
    list.per(
        &m.app_tls_failures,
        &format!("{base}.app_tls_failures"),
        "traffic_agent_tls_failures_total",
        "Failed TLS handshakes, with callers and with the app, by cause",
        &with(&labels, "peer", "app"),
        "cause",
    );
    list.per(
        &m.limits,
        &format!("{base}.limits"),
        "traffic_agent_limits_total",
        "Limits hit",
        &labels,
        "limit",
    );
    list.per(
        &m.ended,
        &format!("{base}.ended"),
        "traffic_agent_connections_ended_total",
        "Connections by outcome",
        &labels,
        "how",
    );
    for (name, metric, help, value) in [
        (
            "http2.relayed",
            "traffic_agent_http2_relayed_total",
            "HTTP/2 requests relayed as frames",
            m.http2_relayed.get(),
        ),
        (
            "tunnels",
            "traffic_agent_tunnels_total",
            "Tunnels opened",
            m.tunnels.get(),
        ),
        (
            "tunnel_failures",
            "traffic_agent_tunnel_failures_total",
            "Tunnels that could not be opened or were lost",
            m.tunnel_failures.get(),
        ),
        (
            "self_connections",
            "traffic_agent_self_connections_total",
            "Connections that came from the agent itself",
            m.self_connections.get(),
        ),
        (
            "bytes_spliced",
            "traffic_agent_spliced_bytes_total",
            "Bytes of both directions that the kernel spliced",
            m.bytes_spliced.get(),
        ),
        (
            "datagrams_in",
            "traffic_agent_datagrams_received_total",
            "Datagrams from callers",
            m.datagrams_in.get(),
        ),
        (
            "datagrams_out",
            "traffic_agent_datagrams_sent_total",
            "Datagrams to callers",
            m.datagrams_out.get(),
        ),
    ] {
        list.counter(
            format!("{base}.{name}"),
            metric,
            help,
            labels.clone(),
            value,
        );
    }
    list.gauge(
        format!("{base}.tunnels_active"),
        "traffic_agent_tunnels_active",
        "Open tunnels",
        labels.clone(),
        m.tunnels_active.get(),
    );
    list.gauge(
        format!("{base}.udp_flows"),
        "traffic_agent_udp_flows",
        "Live UDP flows",
        labels.clone(),
        m.udp_flows.get(),
    );
    list.latency(
        &m.own_time,
        format!("{base}.own_time"),
        "traffic_agent_own_seconds",
        "Time the agent itself took for a request",
        labels.clone(),
    );
    list.latency(
        &m.upstream_time,
        format!("{base}.upstream_time"),
        "traffic_agent_upstream_seconds",
        "Time to the first byte of the upstream's response",
        labels,
    );
}

/// Returns the access log, which all ports share.
fn access_log(agent: &Agent) -> Option<&AccessLog> {
    agent
        .ports
        .iter()
        .find_map(|port| port.access.log.as_deref())
}

/// Sets every counter to zero.
pub fn reset(agent: &Agent) {
    for port in &agent.ports {
        port.metrics.reset();
    }
    agent.control.reset();
    if let Some(log) = access_log(agent) {
        log.dropped.reset();
    }
}

/// Converts to seconds: each bucket's bound with its own count, and the sum.
#[must_use]
pub fn in_seconds(buckets: &[u64], sum_us: u64) -> (Vec<(f64, u64)>, f64) {
    #[allow(clippy::cast_precision_loss)] // a sum of microseconds stays far below 2^52
    let seconds = |us: u64| us as f64 / 1e6;
    let bounds = LATENCY_BOUNDS_US
        .iter()
        .map(|us| seconds(*us))
        .chain([f64::INFINITY]);
    (
        bounds.zip(buckets.iter().copied()).collect(),
        seconds(sum_us),
    )
}
