//! The manager's page, as `intercept dashboard` opens it beside the cluster.

use std::process::Command;

use cluster_tests::{Cluster, Manager, Workload, Workstation};
use harness::process::Process;
use serde_json::json;

use super::life::has_agent;

fn fetch(url: &str) -> String {
    let mut curl = Command::new("curl");
    let output = curl
        .args(["-sS", "--max-time", "60", url])
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// Rows of the page's tables, without their markup.
fn rows(page: &str) -> Vec<String> {
    let plain = |row: &str| -> String {
        let texts = row
            .split('<')
            .map(|it| it.split_once('>').map_or(it, |it| it.1));
        texts
            .filter(|it| !it.trim().is_empty())
            .collect::<Vec<_>>()
            .join(" ")
    };
    page.split("<tr").skip(1).map(plain).collect()
}

#[test]
fn the_dashboard_shows_who_intercepts_what_and_what_the_webhook_said() {
    let cluster = Cluster::shared();
    let (home, namespace) = (cluster.namespace("manager"), cluster.namespace("shown"));
    let manager = Manager::install(&home, &[&namespace], &json!({}));
    Workload::new("Deployment", "web", 1, "http").start(&namespace);
    let workstation = Workstation::new(&manager);
    let served = workstation.intercept(namespace.name(), "web", &[]);
    namespace.settled("web", 1, has_agent);
    // By now the API server asks the webhook about each pod.
    Workload::new("Deployment", "odd", 1, "http")
        .annotated("telepresence.io/inject-traffic-agent", "enabled")
        .annotated("telepresence.io/inject-service-name", "nobody")
        .start(&namespace);
    Workload::new("Deployment", "plain", 1, "http").start(&namespace);
    namespace.settled("odd", 1, |pod| !has_agent(pod));

    let dashboard = Process::start("dashboard", &mut workstation.command(&["dashboard"]));
    let line = dashboard.line("http://127.0.0.1:");
    let url = &line[line.find("http://").unwrap()..];
    let page = fetch(url.trim());
    let rows = rows(&page);
    for words in [
        &[served.name(), "web", "x-dev"][..],
        &["web-", namespace.name(), "injected"],
        &["odd-", namespace.name(), "refused", "no such Service"],
        &["plain-", namespace.name(), "skipped"],
    ] {
        let fits = |row: &&String| words.iter().all(|it| row.contains(it));
        assert!(rows.iter().any(|row| fits(&row)), "{words:?}: {rows:#?}");
    }
    assert!(page.contains("workloads with an agent"), "{page}");
    assert!(dashboard.is_running());
    dashboard.terminate();
    served.leave();
}
