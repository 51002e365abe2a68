//! Strangers at the admin, names that would forge lines, and links where the agent's files stand,
//! beside a caller that nobody intercepts.

use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, symlink};

use harness::caller::Caller;
use traffic_proto::manager::InterceptDispositionType as Disposition;

use crate::fake::{Fake, intercept};
use crate::pod::{Pod, new_root};
use crate::steady::Control;

/// Requests of a stranger.
const REQUESTS: u64 = 500;
/// What an owner of an intercept would like the log to say.
const FORGED: &str = "2026-11-29T00:00:00.000Z ERROR forged";

async fn pod() -> (Fake, Pod) {
    let (fake, _dialled) = Fake::start("127.0.0.1:0".parse().unwrap()).await;
    let pod = Pod::start(fake.address, "logLevel: debug").await;
    fake.until("the watch", |s| s.watched.contains(&"deltas"))
        .await;
    (fake, pod)
}

/// A browser that a foreign page has led to the admin by the page's own name.
#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_at_the_admin_is_refused_and_callers_do_not_notice() {
    let (_fake, pod) = pod().await;
    let control = Control::of(&pod).await;
    let steady = control.beside(&pod);
    let admin = ([127, 0, 0, 1], pod.admin_port()).into();
    tokio::task::spawn_blocking(move || {
        for n in 0..REQUESTS {
            let paths = ["/config_dump", "/intercepts", "/ready"];
            let path = paths[n as usize % paths.len()];
            let mut stranger = Caller::connect(admin).unwrap();
            let head = format!("GET {path} HTTP/1.1\r\nhost: evil.example\r\n\r\n");
            stranger.stream().write_all(head.as_bytes()).unwrap();
            assert_eq!(stranger.answer().unwrap().status, 403, "{path}");
        }
    })
    .await
    .unwrap();
    assert_eq!(pod.stat("traffic_agent.limits.admin_host").await, REQUESTS);
    let said = pod.lines("a request for a foreign host name was refused");
    let said = said.iter().filter(|line| line.contains(" WARN ")).count();
    assert!((1..10).contains(&said), "said {said} times");
    assert!(pod.admin("/ready").await.starts_with("HTTP/1.1 200"));
    steady.unharmed(&control).await;
}

/// Names, values and owners of intercepts with line ends and escapes in them.
#[tokio::test(flavor = "multi_thread")]
async fn names_with_line_ends_forge_no_line() {
    let (fake, pod) = pod().await;
    let control = Control::of(&pod).await;
    let steady = control.beside(&pod);
    for (n, end) in ["\n", "\r\n", "\r", "\u{85}"].iter().enumerate() {
        let text = format!("a{n}{end}{FORGED}\u{1b}[31m");
        for disposition in [Disposition::Waiting, Disposition::Active] {
            let mut evil = intercept(&text, disposition, pod.app_port, Some(("x-dev", "a")));
            let spec = evil.spec.as_mut().unwrap();
            spec.client.clone_from(&text);
            spec.target_host.clone_from(&text);
            spec.path_filters = vec![format!(":path-regex:({text}"), text.clone()];
            let id = evil.id.clone();
            fake.show(&[evil]);
            fake.until("the review", |s| s.reviews.iter().any(|r| r.id == id))
                .await;
            let _ = pod.ask("x-dev: a\r\n").await;
        }
        let page = pod.admin("/intercepts").await;
        let body = page.split_once("\r\n\r\n").unwrap().1;
        let parsed: Result<serde_json::Value, _> = serde_json::from_str(body);
        assert!(parsed.is_ok(), "{body}");
        assert!(!body.contains('\u{1b}') && !body.contains(&format!("{end}{FORGED}")));
    }
    pod.until("a line with the name", |pod| {
        !pod.lines("forged").is_empty()
    })
    .await;
    for line in pod.lines("forged") {
        assert!(!line.starts_with(FORGED), "{line}");
        assert!(!line.contains(char::is_control), "{line:?}");
    }
    steady.unharmed(&control).await;
}

/// Links that lead the agent's files to somebody else's.
#[tokio::test(flavor = "multi_thread")]
async fn files_of_the_agent_follow_no_link() {
    let (fake, _dialled) = Fake::start("127.0.0.1:0".parse().unwrap()).await;
    let (root, elsewhere) = (new_root(), tempfile::tempdir().unwrap());
    let (folder, names) = (root.path().join("tmp/agent"), ["ready", "ports.json"]);
    std::fs::create_dir_all(&folder).unwrap();
    for name in names {
        let theirs = elsewhere.path().join(name);
        std::fs::write(&theirs, "theirs").unwrap();
        symlink(theirs, folder.join(name)).unwrap();
    }
    let pod = Pod::start_in(root, fake.address, &[]).await;
    let control = Control::of(&pod).await;
    let steady = control.beside(&pod);
    let ours = |name| folder.join(name).symlink_metadata().unwrap();
    pod.until("readiness", |_| ours("ready").is_file()).await;
    for name in names {
        let theirs = std::fs::read_to_string(elsewhere.path().join(name)).unwrap();
        assert_eq!(theirs, "theirs", "{name}");
        assert!(ours(name).is_file(), "{name}: {:?}", ours(name).file_type());
        assert_eq!(ours(name).mode() & 0o7777, 0o644, "{name}");
    }
    steady.unharmed(&control).await;
}
