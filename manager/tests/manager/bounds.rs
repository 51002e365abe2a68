//! Clients that want too much, beside one that does not.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::transport::Endpoint;
use traffic_proto::manager::manager_client::ManagerClient;
use traffic_proto::manager::{
    InterceptDispositionType as Disposition, InterceptSpec, RemainRequest, SessionInfo,
};

use crate::fixture::{Client, Fixture, Party, WAIT_TIMEOUT, agent, client, spec};

/// How much longer 99 of 100 calls of a client may take beside a hostile one.
const MAX_LATER_DELAY: Duration = Duration::from_millis(400);
/// How much memory the manager may take for hostile clients.
const MAX_GROWTH_KIB: u64 = 64 << 10;

/// The program, with its own memory.
struct Process {
    child: Child,
    address: SocketAddr,
}

impl Process {
    fn start() -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_traffic-manager"))
            .args(["--listen", "127.0.0.1:0", "--log-level", "error"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        lines.read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening=").unwrap();
        let address = address.parse().unwrap();
        Self { child, address }
    }

    fn rss_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.unwrap().split_whitespace().next();
        number.unwrap().parse().unwrap()
    }

    async fn connect(&self) -> Client {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).unwrap();
        ManagerClient::new(endpoint.connect().await.unwrap())
    }

    /// A connection that takes next to nothing unless it is read.
    async fn windowless(&self) -> Client {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).unwrap();
        let endpoint = endpoint
            .initial_stream_window_size(1)
            .initial_connection_window_size(65_535);
        ManagerClient::new(endpoint.connect().await.unwrap())
    }

    async fn client(&self, name: &str) -> Party {
        let mut manager = self.connect().await;
        let session = manager.arrive_as_client(client(name)).await.unwrap();
        let session = session.into_inner();
        Party { manager, session }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Calls at 200 a second, each with the time it took or its failure.
struct Pace {
    stop: CancellationToken,
    calls: JoinHandle<Vec<Result<Duration, tonic::Status>>>,
}

impl Pace {
    fn start(party: &Party) -> Self {
        let stop = CancellationToken::new();
        let (mut manager, session) = (party.manager.clone(), party.session.clone());
        let ended = stop.clone();
        let calls = tokio::spawn(async move {
            let mut calls = Vec::new();
            let mut ticks = interval(Duration::from_millis(5));
            ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
            while !ended.is_cancelled() {
                ticks.tick().await;
                let started = Instant::now();
                let request = RemainRequest {
                    session: Some(session.clone()),
                    ..RemainRequest::default()
                };
                let answer = manager.remain(request).await;
                calls.push(answer.map(|_| started.elapsed()));
            }
            calls
        });
        Self { stop, calls }
    }

    /// Returns the time within which 99 of 100 calls were answered; all must have been.
    async fn p99(self) -> Duration {
        self.stop.cancel();
        let calls = self.calls.await.unwrap();
        let mut times: Vec<_> = calls
            .into_iter()
            .map(|call| call.expect("answered"))
            .collect();
        times.sort();
        assert!(times.len() > 50, "{} calls", times.len());
        times[times.len() * 99 / 100]
    }
}

/// An intercept as large as a developer with many filters would have it.
fn large(n: usize) -> InterceptSpec {
    InterceptSpec {
        header_filters: [("x-dev".into(), "a".repeat(75_000))].into(),
        port_identifier: n.to_string(),
        ..spec(&format!("large-{n}"))
    }
}

/// One at a time: each takes a processor.
static CROWDS: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Opens so many watches of all intercepts that nobody reads, and creates so many intercepts
/// meanwhile.
async fn unread_watches_and_intercepts(watches: usize, intercepts: usize) {
    let _alone = CROWDS.lock().await;
    let manager = Process::start();
    let mut agents = manager.connect().await;
    agents.arrive_as_agent(agent("app-1")).await.unwrap();
    let mut dev = manager.client("dev").await;
    let control = Pace::start(&dev);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let control = control.p99().await;
    let before = manager.rss_kib();
    let pace = Pace::start(&dev);
    let mut greedy = manager.client("greedy").await;
    let mut unread = Vec::new();
    while unread.len() < watches {
        let mut connection = manager.windowless().await;
        for _ in 0..32.min(watches - unread.len()) {
            let watch = connection.watch_intercepts(SessionInfo::default()).await;
            unread.push(watch.unwrap());
        }
    }
    let opened = manager.rss_kib();
    let mut most = opened;
    for n in 0..intercepts {
        greedy.create(large(n)).await;
        most = most.max(manager.rss_kib());
    }
    // Another client's intercept and watch work, and no later.
    let started = Instant::now();
    let mut own = dev.intercepts().await;
    let mine = dev.create(spec("mine")).await;
    while own.next().await.iter().all(|seen| seen.id != mine.id) {}
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "{:?}",
        started.elapsed()
    );
    // Long enough for stalled readers to be found.
    for _ in 0..30 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        most = most.max(manager.rss_kib());
    }
    let p99 = pace.p99().await;
    let growth = most.saturating_sub(before);
    let opened = opened.saturating_sub(before);
    println!(
        "{watches} watches: {opened} KiB, with {intercepts} intercepts: {growth} KiB, {p99:?} after {control:?}"
    );
    assert!(growth < MAX_GROWTH_KIB, "{growth} KiB");
    assert!(p99 < control + MAX_LATER_DELAY, "{p99:?} after {control:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_unread_watches_take_little_memory() {
    unread_watches_and_intercepts(1000, 20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_unread_watches_take_little_memory() {
    unread_watches_and_intercepts(4500, 6).await;
}

#[tokio::test]
async fn watches_of_a_session_are_bounded_and_places_given_back() {
    let fixture = Fixture::start().await;
    let greedy = fixture.client("greedy").await;
    // On a connection of their own: what is not read uses up the window of all.
    let mut watcher = fixture.connect().await;
    let mut unread = Vec::new();
    let refused = loop {
        match watcher.watch_intercepts(greedy.session.clone()).await {
            Ok(watch) => unread.push(watch),
            Err(status) => break status,
        }
        assert!(unread.len() <= 32, "no bound");
    };
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(
        refused.message().contains("too many open watches"),
        "{refused}"
    );
    let other = fixture.client("dev").await;
    let watch = watcher.watch_intercepts(other.session.clone()).await;
    assert!(watch.is_ok(), "others are not concerned");
    drop(unread);
    let deadline = Instant::now() + WAIT_TIMEOUT;
    while watcher
        .watch_intercepts(greedy.session.clone())
        .await
        .is_err()
    {
        assert!(Instant::now() < deadline, "no place is given back");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn intercepts_of_a_client_and_a_port_are_bounded_and_others_do_not_notice() {
    let fixture = Fixture::start().await;
    let mut agent = fixture.agent("app-1").await;
    let (mut greedy, mut dev) = (fixture.client("greedy").await, fixture.client("dev").await);
    let spec_of_port = |n: usize| InterceptSpec {
        port_identifier: (n % 2).to_string(),
        ..spec(&format!("n{n}"))
    };
    let mut created = 0;
    let refused = loop {
        let request = greedy.create_request(spec_of_port(created));
        match greedy.manager.create_intercept(request).await {
            Ok(_) => created += 1,
            Err(status) => break status,
        }
        assert!(created <= 250, "no bound");
    };
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(
        refused.message().contains("this client has too many"),
        "{refused}"
    );
    // 59 750 of them are refused early, and quickly.
    let started = Instant::now();
    for n in 0..500 {
        let request = greedy.create_request(spec(&format!("more{n}")));
        assert!(greedy.manager.create_intercept(request).await.is_err());
    }
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "{:?}",
        started.elapsed()
    );
    // Another one fills up a port.
    let mut second = fixture.client("second").await;
    let mut of_port = 125;
    let refused = loop {
        let request = second.create_request(InterceptSpec {
            port_identifier: "0".into(),
            ..spec(&format!("p{of_port}"))
        });
        match second.manager.create_intercept(request).await {
            Ok(_) => of_port += 1,
            Err(status) => break status,
        }
        assert!(of_port <= 250, "no bound");
    };
    assert!(
        refused.message().contains("this port has too many"),
        "{refused}"
    );
    let id = dev.create(spec("mine")).await.id;
    let mut watch = dev.intercepts().await;
    agent.review(&id, Disposition::Active, "10.0.0.49").await;
    assert_eq!(watch.until(Disposition::Active).await.id, id);
}

#[tokio::test]
async fn an_intercept_or_a_client_that_is_too_long_is_refused_with_the_bound() {
    let fixture = Fixture::start().await;
    let mut dev = fixture.client("dev").await;
    let request = dev.create_request(InterceptSpec {
        path_filters: vec!["a".repeat(200_000)],
        ..spec("long")
    });
    let refused = dev.manager.create_intercept(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(
        refused.message().contains("filters are too long"),
        "{refused}"
    );
    let long = client(&"x".repeat(5000));
    let refused = dev.manager.arrive_as_client(long).await.unwrap_err();
    assert!(
        refused.message().contains("description is too long"),
        "{refused}"
    );
}

#[tokio::test]
async fn a_crowd_of_clients_makes_those_give_way_that_are_away() {
    let fixture = Fixture::start().await;
    let (mut here, away) = (fixture.client("here").await, fixture.client("away").await);
    let _watch = here.intercepts().await;
    let mut crowd = fixture.connect().await;
    for n in 0..4095 {
        let arrived = crowd.arrive_as_client(client(&format!("c{n}"))).await;
        arrived.unwrap();
    }
    for (party, is_there) in [(&here, true), (&away, false)] {
        let request = RemainRequest {
            session: Some(party.session.clone()),
            ..RemainRequest::default()
        };
        let remains = party.manager.clone().remain(request).await;
        assert_eq!(remains.is_ok(), is_there);
    }
}
