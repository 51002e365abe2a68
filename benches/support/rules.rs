//! Tables of rules that do not match the sample requests.

#![allow(dead_code, unreachable_pub)]

use std::sync::Arc;
use std::time::Duration;

use traffic_core::routing::matcher::{Filters, HeaderFilter};
use traffic_core::routing::{Entry, Intercept, Mechanism, RouteTable, State};

/// A rule named `id`.
pub fn rule(id: &str, filters: Filters, mechanism: Mechanism) -> Entry {
    let intercept = Intercept {
        id: id.to_owned(),
        name: id.to_owned(),
        client: "dev@bench".to_owned(),
        client_session: "session".to_owned(),
        mechanism,
        wiretap: false,
        filters,
        plaintext: true,
        target_host: "127.0.0.1".to_owned(),
        target_port: 8080,
        roundtrip_latency: Duration::ZERO,
        dial_timeout: Duration::ZERO,
        metadata: std::collections::BTreeMap::new(),
        stats: Arc::default(),
    };
    Entry {
        intercept: Arc::new(intercept),
        state: State::Active,
    }
}

/// A table of one rule with a filter as it stands on the wire.
pub fn structured(name: &str, value: &str) -> RouteTable {
    let mut filters = Filters::default();
    filters.add(name, value).expect("a known filter");
    RouteTable::new(vec![rule("session:rule", filters, Mechanism::Http)])
}

/// `n` rules on `x-dev`, with exact values or regexes.
pub fn table(n: usize, regex: bool) -> RouteTable {
    let entries = (0..n).map(|i| {
        let value = if regex {
            format!("^dev-{i}-(alice|bob)$")
        } else {
            format!("developer{i}")
        };
        let filters = Filters {
            headers: vec![HeaderFilter::new("x-dev", &value)],
            paths: Vec::new(),
            ..Filters::default()
        };
        rule(&format!("session:rule{i:02}"), filters, Mechanism::Http)
    });
    RouteTable::new(entries.collect())
}
