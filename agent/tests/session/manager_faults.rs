//! Managers in trouble. In each case app traffic never fails, the log says once what happened, and
//! the session recovers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use traffic_proto::manager::InterceptDispositionType as Disposition;

use crate::fake::{Fake, Script, intercept};
use crate::pod::{Pod, free_ports, request};

fn anywhere() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// Callers that never pause; none of their requests may fail.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    callers: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    fn on(pod: &Pod, headers: &[&'static str]) -> Self {
        let (stop, done) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicUsize::new(0)),
        );
        let port = pod.agent_port;
        let callers = headers.iter().map(|header| {
            let (stop, done, header) = (Arc::clone(&stop), Arc::clone(&done), *header);
            tokio::spawn(async move {
                while !stop.load(Ordering::SeqCst) {
                    let answer = request(port, header)
                        .await
                        .unwrap_or_else(|e| panic!("{header:?}: {e}"));
                    assert!(
                        answer == "app" || (!header.is_empty() && answer == "workstation"),
                        "{header:?}: {answer}"
                    );
                    done.fetch_add(1, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            })
        });
        let callers = callers.collect();
        Self {
            stop,
            done,
            callers,
        }
    }

    /// Ends the callers; panics when one of their requests failed.
    async fn unharmed(self) {
        self.stop.store(true, Ordering::SeqCst);
        for caller in self.callers {
            caller.await.unwrap();
        }
        assert!(self.done.load(Ordering::SeqCst) > 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_that_is_absent_at_start_is_said_once_and_found_later() {
    let [port] = free_ports();
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let pod = Pod::start(address, "").await;
    let load = Load::on(&pod, &[""]);
    pod.until("the log line", |p| !p.lines("cannot be reached").is_empty())
        .await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!pod.ready(), "ready only after the first arrival");
    let (fake, _dialled) = Fake::start(address).await;
    fake.until("arrival", |s| !s.arrivals.is_empty()).await;
    pod.until("readiness", Pod::ready).await;
    load.unharmed().await;
    assert_eq!(pod.lines("cannot be reached").len(), 1);
    assert_eq!(pod.lines("arrived at").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_whose_version_is_none_is_said_once_and_asked_again() {
    let (fake, _dialled) = Fake::start(anywhere()).await;
    fake.script(|s| s.version = "development".to_owned());
    let pod = Pod::start(fake.address, "").await;
    let load = Load::on(&pod, &[""]);
    pod.until("the log line", |p| {
        !p.lines("not a version number").is_empty()
    })
    .await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(fake.seen().arrivals.is_empty());
    fake.script(|s| s.version = "v2.28.0-rc.1".to_owned());
    fake.until("arrival", |s| !s.arrivals.is_empty()).await;
    load.unharmed().await;
    assert_eq!(pod.lines("not a version number").len(), 1);
    assert!(pod.lines("not a version number")[0].contains("\"development\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_without_watches_for_dials_and_names_keeps_its_session() {
    let (fake, _dialled) = Fake::start(anywhere()).await;
    fake.script(|s| s.side_watches = false);
    let pod = Pod::start(fake.address, "").await;
    fake.show(&[intercept(
        "i",
        Disposition::Active,
        pod.app_port,
        Some(("x-dev", "a")),
    )]);
    pod.until_answered_by("x-dev: a\r\n", "workstation").await;
    let load = Load::on(&pod, &["", "x-dev: a\r\n"]);
    fake.until("heartbeats", |s| s.remains > 0).await;
    load.unharmed().await;
    assert_eq!(fake.seen().arrivals.len(), 1);
    assert_eq!(pod.lines("does not offer a watch for dials").len(), 1);
    assert_eq!(
        pod.lines("does not offer a watch for DNS questions").len(),
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_that_drops_every_stream_is_arrived_at_again_and_again() {
    let (fake, _dialled) = Fake::start(anywhere()).await;
    fake.script(|s| s.lifetime = Some(Duration::from_secs(2)));
    let pod = Pod::start(fake.address, "").await;
    fake.show(&[intercept(
        "i",
        Disposition::Active,
        pod.app_port,
        Some(("x-dev", "a")),
    )]);
    pod.until_answered_by("x-dev: a\r\n", "workstation").await;
    let load = Load::on(&pod, &["", "x-dev: a\r\n"]);
    let seen = fake
        .until("three arrivals", |s| s.arrivals.len() >= 3)
        .await;
    assert!(
        seen.departed.contains(&"session-0".to_owned()),
        "the old session is not left behind: {seen:?}"
    );
    fake.script(|s| s.lifetime = None);
    let arrivals = fake.seen().arrivals.len();
    fake.until("the next arrival", |s| {
        s.arrivals.len() > arrivals || s.remains > 1
    })
    .await;
    pod.until_answered_by("x-dev: a\r\n", "workstation").await;
    load.unharmed().await;
    assert_eq!(pod.lines("lost:").len(), 1, "{:?}", pod.lines("lost:"));
    assert_eq!(
        pod.lines("dev@box started").len(),
        1,
        "the intercept went on all the time"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_that_returns_with_nothing_ends_the_intercepts_it_forgot() {
    let (fake, _dialled) = Fake::start(anywhere()).await;
    let pod = Pod::start(fake.address, "").await;
    fake.show(&[intercept(
        "i",
        Disposition::Active,
        pod.app_port,
        Some(("x-dev", "a")),
    )]);
    pod.until_answered_by("x-dev: a\r\n", "workstation").await;
    let load = Load::on(&pod, &["", "x-dev: a\r\n"]);
    let address = fake.address;
    fake.vanish();
    pod.until("the loss", |p| !p.lines("lost:").is_empty())
        .await;
    assert!(
        pod.lines("dev@box ended").is_empty(),
        "the last table stays for the grace time"
    );
    let forgetful = Script {
        forgetful: true,
        ..Script::default()
    };
    let returned = loop {
        // The port is free again as soon as the old server's task is gone.
        match tokio::net::TcpListener::bind(address).await {
            Ok(probe) => {
                drop(probe);
                break Fake::start_as(address, forgetful).await.0;
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    returned.until("arrival", |s| !s.arrivals.is_empty()).await;
    pod.until("the end of the intercept", |p| {
        !p.lines("dev@box ended").is_empty()
    })
    .await;
    assert_eq!(pod.ask("x-dev: a\r\n").await.unwrap(), "app");
    // A stock manager crashes where an agent names a client that it does not know.
    assert_eq!(returned.seen().tunnels, []);
    returned.show(&[intercept(
        "i",
        Disposition::Active,
        pod.app_port,
        Some(("x-dev", "a")),
    )]);
    pod.until_answered_by("x-dev: a\r\n", "workstation").await;
    load.unharmed().await;
    assert_eq!(
        (pod.lines("dev@box ended").len(), pod.lines("lost:").len()),
        (1, 1)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_manager_intercepts_are_suspended_after_the_grace_time() {
    let (fake, _dialled) = Fake::start(anywhere()).await;
    let pod = Pod::start(fake.address, "sessionGrace: 1s").await;
    fake.show(&[intercept(
        "i",
        Disposition::Active,
        pod.app_port,
        Some(("x-dev", "a")),
    )]);
    pod.until_answered_by("x-dev: a\r\n", "workstation").await;
    let load = Load::on(&pod, &["", "x-dev: a\r\n"]);
    fake.vanish();
    pod.until("the end of the grace", |p| {
        !p.lines("all traffic goes to the app").is_empty()
    })
    .await;
    assert_eq!(pod.ask("x-dev: a\r\n").await.unwrap(), "app");
    load.unharmed().await;
    assert_eq!(pod.lines("all traffic goes to the app").len(), 1);
    assert!(
        pod.ready(),
        "a manager outage does not make the pod unready"
    );
}
