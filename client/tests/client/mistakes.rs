//! Mistakes are reported, and the exit code tells a program.

use harness::apps::App;
use traffic_proto::manager::InterceptDispositionType as Disposition;

use crate::fixture::Manager;

#[tokio::test(flavor = "multi_thread")]
async fn wrong_usage_is_64() {
    let manager = Manager::start().await;
    for (arguments, said) in [
        (&["create"][..], "NAME"),
        (&["create", "one"], "--port"),
        (&["create", "one", "--port=0"], "is not a port number"),
        (
            &["create", "one", "--port=80:80", "--http-header=x"],
            "NAME=VALUE",
        ),
        (
            &["create", "one", "--port=80:80", "--colour=red"],
            "--colour",
        ),
        (&["create", "one", "--port=80:80:80"], "two colons"),
        (&["create", "one", "--port=80", "--timeout=0"], "1..=86400"),
        (
            &["ingest", "one", "--timeout=18446744073709551615"],
            "1..=86400",
        ),
        (
            &["create", "one", "--port=80", "--http-path-equal=api"],
            "write /api",
        ),
        (
            &["create", "one", "--port=80", "--http-path-prefix="],
            "matches no request",
        ),
        (
            &["create", "one", "--port=80", "--http-path-regex=("],
            "missing closing )",
        ),
        (
            &["create", "one", "--port=80", "--http-path-regex="],
            "leave the flag out",
        ),
        (
            &["create", "one", "--port=80", "--agent=pod:80"],
            "write 10.1.2.3:19900",
        ),
        (&["destroy", "one"], "destroy"),
        (&["lst"], "'list'"),
        (&["create", "one", "--prot=80"], "'--port'"),
    ] {
        let client = manager.client(arguments);
        client.line(said);
        assert_eq!(client.exit().code(), Some(64), "{arguments:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn contradictory_flags_are_named() {
    let manager = Manager::start().await;
    for (flags, said) in [
        (
            &["--port=80:80", "--http-header=a=1", "--http-header=a=2"][..],
            "given twice",
        ),
        (
            &["--port=80:80", "--http-path-equal=/", "--mechanism=tcp"],
            "--mechanism tcp",
        ),
    ] {
        let client = manager.client(&[&["create", "one"], flags].concat());
        client.line(said);
        assert_eq!(client.exit().code(), Some(64), "{flags:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_that_does_not_answer_is_named() {
    let nobody = std::net::SocketAddr::from(([127, 0, 0, 1], harness::ports::free()));
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_intercept"));
    command.args([
        "create",
        "one",
        "--port=80:80",
        "--timeout=1",
        "--manager",
        &nobody.to_string(),
    ]);
    let client = harness::process::Process::start("intercept", &mut command);
    let line = client.line("no traffic-manager answers");
    assert!(
        line.contains(&nobody.to_string()) && line.contains("refused"),
        "{line}"
    );
    assert_eq!(client.exit().code(), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_agent_it_fails_and_says_so() {
    let manager = Manager::start().await;
    let app = App::start("local");
    let client = manager.create(app.address(), &[]);
    let line = client.line("intercept:");
    assert!(
        line.contains("no agent of workload \"app\" in namespace \"default\""),
        "{line}"
    );
    assert_eq!(client.exit().code(), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agents_objection_is_shown_and_the_intercept_removed() {
    let manager = Manager::start().await;
    let mut agent = manager.agent().await;
    let app = App::start("local");
    let client = manager.create(app.address(), &[]);
    agent
        .review(
            Disposition::AgentError,
            "Conflicts with the one of ann@desk",
        )
        .await;
    let line = client.line("intercept:");
    assert!(
        line.contains("AGENT_ERROR: Conflicts with the one of ann@desk"),
        "{line}"
    );
    assert_eq!(client.exit().code(), Some(1));
    agent.until_none().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_intercept_that_nobody_takes_up_is_given_up() {
    let manager = Manager::start().await;
    let mut agent = manager.agent().await;
    let app = App::start("local");
    let client = manager.create(app.address(), &["--timeout=1"]);
    let line = client.line("intercept:");
    assert!(line.contains("does the port \"80\" exist"), "{line}");
    assert_eq!(client.exit().code(), Some(1));
    agent.until(Disposition::Waiting).await;
    agent.until_none().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_waited_for_is_said_and_an_interrupt_ends_it_at_once() {
    // A listener that never answers: the handshake of HTTP/2 waits.
    let silent = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let create = ["create", "one", "--port=80:80"];
    for arguments in [&["list"][..], &create, &["ingest", "app"]] {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_intercept"));
        command.args(arguments).args(["--manager", &address]);
        let client = harness::process::Process::start("intercept", &mut command);
        client.line(&format!("Waiting for the traffic-manager at {address}"));
        let interrupted = std::time::Instant::now();
        client.signal(rustix::process::Signal::INT);
        assert_eq!(client.exit().code(), Some(130));
        assert!(interrupted.elapsed() < std::time::Duration::from_secs(2));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_before_an_agent_accepts_is_no_success() {
    let manager = Manager::start().await;
    let mut agent = manager.agent().await;
    let client = manager.create("127.0.0.1:9".parse().unwrap(), &[]);
    client.line("state=WAITING");
    client.signal(rustix::process::Signal::INT);
    assert_eq!(client.exit().code(), Some(130));
    agent.until_none().await;
}

#[test]
fn an_address_that_cannot_be_right_is_refused_at_once() {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_intercept"));
    command.args(["list", "--manager=localhost"]);
    let client = harness::process::Process::start("intercept", &mut command);
    client.line("\"localhost\" has no port; write HOST:PORT");
    assert_eq!(client.exit().code(), Some(64));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expression_that_matches_anywhere_is_pointed_out() {
    let manager = Manager::start().await;
    let app = App::start("local");
    let client = manager.create(app.address(), &["--http-header=user=jane.doe"]);
    client.line("/jane.doe/ anywhere; for an exact match use --http-header-exact 'user=jane.doe'");
}

#[test]
fn completions_and_manual_pages_are_made() {
    let intercept = || std::process::Command::new(env!("CARGO_BIN_EXE_intercept"));
    for (shell, text) in [
        ("bash", "complete -F"),
        ("zsh", "#compdef"),
        ("fish", "complete -c"),
    ] {
        let done = intercept().args(["completions", shell]).output().unwrap();
        assert!(
            String::from_utf8(done.stdout).unwrap().contains(text),
            "{shell}"
        );
    }
    let folder = tempfile::tempdir().unwrap();
    let done = intercept().arg("man").arg(folder.path()).status().unwrap();
    assert!(done.success());
    let page = std::fs::read_to_string(folder.path().join("intercept-create.1")).unwrap();
    assert!(page.contains("http\\-header\\-exact"), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_cannot_be_started_is_told_before_anything_is_created() {
    let manager = Manager::start().await;
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("script").display().to_string();
    std::fs::write(&script, "#!/bin/sh").unwrap();
    let remedy = format!("chmod +x {script}");
    for (program, said) in [
        ("no-such-program", "not in PATH"),
        ("./no-such-program", "name a program that is there"),
        (folder.path().to_str().unwrap(), "that is a folder"),
        (&script, remedy.as_str()),
        ("", "nothing is named"),
    ] {
        for command in [&["create", "one", "--port=80:80"][..], &["ingest", "app"]] {
            let client = manager.client(&[command, &["--", program]].concat());
            let line = client.line(&format!("-- {program}: "));
            assert!(line.contains(said), "{line}");
            assert_eq!(client.exit().code(), Some(1));
            assert!(client.lines("Connected to").is_empty());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_cannot_be_written_is_told_before_anything_is_created() {
    let manager = Manager::start().await;
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(at("file"), "").unwrap();
    let missing = format!("mkdir -p {} makes it", at("missing"));
    for (path, said) in [
        (at("missing/app.env"), missing.as_str()),
        (at("file/app.env"), "is a file and no folder"),
        (at("."), "that is a folder; name a file in it"),
        (at("new/"), "that is a folder; name a file in it"),
        ("/dev/full".into(), "a device or a pipe"),
        ("/dev/stdout".into(), "a device or a pipe"),
    ] {
        for flag in ["--env-file", "--env-json"] {
            for command in [&["create", "one", "--port=80:80"][..], &["ingest", "app"]] {
                let client = manager.client(&[command, &[flag, &path]].concat());
                let line = client.line(&format!("{flag} {path}: "));
                assert!(line.contains(said), "{line}");
                assert_eq!(client.exit().code(), Some(1));
                assert!(client.lines("Connected to").is_empty());
            }
        }
    }
    let (env, json) = (at("one"), at("one"));
    let flags = ["ingest", "app", "--env-file", &env, "--env-json", &json];
    let client = manager.client(&flags);
    client.line("--env-file and --env-json both name");
    assert_eq!(client.exit().code(), Some(64));
}
