//! Statistics in the OpenMetrics text format, written by the Prometheus project's own encoder.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use crate::admin::request::Page;
use crate::admin::stats::{Stat, Value, in_seconds};

/// Content type of [`render`]'s text, served to clients that accept it.
pub const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Answers a scrape in the format that its `Accept` header asks for.
#[must_use]
pub fn page(stats: Vec<Stat>, accept: &str) -> Page {
    let (rendered, content_type) = if accept.contains("application/openmetrics-text") {
        (render(stats), OPEN_METRICS)
    } else {
        (render_plain(stats), "text/plain; charset=UTF-8")
    };
    match rendered {
        Ok(body) => Page {
            status: 200,
            content_type,
            body,
        },
        Err(_) => Page::text(500, "the statistics could not be written\n".to_owned()),
    }
}

/// Renders `stats`, families in name order.
///
/// # Errors
/// Never in practice: only when the encoder cannot write to a string.
pub fn render(stats: Vec<Stat>) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Families::of(stats)));
    let mut out = String::with_capacity(16 * 1024);
    text::encode(&mut out, &registry)?;
    Ok(out)
}

/// Renders the older Prometheus text format (0.0.4), which Envoy serves: types stand before the
/// full sample name, and what OpenMetrics calls unknown are Envoy's counters.
///
/// # Errors
/// As [`render`].
pub fn render_plain(stats: Vec<Stat>) -> Result<String, std::fmt::Error> {
    let open = render(stats)?;
    let mut out = String::with_capacity(open.len() + 1024);
    let mut help: Option<(&str, &str)> = None;
    for line in open.lines() {
        if let Some((name, text)) = line.strip_prefix("# HELP ").and_then(|l| l.split_once(' ')) {
            help = Some((name, text));
        } else if let Some((name, kind)) =
            line.strip_prefix("# TYPE ").and_then(|l| l.split_once(' '))
        {
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "unknown" => ("", "counter"),
                other => ("", other),
            };
            if let Some((_, text)) = help.take() {
                let _ = writeln!(out, "# HELP {name}{suffix} {text}");
            }
            let _ = writeln!(out, "# TYPE {name}{suffix} {kind}");
        } else if line != "# EOF" {
            let _ = writeln!(out, "{line}");
        }
    }
    Ok(out)
}

#[derive(Debug)]
struct Families(BTreeMap<&'static str, Vec<Stat>>);

impl Families {
    fn of(stats: Vec<Stat>) -> Self {
        let mut families: BTreeMap<&'static str, Vec<Stat>> = BTreeMap::new();
        for stat in stats {
            families.entry(stat.metric).or_default().push(stat);
        }
        Self(families)
    }
}

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        for (metric, members) in &self.0 {
            let Some(first) = members.first() else {
                continue;
            };
            let (name, kind) = typed_name(metric, &first.value);
            let mut family = encoder.encode_descriptor(name, first.help, None, kind)?;
            for stat in members {
                let labels: Vec<(&str, &str)> =
                    stat.labels.iter().map(|(k, v)| (*k, v.as_str())).collect();
                Sample {
                    value: &stat.value,
                    counter: matches!(kind, MetricType::Counter),
                }
                .encode(family.encode_family(&labels.as_slice())?)?;
            }
        }
        Ok(())
    }
}

/// Returns name and type: OpenMetrics wants counters to end in `_total`, and the encoder appends
/// it. Envoy's counters without that suffix keep their name and are declared as unknown type, which
/// every dashboard accepts.
fn typed_name<'a>(metric: &'a str, value: &Value) -> (&'a str, MetricType) {
    match value {
        Value::Counter(_) => metric
            .strip_suffix("_total")
            .map_or((metric, MetricType::Unknown), |name| {
                (name, MetricType::Counter)
            }),
        Value::Gauge(_) => (metric, MetricType::Gauge),
        Value::Latency(..) => (metric, MetricType::Histogram),
    }
}

struct Sample<'a> {
    value: &'a Value,
    counter: bool,
}

impl EncodeMetric for Sample<'_> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        match self.value {
            Value::Counter(n) if self.counter => {
                encoder.encode_counter::<NoLabelSet, u64, f64>(n, None)
            }
            Value::Counter(n) => encoder.encode_gauge(&i64::try_from(*n).unwrap_or(i64::MAX)),
            Value::Gauge(n) => encoder.encode_gauge(n),
            Value::Latency(buckets, sum) => {
                let (buckets, sum) = in_seconds(buckets, *sum);
                let count = buckets.iter().map(|(_, n)| n).sum();
                encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
            }
        }
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Unknown
    }
}
