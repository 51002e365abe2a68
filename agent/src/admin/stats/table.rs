//! Tables of all metrics: a new one is a row here and a row in docs/operations.md.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{PortReading, access_log};
use crate::admin::{Agent, memory};
use crate::telemetry::metrics::{Class, Label, Latency, PerLabel, Route};
use traffic_core::routing::Intercept;

/// A metric of a source `S`: its names, and the way to its value.
pub(super) struct Metric<S: 'static> {
    /// Dotted name without the scope's prefix; `{}` stands for a label's value.
    pub(super) name: &'static str,
    /// Prometheus metric name.
    pub(super) metric: &'static str,
    /// Help text.
    pub(super) help: &'static str,
    /// Way to the value.
    pub(super) read: MetricValue<S>,
}

/// Kind of a metric, and the way from its source to its value.
pub(super) enum MetricValue<S: 'static> {
    /// A value that only grows.
    Counter(fn(&S) -> u64),
    /// A value that goes up and down.
    Gauge(fn(&S) -> i64),
    /// A histogram.
    Latency(fn(&S) -> &Latency),
    /// A counter for each value of the label `key`, beside labels of the metric's own.
    PerLabel {
        fixed: &'static [(&'static str, &'static str)],
        key: &'static str,
        read: fn(&S) -> Vec<(&'static str, u64)>,
    },
    /// A counter for each class of responses.
    PerClass(fn(&S) -> &PerLabel<Class>),
}

/// Prometheus name and help text of the gauge whose labels say what this program is.
pub(super) const BUILD: (&str, &str) = (
    "traffic_agent_build_info",
    "1, with the version, the commit and its date",
);

/// Prometheus name and help text of each certificate's gauge.
pub(super) const CERTIFICATE: (&str, &str) = (
    "traffic_agent_certificate_seconds_until_expiry",
    "Seconds until a certificate expires; negative when it has",
);

/// Metrics of the process, its memory and its control side.
pub(super) const SERVER: &[Metric<Agent>] = &[
    gauge(
        "server.live",
        "envoy_server_live",
        "1 while the agent serves and is not draining",
        |a| i64::from(a.ready.is_ready()),
    ),
    gauge(
        "server.uptime",
        "envoy_server_uptime",
        "Seconds since the start",
        |a| signed(a.started.elapsed().as_secs()),
    ),
    gauge(
        "server.concurrency",
        "envoy_server_concurrency",
        "Data-path worker threads",
        |a| signed(a.workers as u64),
    ),
    gauge(
        "server.memory_physical_size",
        "envoy_server_memory_physical_size",
        "Resident memory in bytes",
        |_| signed(memory::read().resident),
    ),
    gauge(
        "server.memory_heap_size",
        // Envoy's is what its allocator holds; without an own allocator the data segment comes
        // nearest.
        "envoy_server_memory_heap_size",
        "Data segment in bytes",
        |_| signed(memory::read().data),
    ),
    gauge(
        "server.total_connections",
        // Only open ones, whatever the name suggests: as Envoy counts.
        "envoy_server_total_connections",
        "Open downstream connections",
        |a| a.ports.iter().map(|p| p.metrics.active.get()).sum(),
    ),
    gauge(
        "server.days_until_first_cert_expiring",
        "envoy_server_days_until_first_cert_expiring",
        "Whole days until the first certificate expires",
        |a| a.days_until_first_expiry(),
    ),
    gauge(
        "traffic_agent.session.connected",
        "traffic_agent_session_connected",
        "1 while a session with the traffic-manager is alive",
        |a| a.control.connected.get(),
    ),
    gauge(
        "traffic_agent.intercepts",
        "traffic_agent_intercepts",
        "Intercepts in the last snapshot",
        |a| a.control.intercepts.get(),
    ),
    gauge(
        "traffic_agent.workstations",
        "traffic_agent_workstations",
        "Workstations attached directly",
        |a| a.control.workstations.get(),
    ),
    counter(
        "traffic_agent.session.arrivals",
        "traffic_agent_session_arrivals_total",
        "Sessions begun with the traffic-manager",
        |a| a.control.arrivals.get(),
    ),
    counter(
        "traffic_agent.session.failures",
        "traffic_agent_session_failures_total",
        "Sessions lost or attempts failed",
        |a| a.control.failures.get(),
    ),
    counter(
        "traffic_agent.session.snapshots",
        "traffic_agent_session_snapshots_total",
        "Intercept snapshots received",
        |a| a.control.snapshots.get(),
    ),
    counter(
        "traffic_agent.session.reviews",
        "traffic_agent_session_reviews_total",
        "Reviews sent",
        |a| a.control.reviews.get(),
    ),
    counter(
        "traffic_agent.session.reviews_again",
        "traffic_agent_session_reviews_again_total",
        "Reviews sent again because the traffic-manager had not taken them",
        |a| a.control.reviews_again.get(),
    ),
    counter(
        "traffic_agent.session.dials",
        "traffic_agent_session_dials_total",
        "Connections dialled for workstations",
        |a| a.control.dials.get(),
    ),
    counter(
        "traffic_agent.access_log_dropped",
        "traffic_agent_access_log_dropped_total",
        "Access log lines dropped because the reader stalled",
        // Without a log nothing is dropped, and the metric exists all the same.
        |a| access_log(a).map_or(0, |log| log.dropped()),
    ),
    counter(
        "traffic_agent.log_dropped",
        "traffic_agent_log_dropped_total",
        "Log lines dropped because the reader stalled",
        |a| a.log.dropped(),
    ),
    per_label(
        "traffic_agent.limits.{}",
        "traffic_agent_control_limits_total",
        "Times a limit around the data path was reached",
        &[],
        "limit",
        |a| values(&a.control.limits),
    ),
    counter(
        "traffic_agent.session.denied",
        "traffic_agent_session_denied_total",
        "Calls of the agent's API refused for an unknown session, or one that is not the caller's",
        |a| a.control.denied.get(),
    ),
    counter(
        "traffic_agent.session.lookups",
        "traffic_agent_session_lookups_total",
        "DNS questions answered",
        |a| a.control.lookups.get(),
    ),
];

/// Requests of a port, in Envoy's tree `http`.
pub(super) const HTTP: &[Metric<PortReading>] = &[
    counter(
        "downstream_cx_total",
        "envoy_http_downstream_cx_total",
        "Accepted connections",
        |p| p.port.metrics.connections.get(),
    ),
    counter(
        "downstream_cx_rx_bytes_total",
        "envoy_http_downstream_cx_rx_bytes_total",
        "Bytes from callers",
        |p| p.port.metrics.bytes_in.get(),
    ),
    counter(
        "downstream_cx_tx_bytes_total",
        "envoy_http_downstream_cx_tx_bytes_total",
        "Bytes to callers",
        |p| p.port.metrics.bytes_out.get(),
    ),
    counter(
        "downstream_cx_ssl_total",
        "envoy_http_downstream_cx_ssl_total",
        "TLS connections terminated",
        |p| p.port.metrics.tls_handshakes.get(),
    ),
    counter(
        "downstream_rq_total",
        "envoy_http_downstream_rq_total",
        "Requests",
        // The same two values as in the rows below, so that they add up in one scrape.
        |p| p.http1 + p.http2,
    ),
    counter(
        "downstream_rq_http1_total",
        "envoy_http_downstream_rq_http1_total",
        "HTTP/1 requests",
        |p| p.http1,
    ),
    counter(
        "downstream_rq_http2_total",
        "envoy_http_downstream_rq_http2_total",
        "HTTP/2 requests",
        |p| p.http2,
    ),
    gauge(
        "downstream_cx_active",
        "envoy_http_downstream_cx_active",
        "Open connections",
        |p| p.port.metrics.active.get(),
    ),
    per_class(
        "downstream_rq_{}",
        "envoy_http_downstream_rq_xx",
        "Responses by class",
        |p| &p.port.metrics.responses,
    ),
];

/// Connections and requests to a port's app, in Envoy's tree `cluster`.
pub(super) const CLUSTER: &[Metric<PortReading>] = &[
    counter(
        "upstream_cx_connect_fail",
        "envoy_cluster_upstream_cx_connect_fail",
        "Connections to the app that failed",
        |p| p.port.metrics.app_connect_failures.get(),
    ),
    counter(
        "upstream_rq_total",
        "envoy_cluster_upstream_rq_total",
        "Requests to the app",
        |p| {
            p.port.metrics.http1_requests.at(Route::App).get()
                + p.port.metrics.http2_requests.at(Route::App).get()
                + p.port.metrics.http2_relayed.get()
        },
    ),
];

/// Callers of a port, in Envoy's tree `listener`.
pub(super) const LISTENER: &[Metric<PortReading>] = &[
    counter(
        "downstream_cx_total",
        "envoy_listener_downstream_cx_total",
        "Accepted connections",
        |p| p.port.metrics.connections.get(),
    ),
    counter(
        "ssl.handshake",
        "envoy_listener_ssl_handshake",
        "TLS handshakes completed",
        |p| p.port.metrics.tls_handshakes.get(),
    ),
    counter(
        "ssl.connection_error",
        "envoy_listener_ssl_connection_error",
        "TLS handshakes failed",
        // Of callers alone: the listener is theirs.
        |p| p.port.metrics.tls_failures.iter().map(|(_, n)| n).sum(),
    ),
];

/// Metrics of one intercept.
pub(super) const INTERCEPT: &[Metric<Arc<Intercept>>] = &[
    counter(
        "hits",
        "traffic_agent_intercept_hits_total",
        "Requests, connections and flows that an intercept matched",
        |i| i.stats.hits.load(Ordering::Relaxed),
    ),
    counter(
        "failed_open",
        "traffic_agent_intercept_failed_open_total",
        "Requests, connections and flows that the app got because the workstation was not reached",
        |i| i.stats.failed_open.load(Ordering::Relaxed),
    ),
    counter(
        "copies_dropped",
        "traffic_agent_wiretap_copies_dropped_total",
        "Copies that a wiretap did not get whole",
        |i| i.stats.copies_dropped.load(Ordering::Relaxed),
    ),
];

/// Metrics of a port that Envoy has no names for.
pub(super) const PORT: &[Metric<PortReading>] = &[
    per_label(
        "connections.{}",
        "traffic_agent_connections_total",
        "Connections by protocol",
        &[],
        "protocol",
        |p| values(&p.port.metrics.carried),
    ),
    per_label(
        "opaque.{}",
        "traffic_agent_opaque_total",
        "Opaque connections by reason",
        &[],
        "reason",
        |p| values(&p.port.metrics.opaque),
    ),
    per_label(
        "http1.requests.{}",
        "traffic_agent_requests_total",
        "Requests by protocol and route",
        &[("protocol", "http1")],
        "route",
        |p| values(&p.port.metrics.http1_requests),
    ),
    per_label(
        "http2.requests.{}",
        "traffic_agent_requests_total",
        "Requests by protocol and route",
        &[("protocol", "http2")],
        "route",
        |p| values(&p.port.metrics.http2_requests),
    ),
    per_label(
        "fail_open.{}",
        "traffic_agent_fail_open_total",
        "Matched requests that failed open to the app, by reason",
        &[],
        "reason",
        |p| values(&p.port.metrics.fail_open),
    ),
    per_label(
        "wiretap.copies.{}",
        "traffic_agent_wiretap_copies_total",
        "Copies for wiretaps, by end",
        &[],
        "end",
        |p| values(&p.port.metrics.copies),
    ),
    per_label(
        "tls_failures.{}",
        "traffic_agent_tls_failures_total",
        "Failed TLS handshakes, with callers and with the app, by cause",
        &[("peer", "caller")],
        "cause",
        |p| values(&p.port.metrics.tls_failures),
    ),
    per_label(
        "app_tls_failures.{}",
        "traffic_agent_tls_failures_total",
        "Failed TLS handshakes, with callers and with the app, by cause",
        &[("peer", "app")],
        "cause",
        |p| values(&p.port.metrics.app_tls_failures),
    ),
    per_label(
        "limits.{}",
        "traffic_agent_limits_total",
        "Limits hit",
        &[],
        "limit",
        |p| values(&p.port.metrics.limits),
    ),
    per_label(
        "ended.{}",
        "traffic_agent_connections_ended_total",
        "Connections by outcome",
        &[],
        "how",
        |p| values(&p.port.metrics.ended),
    ),
    counter(
        "http2.relayed",
        "traffic_agent_http2_relayed_total",
        "HTTP/2 requests relayed as frames",
        |p| p.port.metrics.http2_relayed.get(),
    ),
    counter(
        "http2.goaways",
        "traffic_agent_http2_goaways_total",
        "HTTP/2 connections asked to come again for a rule to hold",
        |p| p.port.metrics.http2_goaways.get(),
    ),
    counter(
        "tunnels",
        "traffic_agent_tunnels_total",
        "Tunnels opened",
        |p| p.port.metrics.tunnels.get(),
    ),
    counter(
        "tunnel_failures",
        "traffic_agent_tunnel_failures_total",
        "Tunnels that could not be opened or were lost",
        |p| p.port.metrics.tunnel_failures.get(),
    ),
    counter(
        "self_connections",
        "traffic_agent_self_connections_total",
        "Connections that came from the agent itself",
        |p| p.port.metrics.self_connections.get(),
    ),
    counter(
        "bytes_spliced",
        "traffic_agent_spliced_bytes_total",
        "Bytes of both directions that the kernel spliced",
        |p| p.port.metrics.bytes_spliced.get(),
    ),
    counter(
        "datagrams_in",
        "traffic_agent_datagrams_received_total",
        "Datagrams from callers",
        |p| p.port.metrics.datagrams_in.get(),
    ),
    counter(
        "datagrams_out",
        "traffic_agent_datagrams_sent_total",
        "Datagrams to callers",
        |p| p.port.metrics.datagrams_out.get(),
    ),
    gauge(
        "tunnels_active",
        "traffic_agent_tunnels_active",
        "Open tunnels",
        |p| p.port.metrics.tunnels_active.get(),
    ),
    gauge(
        "udp_flows",
        "traffic_agent_udp_flows",
        "Live UDP flows",
        |p| p.port.metrics.udp_flows.get(),
    ),
    latency(
        "own_time",
        "traffic_agent_own_seconds",
        "Time the agent itself took for a request",
        |p| &p.port.metrics.own_time,
    ),
    latency(
        "upstream_time",
        "traffic_agent_upstream_seconds",
        "Time to the first byte of the upstream's response",
        |p| &p.port.metrics.upstream_time,
    ),
];

const fn counter<S>(
    name: &'static str,
    metric: &'static str,
    help: &'static str,
    read: fn(&S) -> u64,
) -> Metric<S> {
    Metric {
        name,
        metric,
        help,
        read: MetricValue::Counter(read),
    }
}

const fn gauge<S>(
    name: &'static str,
    metric: &'static str,
    help: &'static str,
    read: fn(&S) -> i64,
) -> Metric<S> {
    Metric {
        name,
        metric,
        help,
        read: MetricValue::Gauge(read),
    }
}

const fn latency<S>(
    name: &'static str,
    metric: &'static str,
    help: &'static str,
    read: fn(&S) -> &Latency,
) -> Metric<S> {
    Metric {
        name,
        metric,
        help,
        read: MetricValue::Latency(read),
    }
}

const fn per_class<S>(
    name: &'static str,
    metric: &'static str,
    help: &'static str,
    read: fn(&S) -> &PerLabel<Class>,
) -> Metric<S> {
    Metric {
        name,
        metric,
        help,
        read: MetricValue::PerClass(read),
    }
}

const fn per_label<S>(
    name: &'static str,
    metric: &'static str,
    help: &'static str,
    fixed: &'static [(&'static str, &'static str)],
    key: &'static str,
    read: fn(&S) -> Vec<(&'static str, u64)>,
) -> Metric<S> {
    Metric {
        name,
        metric,
        help,
        read: MetricValue::PerLabel { fixed, key, read },
    }
}

fn values<L: Label>(of: &PerLabel<L>) -> Vec<(&'static str, u64)> {
    of.iter().map(|(label, n)| (label.label(), n)).collect()
}

fn signed(n: u64) -> i64 {
    // Nothing that is measured here comes near the limit.
    i64::try_from(n).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
