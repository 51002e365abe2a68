//! All values that can be read from outside, as one list: dotted names in Envoy's tree for
//! `/stats`, metric names with labels for Prometheus. Values with Envoy's meaning have Envoy's
//! name.

use std::sync::Arc;

use crate::admin::Agent;
use crate::proxy::context::PortContext;
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::metrics::{LATENCY_BOUNDS_US, Label};
use crate::upstream::Transport;
use traffic_core::routing::Intercept;
use traffic_proto::build_info;

mod table;

use table::{
    BUILD, CERTIFICATE, CLUSTER, HTTP, INTERCEPT, LISTENER, Metric, MetricValue, PORT, SERVER,
};

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
    let server = Scope {
        prefix: String::new(),
        labels: Vec::new(),
    };
    list.add(&server, SERVER, agent);
    list.add_build();
    list.add_certificates(agent);
    for port in &agent.ports {
        list.add_port(port);
    }
    list.0
}

type Labels = Vec<(&'static str, String)>;

/// The subject of a table's metrics: a prefix of dotted names, and the labels of all of them.
struct Scope {
    prefix: String,
    labels: Labels,
}

/// A port with its requests by protocol.
struct PortReading {
    port: Arc<PortContext>,
    http1: u64,
    http2: u64,
}

impl PortReading {
    fn of(port: &Arc<PortContext>) -> Self {
        let m = &port.metrics;
        // Each is read once: requests arrive meanwhile, and what is read twice need not agree.
        let http1 = m.http1_requests.iter().map(|(_, n)| n).sum();
        let routed: u64 = m.http2_requests.iter().map(|(_, n)| n).sum();
        Self {
            port: Arc::clone(port),
            http1,
            http2: routed + m.http2_relayed.get(),
        }
    }
}

struct List(Vec<Stat>);

impl List {
    fn add_port(&mut self, port: &Arc<PortContext>) {
        let reading = PortReading::of(port);
        let (container, agent) = (port_name(port), port.agent_port);
        let of = |tree: &str, label, value: String| Scope {
            prefix: format!("{tree}.{value}."),
            labels: vec![(label, value)],
        };
        let http = of(
            "http",
            "envoy_http_conn_manager_prefix",
            format!("port_{container}"),
        );
        let cluster = of("cluster", "envoy_cluster_name", format!("app_{container}"));
        let listener = of(
            "listener",
            "envoy_listener_address",
            match port.transport {
                Transport::Tcp => format!("0.0.0.0_{agent}"),
                Transport::Udp => format!("0.0.0.0_{agent}_udp"),
            },
        );
        let own = Scope {
            prefix: format!("traffic_agent.port_{container}."),
            labels: vec![
                ("port", port.container_port.to_string()),
                ("transport", port.transport.word().to_owned()),
            ],
        };
        for entry in port.routes.load_full().rules() {
            self.add_intercept(&own, &entry.intercept);
        }
        self.add(&http, HTTP, &reading);
        self.add(&cluster, CLUSTER, &reading);
        self.add(&listener, LISTENER, &reading);
        self.add(&own, PORT, &reading);
    }

    fn add_intercept(&mut self, port: &Scope, intercept: &Arc<Intercept>) {
        let mut labels = port.labels.clone();
        labels.push(("intercept", intercept.id.clone()));
        labels.push(("name", intercept.name.clone()));
        let id = intercept.id.replace(['.', ':'], "_");
        let scope = Scope {
            prefix: format!("{}intercept.{id}.", port.prefix),
            labels,
        };
        self.add(&scope, INTERCEPT, intercept);
    }

    /// Adds the values of one table's metrics.
    fn add<S>(&mut self, scope: &Scope, metrics: &[Metric<S>], source: &S) {
        for metric in metrics {
            self.add_metric(scope, metric, source);
        }
    }

    fn add_metric<S>(&mut self, scope: &Scope, metric: &Metric<S>, source: &S) {
        let mut push = |name: &str, labels: Labels, value| {
            self.0.push(Stat {
                name: format!("{}{name}", scope.prefix),
                metric: metric.metric,
                help: metric.help,
                labels,
                value,
            });
        };
        let labels = || scope.labels.clone();
        match metric.read {
            MetricValue::Counter(read) => push(metric.name, labels(), Value::Counter(read(source))),
            MetricValue::Gauge(read) => push(metric.name, labels(), Value::Gauge(read(source))),
            MetricValue::Latency(read) => {
                let (buckets, sum) = read(source).read();
                push(metric.name, labels(), Value::Latency(buckets.to_vec(), sum));
            }
            MetricValue::PerLabel { fixed, key, read } => {
                for (label, value) in read(source) {
                    let mut all = labels();
                    all.extend(fixed.iter().map(|&(name, value)| (name, value.to_owned())));
                    all.push((key, label.to_owned()));
                    push(
                        &metric.name.replace("{}", label),
                        all,
                        Value::Counter(value),
                    );
                }
            }
            MetricValue::PerClass(read) => {
                for (class, value) in read(source).iter() {
                    let label = class.label();
                    // Envoy's label is the digit alone, and comes first.
                    let mut all = vec![("envoy_response_code_class", label[..1].to_owned())];
                    all.extend(labels());
                    push(
                        &metric.name.replace("{}", label),
                        all,
                        Value::Counter(value),
                    );
                }
            }
        }
    }

    fn add_build(&mut self) {
        let labels = [
            ("version", build_info::VERSION),
            ("commit", build_info::COMMIT),
            ("date", build_info::DATE),
        ];
        self.0.push(Stat {
            name: "traffic_agent.build_info".to_owned(),
            metric: BUILD.0,
            help: BUILD.1,
            labels: labels.map(|(key, value)| (key, value.to_owned())).to_vec(),
            value: Value::Gauge(1),
        });
    }

    fn add_certificates(&mut self, agent: &Agent) {
        for cert in agent.certificates.certificates() {
            let source = cert.source.replace(['/', '.'], "_");
            self.0.push(Stat {
                name: format!(
                    "traffic_agent.port_{}.cert.{}.{source}.seconds_until_expiry",
                    cert.port, cert.role,
                ),
                metric: CERTIFICATE.0,
                help: CERTIFICATE.1,
                labels: vec![
                    ("port", cert.port.to_string()),
                    ("source", cert.source.clone()),
                    ("role", cert.role.to_owned()),
                ],
                value: Value::Gauge(cert.seconds_until_expiry),
            });
        }
    }
}

/// Returns the port's number as it stands in names: a pod may have it for TCP and for UDP.
pub(crate) fn port_name(port: &PortContext) -> String {
    match port.transport {
        Transport::Tcp => port.container_port.to_string(),
        Transport::Udp => format!("{}_udp", port.container_port),
    }
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
