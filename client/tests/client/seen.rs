//! What a user sees of a running intercept: `status`, `list`, a terminal, JSON, the manager's page.

use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use harness::apps::App;
use harness::process::Process;
use harness::wait::WAIT_TIMEOUT;
use serde_json::Value;
use traffic_proto::manager::{InterceptDispositionType as Disposition, TunnelMetrics};

use crate::fixture::{Agent, Manager};

/// The client, with a folder of its own for what runs.
fn intercept(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_intercept"));
    command.args(arguments).env("XDG_RUNTIME_DIR", folder);
    command
}

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// An agent's word that the workstation got 7 requests, and the app 2.
async fn report(agent: &mut Agent, id: &str) {
    let report = TunnelMetrics {
        intercept_id: id.to_owned(),
        agent_session_id: agent.session.session_id.clone(),
        hits: 7,
        failed_open: 2,
        ..TunnelMetrics::default()
    };
    agent.manager.report_metrics(report).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn status_and_list_tell_session_tunnels_requests_and_failures() {
    let manager = Manager::start().await;
    let mut agent = manager.agent().await;
    let (app, folder) = (App::start("local"), tempfile::tempdir().unwrap());
    let address = manager.address.to_string();
    let none = said(&intercept(folder.path(), &["status"]).output().unwrap());
    assert!(
        none.starts_with("No intercept runs on this machine"),
        "{none}"
    );
    let port = format!("--port={}:80", app.address().port());
    let create = [
        "create",
        "one",
        "--workload=app",
        "--client=dev@laptop",
        "--manager",
        &address,
        &port,
    ];
    let client = Process::start("intercept", &mut intercept(folder.path(), &create));
    let info = agent.review(Disposition::Active, "").await;
    client.line("state=ACTIVE");
    report(&mut agent, &info.id).await;
    let began = Instant::now();
    let text = loop {
        let text = said(&intercept(folder.path(), &["status"]).output().unwrap());
        if text.contains("7 came here, 2 went to the app") {
            break text;
        }
        assert!(began.elapsed() < WAIT_TIMEOUT, "{text}");
    };
    for part in [
        "one  ACTIVE\n",
        "  workload  app in namespace default\n",
        &format!("  session   connected to {address} for "),
        &format!("  tunnels   0 open, 0 so far, to {}\n", app.address()),
        "  failures  none\n",
    ] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    let json = said(
        &intercept(folder.path(), &["status", "--output=json"])
            .output()
            .unwrap(),
    );
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (json[0]["hits"].as_u64(), json[0]["pid"].as_u64()),
        (Some(7), Some(client.pid().into()))
    );
    let list = ["list", "--manager", &address, "--client=dev@laptop"];
    let list = said(&intercept(folder.path(), &list).output().unwrap());
    assert!(
        list.contains("requests  7 so far, and 2 went to the app"),
        "{list}"
    );
    let lines: Vec<_> = list.lines().collect();
    assert!(
        lines[0].starts_with("one (yours)  ACTIVE") && lines.len() > 4,
        "{list}"
    );
    let json = ["list", "--output=json", "--manager", &address];
    let json = said(&intercept(folder.path(), &json).output().unwrap());
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json[0]["hits"].as_u64(), Some(7));
    assert!(
        !list.contains('\u{1b}'),
        "colours without a terminal: {list:?}"
    );
    // One that was killed is not told of any more.
    client.kill();
    client.exit();
    let none = said(&intercept(folder.path(), &["status"]).output().unwrap());
    assert!(none.starts_with("No intercept runs"), "{none}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_shows_the_counts_below_the_lines() {
    let manager = Manager::start().await;
    let mut agent = manager.agent().await;
    let (app, folder) = (App::start("local"), tempfile::tempdir().unwrap());
    let create = format!(
        "exec {} create one --workload=app --client=dev@laptop --manager {} --port={}:80",
        env!("CARGO_BIN_EXE_intercept"),
        manager.address,
        app.address().port()
    );
    let mut terminal = Command::new("script")
        .args(["-qefc", &create, "/dev/null"])
        .env("XDG_RUNTIME_DIR", folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = terminal.stdout.take().unwrap();
    let (pieces_tx, pieces_rx) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut piece = [0; 4096];
        while let Ok(read @ 1..) = out.read(&mut piece) {
            let _ = pieces_tx.send(piece[..read].to_vec());
        }
    });
    let info = agent.review(Disposition::Active, "").await;
    report(&mut agent, &info.id).await;
    let mut shown = String::new();
    let footer = "7 requests here · 2 to the app · 0 open · 0 failed";
    while !shown.contains(footer) {
        let piece = pieces_rx.recv_timeout(WAIT_TIMEOUT);
        let piece = piece.unwrap_or_else(|_| panic!("no {footer:?} in {shown:?}"));
        shown.push_str(&String::from_utf8_lossy(&piece));
    }
    assert!(shown.contains("Press Ctrl-C to leave"), "{shown:?}");
    // The last line is renewed in its place.
    assert!(shown.contains(&format!("\r\u{1b}[K{footer}")), "{shown:?}");
    terminal.kill().unwrap();
    terminal.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_objects_where_programs_ask_for_them() {
    let manager = Manager::start().await;
    let mut agent = manager.agent().await;
    let app = App::start("local");
    let client = manager.create(app.address(), &["--output=json"]);
    agent.review(Disposition::Active, "").await;
    let line = client.line("\"state\":\"ACTIVE\"");
    let event: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(
        (event["intercept"].as_str(), event["pod"].as_str()),
        (Some("one"), Some("app-1"))
    );
    let text: Value = serde_json::from_str(&client.line("Press Ctrl-C")).unwrap();
    assert!(
        text["text"]
            .as_str()
            .unwrap()
            .starts_with("Intercepting app"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conflict_says_what_the_other_takes_and_what_to_do() {
    let manager = Manager::start().await;
    let mut agent = manager.agent().await;
    let app = App::start("local");
    let ann = manager.client(&[
        "create",
        "hers",
        "--workload=app",
        "--client=ann@desk",
        "--port=80:80",
        "--http-header=x-dev=ann",
    ]);
    let hers = agent.review(Disposition::Active, "").await;
    ann.line("state=ACTIVE");
    let client = manager.create(app.address(), &[]);
    let objection = format!(
        "Conflicts with the currently-served intercept \"{}\"",
        hers.id
    );
    agent.review(Disposition::AgentError, &objection).await;
    let line = client.line("intercept:");
    for part in [
        &*objection,
        "it is \"hers\" of ann@desk and takes all TCP connections",
        "take other requests with --http-header, or ask ann@desk to leave it (intercept leave hers)",
    ] {
        assert!(line.contains(part), "no {part:?} in {line}");
    }
    assert_eq!(client.exit().code(), Some(1));
    // Nobody is told to ask herself.
    let again = manager.client(&[
        "create",
        "again",
        "--workload=app",
        "--client=ann@desk",
        "--port=80:80",
    ]);
    agent.review(Disposition::AgentError, &objection).await;
    let line = again.line("intercept:");
    for part in [
        "it is your own \"hers\", begun elsewhere, and takes",
        "end it there or with: intercept leave hers",
    ] {
        assert!(line.contains(part), "no {part:?} in {line}");
    }
    assert_eq!(again.exit().code(), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_may_be_left_to_the_agent() {
    let manager = Manager::start().await;
    let mut agent = manager.agent().await;
    let client = manager.client(&[
        "create",
        "one",
        "--workload=app",
        "--port=3000",
        "--client=dev@laptop",
    ]);
    let spec = agent.review(Disposition::Active, "").await.spec.unwrap();
    assert_eq!(
        (spec.port_identifier.as_str(), spec.container_port),
        ("", 0)
    );
    client.line("state=ACTIVE");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_managers_own_name_and_the_address_of_its_page_are_told() {
    let manager = Manager::start().await;
    let folder = tempfile::tempdir().unwrap();
    let address = manager.address.to_string();
    let output = intercept(folder.path(), &["dashboard", "--manager", &address])
        .output()
        .unwrap();
    assert_eq!(said(&output), format!("http://{address}/\n"));
    let noted = String::from_utf8_lossy(&output.stderr).into_owned();
    let expected = format!("Connected to traffic-manager {}", env!("CARGO_PKG_VERSION"));
    assert!(noted.starts_with(&expected), "{noted}");
    assert!(
        noted.contains("feature level OSS Traffic Manager v2."),
        "{noted}"
    );
}

#[test]
fn the_version_says_what_was_built() {
    let version = Command::new(env!("CARGO_BIN_EXE_intercept"))
        .arg("--version")
        .output()
        .unwrap();
    let version = said(&version);
    // Builds of tests are debug builds, unless a commit was named.
    let is_told = version.contains("(debug build)") || version.contains("(commit ");
    assert!(version.starts_with("intercept ") && is_told, "{version}");
}
