//! Texts of the program: `--check`, `--help` and `status`.

use std::path::Path;
use std::process::{Command, Output};

use harness::programs;

fn run(args: &[&str], root: &Path) -> Output {
    let mut command = Command::new(programs::path("traffic-agent"));
    command
        .env_clear()
        .env("AGENT_ACCESS_LOG", "json")
        .env("AGENT_ACCESS_LOG_HEADERS", "x-dev");
    command.args(args).arg("--root").arg(root).output().unwrap()
}

const CONFIG: &str = "
agentName: shop
namespace: default
managerHost: traffic-manager.tools
managerPort: 8081
drain: {lameDuck: 3s, grace: 40s}
containers:
- name: app
  intercepts:
  - {containerPort: 8080, agentPort: 9900, protocol: TCP, appProtocol: http}
  - {containerPort: 8443, agentPort: 9901, protocol: TCP, targetPortNumeric: true}
  - {containerPort: 5432, agentPort: 9903, protocol: TCP, appProtocol: tcp}
  - {containerPort: 53, agentPort: 9904, protocol: UDP}
";

#[test]
fn a_check_says_what_would_happen() {
    let root = tempfile::tempdir().unwrap();
    let config = root.path().join("agent.yaml");
    std::fs::write(&config, CONFIG).unwrap();
    std::fs::create_dir_all(root.path().join("etc/podinfo")).unwrap();
    let annotation = "telepresence.io/downstream-tls-secret.8443=\"web\"\n";
    std::fs::write(root.path().join("etc/podinfo/annotations"), annotation).unwrap();
    let output = run(
        &["--check", "--config", config.to_str().unwrap()],
        root.path(),
    );
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success() && text.starts_with("OK\n"),
        "{text}"
    );
    for said in [
        "manager traffic-manager.tools:8081",
        "port 8080/TCP of app: callers arrive at 9900, the app is dialled at 127.0.0.1:8080\n    \
        protocol: http by declared",
        "port 8443/TCP of app: callers are redirected to 9901",
        "callers' is terminated with web (missing",
        "tcp by declared; relayed opaquely",
        "port 53/UDP of app",
        "admin: port 19000; on loopback only",
        "access log: json with the values of x-dev",
        "terminationGracePeriodSeconds has to be at least 44",
    ] {
        assert!(text.contains(said), "{said:?} is not in:\n{text}");
    }
}

#[test]
fn help_has_examples_every_variable_and_every_exit_code() {
    let root = tempfile::tempdir().unwrap();
    let output = run(&["--help"], root.path());
    let text = String::from_utf8(output.stdout).unwrap();
    let documents =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    for (name, meaning) in traffic_agent::app::settings::env::TABLE {
        assert!(
            text.contains(name) && text.contains(meaning.trim()),
            "{name}"
        );
        assert!(
            !name.starts_with("AGENT_") || documents.contains(name),
            "README.md does not name {name}"
        );
    }
    for said in [
        "Examples:",
        "traffic-agent --check",
        "\n  0   ",
        "\n  1   ",
        "\n  64  ",
        "\n  69  ",
        "\n  70  ",
    ] {
        assert!(text.contains(said), "{said:?} is not in:\n{text}");
    }
}

#[test]
fn a_status_without_an_agent_says_what_to_do() {
    let root = tempfile::tempdir().unwrap();
    let output = run(&["status"], root.path());
    assert_eq!(output.status.code(), Some(69));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        text.contains("tmp/agent/ports.json") && text.contains("--admin-port"),
        "{text}"
    );
}
