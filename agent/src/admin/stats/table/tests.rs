use super::*;
use std::collections::BTreeSet;

/// Dotted names with their fixed labels, and Prometheus names.
fn names<S>(scope: &str, metrics: &[Metric<S>]) -> Vec<(String, &'static str, &'static str)> {
    let name = |m: &Metric<S>| (format!("{scope} {}", m.name), m.metric, m.help);
    metrics.iter().map(name).collect()
}

fn all() -> Vec<(String, &'static str, &'static str)> {
    let mut all = names("server", SERVER);
    all.extend(names("http", HTTP));
    all.extend(names("cluster", CLUSTER));
    all.extend(names("listener", LISTENER));
    all.extend(names("port", PORT));
    all.extend(names("intercept", INTERCEPT));
    all.push(("certificate".to_owned(), CERTIFICATE.0, CERTIFICATE.1));
    all.push(("build".to_owned(), BUILD.0, BUILD.1));
    all
}

#[test]
fn the_operations_page_lists_exactly_these_metrics() {
    let page = include_str!("../../../../../docs/operations.md");
    let words: BTreeSet<&str> = page
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("traffic_agent_") || word.starts_with("envoy_"))
        .collect();
    let metrics: BTreeSet<&str> = all().iter().map(|(_, metric, _)| *metric).collect();
    let missing: Vec<_> = metrics.difference(&words).collect();
    assert!(missing.is_empty(), "docs/operations.md lacks {missing:?}");
    let labels = [
        "envoy_cluster_name",
        "envoy_http_conn_manager_prefix",
        "envoy_listener_address",
        "envoy_response_code_class",
    ];
    let unknown: Vec<_> = words
        .difference(&metrics)
        .filter(|word| !labels.contains(word))
        .collect();
    assert!(unknown.is_empty(), "docs/operations.md has {unknown:?}");
}

#[test]
fn each_name_is_there_once_and_each_family_has_one_help_text() {
    let (mut seen, mut help) = (BTreeSet::new(), std::collections::BTreeMap::new());
    for (name, metric, text) in all() {
        assert!(seen.insert(name.clone()), "{name} twice");
        assert_eq!(*help.entry(metric).or_insert(text), text, "{metric}");
    }
}
