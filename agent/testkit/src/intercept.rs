//! Intercepts and the tables made of them.

use std::sync::Arc;
use std::time::Duration;

use traffic_core::routing::matcher::{Filters, HeaderFilter};
use traffic_core::routing::{Entry, Intercept, Mechanism, RouteTable, State};

/// An intercept named `name` of `dev@laptop` on these headers; without headers it takes the whole
/// port by mechanism `tcp`. Fields can be changed before it is put into a table.
pub fn intercept(name: &str, headers: &[(&str, &str)]) -> Intercept {
    let headers: Vec<_> = headers
        .iter()
        .map(|(name, value)| HeaderFilter::new(name, value))
        .collect();
    Intercept {
        id: format!("session:{name}"),
        name: name.to_owned(),
        client: "dev@laptop".to_owned(),
        client_session: "session".to_owned(),
        mechanism: if headers.is_empty() {
            Mechanism::Tcp
        } else {
            Mechanism::Http
        },
        wiretap: false,
        filters: Filters {
            headers,
            paths: Vec::new(),
            ..Filters::default()
        },
        plaintext: false,
        target_host: "127.0.0.1".to_owned(),
        target_port: 8080,
        roundtrip_latency: Duration::ZERO,
        dial_timeout: Duration::ZERO,
        metadata: std::collections::BTreeMap::new(),
        stats: Arc::default(),
    }
}

/// A wiretap named `name` on these headers; without headers it copies everything.
pub fn wiretap(name: &str, headers: &[(&str, &str)]) -> Intercept {
    Intercept {
        wiretap: true,
        ..intercept(name, headers)
    }
}

/// A table of one intercept.
pub fn table(intercept: Intercept, state: State) -> RouteTable {
    RouteTable::new(vec![entry(intercept, state)])
}

/// An intercept as an entry of a table.
pub fn entry(intercept: Intercept, state: State) -> Entry {
    Entry {
        intercept: Arc::new(intercept),
        state,
    }
}

/// A table whose only rule takes every connection of the port.
pub fn whole_port() -> RouteTable {
    table(intercept("whole", &[]), State::Active)
}
