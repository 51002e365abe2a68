//! Clients that want too much, beside one that does not.

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use harness::pace::{Calls, Pace};
use harness::process::Process;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::time::timeout;
use tonic::Code;
use tonic::transport::Endpoint;
use traffic_proto::manager::manager_client::ManagerClient;
use traffic_proto::manager::{
    InterceptDispositionType as Disposition, InterceptSpec, RemainRequest, SessionInfo,
};

use crate::fixture::{Client, Fixture, Party, WAIT_TIMEOUT, agent, client, spec};

/// How much memory the manager may take for hostile clients.
const MAX_GROWTH_KIB: u64 = 64 << 10;
/// How long a client may wait for what it asks for beside a hostile one.
const MAX_DELAY: Duration = Duration::from_secs(5);

/// The program, with its own memory.
struct Manager {
    process: Process,
    address: SocketAddr,
}

impl Manager {
    fn start() -> Self {
        Self::run(Command::new(env!("CARGO_BIN_EXE_traffic-manager")))
    }

    /// One that may have so many descriptors.
    fn with_descriptors(most: usize) -> Self {
        let mut command = Command::new("sh");
        let program = env!("CARGO_BIN_EXE_traffic-manager");
        let script = format!("ulimit -n {most} && exec {program} \"$@\"");
        command.args(["-c", &script, "-"]);
        Self::run(command)
    }

    fn run(mut command: Command) -> Self {
        command.args(["--listen", "127.0.0.1:0", "--log-level", "warn"]);
        let process = Process::start("traffic-manager", &mut command);
        let line = process.line("listening=");
        let address = line.trim().strip_prefix("listening=").unwrap();
        let address = address.parse().unwrap();
        Self { process, address }
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

    /// A client that says 200 times a second that it is there.
    fn remaining(&self, party: &Party) -> impl FnMut() -> Result<(), String> + Send + 'static {
        let (mut manager, runtime) = (party.manager.clone(), Handle::current());
        let request = RemainRequest {
            session: Some(party.session.clone()),
            ..RemainRequest::default()
        };
        move || {
            let answer = runtime.block_on(manager.remain(request.clone()));
            answer.map(drop).map_err(|status| status.to_string())
        }
    }

    /// The control run of a client, and the same beside what comes.
    fn pace(&self, party: &Party) -> (Calls, Pace) {
        let pid = self.process.pid();
        let control = Calls::control(pid, self.remaining(party));
        (control, Pace::start(pid, self.remaining(party)))
    }

    /// How often a limit has been reached, which also has to be said.
    fn reached(&self, limit: &str, said: &str) -> u64 {
        self.process.line(said);
        let page = harness::caller::get(self.address, "/metrics", &[]).unwrap();
        let page = String::from_utf8(page.body).unwrap();
        let name = format!("traffic_manager_limits_total{{limit=\"{limit}\"}} ");
        let value = page.lines().find_map(|line| line.strip_prefix(&name));
        let value = value.unwrap_or_else(|| panic!("no {name} in {page}"));
        value.parse().unwrap()
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
    let manager = Manager::start();
    let mut agents = manager.connect().await;
    agents.arrive_as_agent(agent("app-1")).await.unwrap();
    let mut dev = manager.client("dev").await;
    let (control, pace) = manager.pace(&dev);
    let mut greedy = manager.client("greedy").await;
    let mut unread = Vec::new();
    while unread.len() < watches {
        let mut connection = manager.windowless().await;
        for _ in 0..32.min(watches - unread.len()) {
            let watch = connection.watch_intercepts(SessionInfo::default()).await;
            unread.push(watch.unwrap());
        }
    }
    for n in 0..intercepts {
        greedy.create(large(n)).await;
    }
    // Another client's intercept and watch work, and no later.
    let started = Instant::now();
    let mut own = dev.intercepts().await;
    let mine = dev.create(spec("mine")).await;
    while own.next().await.iter().all(|seen| seen.id != mine.id) {}
    assert!(started.elapsed() < MAX_DELAY, "{:?}", started.elapsed());
    // Stalled readers are found, so that the memory is that of all.
    let said = "connection closed: its watches are not read";
    assert!(manager.reached("pending_bytes", said) > 0);
    pace.end().assert_unharmed(&control, MAX_GROWTH_KIB);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_unread_watches_take_little_memory() {
    unread_watches_and_intercepts(1000, 20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_unread_watches_take_little_memory() {
    unread_watches_and_intercepts(4500, 6).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_say_nothing_give_way_to_others_and_those_with_a_watch_stay() {
    let _alone = CROWDS.lock().await;
    // Half of the descriptors is for connections of the API.
    let manager = Manager::with_descriptors(2000);
    let mut dev = manager.client("dev").await;
    let (mut watching, mut agents) = (dev.intercepts().await, manager.connect().await);
    agents.arrive_as_agent(agent("app-1")).await.unwrap();
    watching.next().await;
    let (control, pace) = manager.pace(&dev);
    let mut crowd = Vec::new();
    for _ in 0..3000 {
        crowd.push(TcpStream::connect(manager.address).await.unwrap());
    }
    assert!(manager.reached("connections", "too many connections") >= 2000);
    // The first of the crowd had to go, the last one is there.
    let (mut byte, brief) = ([0], Duration::from_millis(100));
    let first = timeout(WAIT_TIMEOUT, crowd[0].read(&mut byte)).await;
    assert!(!matches!(first.unwrap(), Ok(1..)), "closed without a word");
    let last = timeout(brief, crowd[2999].read(&mut byte)).await;
    assert!(last.is_err(), "{last:?}");
    let mine = dev.create(spec("mine")).await;
    while watching.next().await.iter().all(|seen| seen.id != mine.id) {}
    pace.end().assert_unharmed(&control, MAX_GROWTH_KIB);
}

/// Intercepts that are asked for beyond the bound.
const MORE_INTERCEPTS: u64 = 2_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn intercepts_without_end_are_refused_and_others_do_not_notice() {
    let _alone = CROWDS.lock().await;
    let manager = Manager::start();
    let mut agents = manager.connect().await;
    agents.arrive_as_agent(agent("app-1")).await.unwrap();
    let mut dev = manager.client("dev").await;
    let (control, pace) = manager.pace(&dev);
    let mut greedy = manager.client("greedy").await;
    let (mut created, mut refused) = (0, 0);
    while refused < MORE_INTERCEPTS {
        let request = greedy.create_request(InterceptSpec {
            port_identifier: (created % 2).to_string(),
            ..spec(&format!("n{created}-{refused}"))
        });
        match greedy.manager.create_intercept(request).await {
            Ok(_) => created += 1,
            Err(status) => {
                assert_eq!(status.code(), Code::ResourceExhausted);
                refused += 1;
            }
        }
        assert!(created <= 250, "no bound");
    }
    let said = "intercept refused: this client has too many";
    assert_eq!(manager.reached("client_intercepts", said), MORE_INTERCEPTS);
    let started = Instant::now();
    let mut own = dev.intercepts().await;
    let mine = dev.create(spec("mine")).await;
    while own.next().await.iter().all(|seen| seen.id != mine.id) {}
    assert!(started.elapsed() < MAX_DELAY, "{:?}", started.elapsed());
    pace.end().assert_unharmed(&control, MAX_GROWTH_KIB);
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
