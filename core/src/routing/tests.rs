mod wiretaps;

use super::*;
use crate::routing::matcher::{HeaderFilter, PathFilter};

struct Sample<'s>(&'s str, Vec<(&'s str, &'s str)>);

impl Request for Sample<'_> {
    fn method(&self) -> &[u8] {
        b"GET"
    }

    fn target(&self) -> &[u8] {
        self.0.as_bytes()
    }

    fn visit_headers<'a>(&'a self, visit: &mut dyn FnMut(&'a [u8], &'a [u8])) {
        self.1
            .iter()
            .for_each(|(n, v)| visit(n.as_bytes(), v.as_bytes()));
    }
}

fn entry(id: &str, headers: &[(&str, &str)], paths: &[&str], state: State) -> Entry {
    let filters = Filters {
        headers: headers
            .iter()
            .map(|(n, v)| HeaderFilter::new(n, v))
            .collect(),
        paths: paths
            .iter()
            .map(|p| PathFilter::parse(p).unwrap())
            .collect(),
        ..Filters::default()
    };
    let intercept = Intercept {
        id: id.to_owned(),
        name: id.to_owned(),
        client: "dev@box".to_owned(),
        client_session: "s".to_owned(),
        mechanism: Mechanism::Http,
        wiretap: false,
        filters,
        plaintext: false,
        target_host: "127.0.0.1".to_owned(),
        target_port: 8080,
        roundtrip_latency: Duration::ZERO,
        dial_timeout: Duration::ZERO,
        metadata: BTreeMap::new(),
        stats: Arc::default(),
    };
    Entry {
        intercept: Arc::new(intercept),
        state,
    }
}

fn decided(table: &RouteTable, target: &str, headers: &[(&str, &str)]) -> String {
    let request = Sample(target, headers.to_vec());
    let decision = table.decide(&request).to_string();
    let (explained, considered) = table.explain(&request);
    assert_eq!(
        explained.to_string(),
        decision,
        "explain has to agree with decide"
    );
    assert_eq!(considered.iter().any(|c| c.matched), decision != "app");
    decision
}

#[test]
fn headers_come_before_paths_before_global_before_expired_and_then_the_id_counts() {
    let table = RouteTable::new(vec![
        entry("d", &[], &[], State::Active),
        entry("c", &[], &[":path-prefix:/api"], State::Active),
        entry("b2", &[("x-dev", "a")], &[], State::Active),
        entry("b1", &[("x-dev", "^a")], &[], State::Active),
        entry("a", &[("x-old", "1")], &[], State::Expired),
    ]);
    assert_eq!(decided(&table, "/api", &[("x-dev", "a")]), "client b1");
    assert_eq!(decided(&table, "/api/v1", &[]), "client c");
    assert_eq!(decided(&table, "/", &[]), "client d");
    assert_eq!(
        decided(&table, "/", &[("user-agent", "kube-probe/1.30")]),
        "app"
    );
    let table = RouteTable::new(vec![entry("a", &[("x-old", "1")], &[], State::Expired)]);
    assert_eq!(decided(&table, "/", &[("x-old", "1")]), "expired a");
    assert_eq!(decided(&table, "/", &[]), "app");
    assert!(table.global().is_none() && table.has_filters());
}

#[test]
fn an_empty_table_sends_everything_to_the_app() {
    let table = RouteTable::default();
    assert!(table.is_empty() && !table.needs_requests() && !table.has_filters());
    assert_eq!(decided(&table, "/", &[("x-dev", "a")]), "app");
}

#[test]
fn fifty_intercepts_are_told_apart() {
    let entries = (0..50).map(|i| {
        entry(
            &format!("{i:02}"),
            &[("x-dev", &format!("dev-{i}"))],
            &[],
            State::Active,
        )
    });
    let table = RouteTable::new(entries.collect());
    for i in 0..50 {
        assert_eq!(
            decided(&table, "/", &[("X-Dev", &format!("dev-{i}"))]),
            format!("client {i:02}")
        );
    }
    assert_eq!(decided(&table, "/", &[("x-dev", "dev-50")]), "app");
}

proptest::proptest! {
    /// The explanation goes through all rules, one by one.
    #[test]
    fn the_index_finds_what_one_by_one_is_found(
        rules in proptest::collection::vec(
            (
                proptest::collection::vec((0..3_usize, 0..5_usize), 0..3),
                proptest::collection::vec(0..3_usize, 0..2),
                proptest::bool::ANY,
            ),
            0..12,
        ),
        lines in proptest::collection::vec((0..4_usize, 0..5_usize), 0..4),
        path in 0..3_usize,
    ) {
        const NAMES: [&str; 4] = ["x-dev", "x-env", "user-agent", "X-Dev"];
        const VALUES: [&str; 5] = ["a", "b", "a|b", "", "kube-probe/1"];
        const PATHS: [&str; 3] = ["/p", ":path-prefix:/", "/q"];
        let entries = rules.iter().enumerate().map(|(n, (headers, paths, expired))| {
            let headers: Vec<_> = headers.iter().map(|(n, v)| (NAMES[*n], VALUES[*v])).collect();
            let paths: Vec<_> = paths.iter().map(|p| PATHS[*p]).collect();
            let state = if *expired { State::Expired } else { State::Active };
            entry(&n.to_string(), &headers, &paths, state)
        });
        let table = RouteTable::new(entries.collect());
        let lines = lines.iter().map(|(n, v)| (NAMES[*n], VALUES[*v])).collect();
        let request = Sample(["/p", "/q", "/r"][path], lines);
        let one_by_one = table.explain(&request).0.to_string();
        proptest::prop_assert_eq!(table.decide(&request).to_string(), one_by_one);
    }
}

#[test]
fn misses_are_kept_when_a_table_takes_the_place_of_another() {
    let (a, b) = (
        entry("a", &[("x-dev", "a")], &[], State::Active),
        entry("b", &[("x-dev", "b")], &[], State::Active),
    );
    let table = RouteTable::new(vec![a.clone(), b.clone()]);
    for dev in ["a", "b", "c", "d"] {
        decided(&table, "/", &[("x-dev", dev)]);
    }
    let misses = |table: &RouteTable| [table.misses(&a), table.misses(&b)];
    assert_eq!(misses(&table), [3, 2]);
    drop(table);
    let next = RouteTable::new(vec![a.clone(), b.clone()]);
    assert_eq!(misses(&next), [3, 2]);
}

#[test]
fn the_explanation_names_the_first_clause_that_fails() {
    let table = RouteTable::new(vec![
        entry(
            "a",
            &[("x-dev", "a"), ("x-env", "t")],
            &["/p"],
            State::Active,
        ),
        entry("b", &[], &["/q", ":path-regex:z+"], State::Active),
    ]);
    let (_, considered) = table.explain(&Sample("/p", vec![("x-dev", "b")]));
    let failed: Vec<_> = considered
        .iter()
        .map(|c| c.failed.as_deref().unwrap_or("-"))
        .collect();
    assert_eq!(failed, ["header x-dev: a", "path /q or path regex z+"]);
    let (_, considered) = table.explain(&Sample("/x", vec![("x-dev", "a")]));
    assert_eq!(
        considered[0].failed.as_deref(),
        Some("header x-env: t (header absent)")
    );
}

#[test]
fn only_the_owner_of_an_intercept_may_ask_why() {
    let table = RouteTable::new(vec![entry("s:mine", &[("x-dev", "a")], &[], State::Active)]);
    let asks = |token: &str| {
        table
            .route_explained(&Sample("/", vec![("X-Traffic-Agent-Explain", token)]))
            .asks_why
    };
    assert!(asks("s:mine") && asks("s"));
    assert!(!asks("") && !asks("s:") && !asks("mine") && !asks("t"));
    assert!(!table.route_explained(&Sample("/", vec![])).asks_why);
    assert!(
        !RouteTable::default()
            .route_explained(&Sample("/", vec![("x-traffic-agent-explain", "s")]))
            .asks_why
    );
}

#[test]
fn the_budget_for_a_dial_is_bounded() {
    let mut e = Arc::into_inner(entry("a", &[], &[], State::Active).intercept).unwrap();
    assert_eq!(e.dial_budget(), Duration::from_secs(2));
    e.dial_timeout = Duration::from_secs(1);
    e.roundtrip_latency = Duration::from_millis(500);
    assert_eq!(e.dial_budget(), Duration::from_millis(1500));
    e.dial_timeout = Duration::from_secs(30);
    assert_eq!(e.dial_budget(), Duration::from_secs(5));
}
