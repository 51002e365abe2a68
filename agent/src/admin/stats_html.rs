//! `/stats` for browsers: a form for the filter, values in a table, and times by percentile.

use traffic_proto::html::{Column, Html, Table, escape};

use crate::admin::html::SITE;
use crate::admin::request::AdminRequest;
use crate::admin::stats::{Stat, Value};
use crate::telemetry::metrics::LATENCY_BOUNDS_US;

/// Shares of observations whose times are shown.
const PERCENTILES: [f64; 3] = [0.5, 0.9, 0.99];

/// Renders the statistics that were asked for.
#[must_use]
pub fn page(asked: &AdminRequest<'_>, stats: &[Stat]) -> String {
    let mut times = Table::new([
        Column::Text("Time"),
        Column::Number("Count"),
        Column::Number("Mean"),
        Column::Number("p50"),
        Column::Number("p90"),
        Column::Number("p99"),
    ]);
    let mut values = Table::new([Column::Text("Name"), Column::Number("Value")]);
    for stat in stats {
        let name = Html::text(&stat.name);
        match &stat.value {
            Value::Counter(n) => values.row([name, Html::from(*n)]),
            Value::Gauge(n) => values.row([name, Html(n.to_string())]),
            Value::Latency(buckets, sum) => {
                let count: u64 = buckets.iter().sum();
                let mean = sum.checked_div(count).map(time).unwrap_or_default();
                let [p50, p90, p99] =
                    PERCENTILES.map(|share| Html(percentile(buckets, share).unwrap_or_default()));
                times.row([name, Html::from(count), Html(mean), p50, p90, p99]);
            }
        }
    }
    let body = format!(
        "{}<h2>Times</h2>\n{}<h2>Values</h2>\n{}",
        form(asked),
        times.or("No times."),
        values.or("No values.")
    );
    SITE.page("Stats", None, &body)
}

/// Renders the form with the reason why its contents cannot be used.
#[must_use]
pub fn refused(asked: &AdminRequest<'_>, problem: &str) -> String {
    let body = format!("{}<p class='no'>{}</p>\n", form(asked), escape(problem));
    SITE.page("Stats", None, &body)
}

fn form(asked: &AdminRequest<'_>) -> String {
    let checked = if asked.params().any(|(name, _)| name == "usedonly") {
        " checked"
    } else {
        ""
    };
    format!(
        "<form action='/stats' method='get'>\n<label>names that match <input name='filter' size='24' placeholder='regex' value='{}'></label>\n\
         <label><input type='checkbox' name='usedonly' value=''{checked}> not zero</label>\n<button>show</button>\n</form>\n",
        escape(&asked.param("filter").unwrap_or_default())
    )
}

/// Formats the time below which a share of the observations stayed, in the middle of its bucket as
/// Prometheus takes it; `None` without observations.
#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss
)] // counts and bounds lie far below 2^52
fn percentile(buckets: &[u64], share: f64) -> Option<String> {
    let count: u64 = buckets.iter().sum();
    let rank = count as f64 * share;
    let mut below = 0;
    for (bucket, in_it) in buckets.iter().enumerate() {
        if *in_it > 0 && (below + in_it) as f64 >= rank {
            let lower = bucket.checked_sub(1).and_then(|b| LATENCY_BOUNDS_US.get(b));
            let lower = lower.copied().unwrap_or(0);
            let Some(upper) = LATENCY_BOUNDS_US.get(bucket) else {
                return Some(format!("> {}", time(lower)));
            };
            let part = (rank - below as f64) / *in_it as f64;
            let micros = lower as f64 + (upper - lower) as f64 * part;
            return Some(time(micros as u64));
        }
        below += in_it;
    }
    None
}

/// Formats microseconds.
fn time(micros: u64) -> String {
    match micros {
        0..1_000 => format!("{micros} µs"),
        1_000..1_000_000 => format!("{}.{} ms", micros / 1_000, micros % 1_000 / 100),
        _ => format!("{}.{} s", micros / 1_000_000, micros % 1_000_000 / 100_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_lie_inside_of_their_bucket() {
        let mut buckets = [0; LATENCY_BOUNDS_US.len() + 1];
        assert_eq!(percentile(&buckets, 0.5), None);
        // 100 to 250 µs, and 1 to 2.5 ms.
        (buckets[1], buckets[4]) = (80, 20);
        assert_eq!(percentile(&buckets, 0.4).as_deref(), Some("175 µs"));
        assert_eq!(percentile(&buckets, 0.9).as_deref(), Some("1.7 ms"));
        buckets[LATENCY_BOUNDS_US.len()] = 900;
        assert_eq!(percentile(&buckets, 0.99).as_deref(), Some("> 5.0 s"));
    }
}
