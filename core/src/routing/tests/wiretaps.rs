use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::routing::matcher::{Filters, HeaderFilter};
use crate::routing::{Decision, Entry, Intercept, Mechanism, Request, RouteTable, State};

struct Sent(Vec<(&'static str, &'static str)>);

impl Request for Sent {
    fn method(&self) -> &[u8] {
        b"GET"
    }

    fn target(&self) -> &[u8] {
        b"/"
    }

    fn visit_headers<'a>(&'a self, visit: &mut dyn FnMut(&'a [u8], &'a [u8])) {
        self.0
            .iter()
            .for_each(|(n, v)| visit(n.as_bytes(), v.as_bytes()));
    }
}

fn rule(id: &str, wiretap: bool, header: Option<&str>) -> Entry {
    let intercept = Intercept {
        id: id.to_owned(),
        name: id.to_owned(),
        client: "dev@box".to_owned(),
        client_session: "s".to_owned(),
        mechanism: Mechanism::Http,
        wiretap,
        filters: Filters {
            headers: header
                .iter()
                .map(|v| HeaderFilter::new("x-dev", v))
                .collect(),
            ..Filters::default()
        },
        plaintext: false,
        target_host: String::new(),
        target_port: 1,
        roundtrip_latency: Duration::ZERO,
        dial_timeout: Duration::ZERO,
        metadata: BTreeMap::new(),
        stats: Arc::default(),
    };
    Entry {
        intercept: Arc::new(intercept),
        state: State::Active,
    }
}

fn routed(table: &RouteTable, value: &'static str) -> (String, Vec<String>) {
    let request = Sent(vec![("X-Dev", value)]);
    let routed = table.route_explained(&request);
    let ids = routed.wiretaps.iter().map(|w| w.id.clone()).collect();
    (routed.decision.to_string(), ids)
}

#[test]
fn every_wiretap_that_matches_gets_a_copy_whatever_the_target_is() {
    let table = RouteTable::new(vec![
        rule("t2", true, Some("a")),
        rule("i", false, Some("a")),
        rule("t1", true, None),
        rule("t3", true, Some("b")),
    ]);
    let all = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>();
    assert_eq!(routed(&table, "a"), ("client i".into(), all(&["t1", "t2"])));
    assert_eq!(routed(&table, "b"), ("app".into(), all(&["t1", "t3"])));
    assert_eq!(routed(&table, "c"), ("app".into(), all(&["t1"])));
    let probe = Sent(vec![("user-agent", "kube-probe/1.30")]);
    assert!(table.route_explained(&probe).wiretaps.is_empty());
}

#[test]
fn a_table_of_wiretaps_alone_is_read_and_takes_no_connection() {
    let table = RouteTable::new(vec![rule("t", true, None)]);
    assert!(!table.is_empty() && table.needs_requests());
    assert!(table.entries().is_empty() && table.global().is_none());
    assert_eq!(table.global_wiretaps().count(), 1);
    assert_eq!(table.rules().count(), 1);
    assert!(!table.has_filters());
    let filtered = RouteTable::new(vec![rule("t", true, Some("a"))]);
    assert!(filtered.has_filters() && filtered.global_wiretaps().next().is_none());
}

#[test]
fn misses_of_a_wiretap_are_its_own() {
    let table = RouteTable::new(vec![
        rule("t", true, Some("a")),
        rule("i", false, Some("b")),
    ]);
    for value in ["a", "b", "c"] {
        routed(&table, value);
    }
    let misses = |id: &str| {
        let entry = table.rules().find(|e| e.intercept.id == id).unwrap();
        table.misses(entry)
    };
    assert_eq!((misses("t"), misses("i")), (2, 2));
    let wiretap = table.rules().last().unwrap();
    let own = wiretap.intercept.stats.misses.load(Ordering::Relaxed);
    assert_eq!(own, 2);
}

#[test]
fn the_explanation_names_wiretaps_last_and_the_decision_is_without_them() {
    let table = RouteTable::new(vec![
        rule("a-tap", true, Some("a")),
        rule("i", false, Some("b")),
    ]);
    let request = Sent(vec![("x-dev", "a")]);
    let (decision, considered) = table.explain(&request);
    assert!(matches!(decision, Decision::App));
    let seen: Vec<_> = considered
        .iter()
        .map(|c| (c.name.as_str(), c.wiretap, c.matched))
        .collect();
    assert_eq!(seen, [("i", false, false), ("a-tap", true, true)]);
}
