//! Programs that people use, through the agent in both modes.

use std::process::{Output, Stdio};

use tokio::process::Command;
use tokio::time::timeout;

use crate::app::App;
use crate::rig::Rig;

async fn run(program: &str, args: &[&str]) -> Output {
    let child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap_or_else(|e| panic!("{program} (Debian packages curl, nghttp2-client): {e}"));
    timeout(agent_testkit::WAIT_TIMEOUT, child.wait_with_output())
        .await
        .expect("it ends")
        .unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
async fn curl_gets_its_answers_in_both_modes() {
    let (app, workstation) = (App::start("app").await, App::start("workstation").await);
    let rig = Rig::new(app.addr, Some(workstation.addr)).await;
    let url = format!("http://{}/x", rig.addr);
    let plain = [
        "--http2-prior-knowledge",
        "-sS",
        "-m",
        "20",
        "-H",
        "x-dev: a",
        &url,
    ];
    let post = [
        "--http2-prior-knowledge",
        "-sS",
        "-m",
        "20",
        "-d",
        "a body",
        "-H",
        "x-dev: b",
        &url,
    ];
    for (active, expected) in [
        (false, "app /x"),
        (true, "workstation /x"),
        (false, "app /x"),
    ] {
        if active {
            rig.intercept()
        } else {
            rig.clear()
        }
        assert_eq!(text(&run("curl", &plain).await), expected);
        assert_eq!(text(&run("curl", &post).await), "app /x");
    }
}

#[tokio::test]
async fn nghttp_and_h2load_are_served_in_both_modes() {
    let (app, workstation) = (App::start("app").await, App::start("workstation").await);
    let rig = Rig::new(app.addr, Some(workstation.addr)).await;
    let url = format!("http://{}/x", rig.addr);
    for (active, expected) in [(false, "app /x"), (true, "workstation /x")] {
        if active {
            rig.intercept();
        }
        assert_eq!(
            text(&run("nghttp", &["-H", "x-dev: a", &url]).await),
            expected
        );
        for extra in ["x-dev: a", "x-dev: b"] {
            let load = run(
                "h2load",
                &["-n", "2000", "-c", "4", "-m", "50", "-H", extra, &url],
            )
            .await;
            let said = text(&load);
            assert!(
                said.contains("2000 succeeded, 0 failed, 0 errored"),
                "{said}"
            );
        }
    }
}
