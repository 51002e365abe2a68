//! Readers of the log and the access log that stall, or are gone.

use std::io::Read as _;

use crate::fake::Fake;
use crate::pod::Pod;
use crate::steady::{Caller, Control};

/// More lines than pipes and queues hold.
const REQUESTS: usize = 5_000;

#[tokio::test(flavor = "multi_thread")]
async fn stalled_readers_of_both_logs_cost_lines_and_no_request() {
    let (manager, _dialled) = Fake::start("127.0.0.1:0".parse().unwrap()).await;
    let environment = [
        ("AGENT_ACCESS_LOG", "%REQ(:PATH)% %REQ(X-LONG)%"),
        ("AGENT_ACCESS_LOG_HEADERS", "x-long"),
    ];
    let (mut pod, mut unread) =
        Pod::start_unread(manager.address, "logLevel: debug", &environment).await;
    let control = Control::by(Caller::Kept, &pod).await;
    let steady = control.beside(&pod);
    let long = format!("x-long: {}\r\n", "x".repeat(600));
    for n in 0..REQUESTS {
        assert_eq!(pod.ask(&long).await.unwrap(), "app", "request {n}");
    }
    assert!(pod.admin("/ready").await.starts_with("HTTP/1.1 200"));
    let log = pod.stat("traffic_agent.log_dropped").await;
    let access = pod.stat("traffic_agent.access_log_dropped").await;
    assert!(log > 0 && access > 0, "dropped {log} and {access}");
    steady.unharmed(&control).await;
    // Both readers come back: what was kept arrives, the loss is said, and new lines are written.
    pod.read(unread.error);
    pod.until("the loss of log lines", |pod| {
        !pod.lines("log: lines were dropped because").is_empty()
    })
    .await;
    std::thread::spawn(move || {
        let mut chunk = [0; 65_536];
        while unread.output.read(&mut chunk).is_ok_and(|n| n > 0) {}
    });
    pod.until("the end of the access log's loss", |pod| {
        !pod.lines("access log: lines are written again").is_empty()
    })
    .await;
    let before = pod.stat("traffic_agent.access_log_dropped").await;
    assert_eq!(pod.ask("").await.unwrap(), "app");
    assert_eq!(pod.stat("traffic_agent.access_log_dropped").await, before);
    assert_eq!(pod.end().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_that_are_gone_stop_neither_traffic_nor_the_end() {
    let (manager, _dialled) = Fake::start("127.0.0.1:0".parse().unwrap()).await;
    let environment = [("AGENT_ACCESS_LOG", "text")];
    let (pod, unread) = Pod::start_unread(manager.address, "logLevel: debug", &environment).await;
    drop(unread);
    for _ in 0..200 {
        assert_eq!(pod.ask("").await.unwrap(), "app");
    }
    assert_eq!(pod.end().await, 0);
}
