//! The system under test, and the seats of its developers: each an intercept of one port by a
//! client process of its own, with a local server behind it.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use harness::process::Process;
use harness::sidecar::Port;
use harness::system::{Agent, NAMESPACE, WORKLOAD, sidecar};
use harness::wait::until_within;
use harness::{ports, programs};
use rustix::process::Signal;
use tokio::runtime::Runtime;
use traffic_proto::sync::lock;

use crate::callers::Kind;
use crate::ledger::{Ledger, Place, Standing};
use crate::servers::Server;

/// The header that names a developer.
pub(crate) const HEADER: &str = "x-dev";
/// Time in which everything has to be well again behind the last fault: an agent tries a workstation
/// that was lost again after at most 30 s.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(90);
/// Answers in a row by which a workstation counts as back.
const SIGNS: u64 = 5;

/// Starts a manager; port 0 means any. It is quiet, because what programs say is kept.
fn start_manager(port: u16) -> (Process, SocketAddr) {
    let mut command = Command::new(programs::path("traffic-manager"));
    command
        .args(["--listen", &format!("127.0.0.1:{port}")])
        .args(["--log-level", "info"]);
    let manager = Process::start("traffic-manager", &mut command);
    let line = manager.line("listening=");
    let address = line.trim_start_matches("listening=").parse().unwrap();
    (manager, address)
}

/// One developer's intercept of one port.
pub(crate) struct Seat {
    pub(crate) kind: Kind,
    /// Value of the header; empty where the whole port is taken.
    pub(crate) value: String,
    pub(crate) local: Server,
    name: String,
    client: Mutex<Option<Process>>,
}

/// Everything that runs.
pub(crate) struct Testbed {
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) runtime: Runtime,
    pub(crate) agent: Agent,
    pub(crate) seats: Vec<Seat>,
    pub(crate) manager_address: SocketAddr,
    /// Number of faults of each kind.
    pub(crate) faults: Mutex<BTreeMap<&'static str, u64>>,
    /// Descriptors of the agent when everything had started.
    pub(crate) descriptors: usize,
    manager: Mutex<Process>,
    /// Counts beginnings and ends of the manager's faults.
    manager_changes: AtomicU64,
    panics: Mutex<Vec<String>>,
    _apps: Vec<Server>,
}

impl Testbed {
    pub(crate) fn start(ledger: &Arc<Ledger>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let handle = runtime.handle();
        let app = |kind| Server::start(kind, Place::App, ledger, handle);
        let apps: Vec<_> = Kind::ALL.into_iter().map(app).collect();
        let (manager, manager_address) = start_manager(0);
        let ports = Kind::ALL.iter().zip(&apps).map(|(kind, app)| Port {
            protocol: kind.transport(),
            ..Port::tcp(app.address().port(), ports::free())
        });
        let sidecar = sidecar(manager_address, ports.collect());
        let agent = Agent::start(&sidecar, |command| {
            command.env("LOG_LEVEL", "info");
        });
        agent.ready();
        let wanted = [
            (Kind::Http1, "a"),
            (Kind::Http1, "b"),
            (Kind::Http2, "a"),
            (Kind::Http2, "b"),
            (Kind::WebSocket, "a"),
            (Kind::Tcp, ""),
            (Kind::Udp, ""),
        ];
        let seats = wanted
            .iter()
            .enumerate()
            .map(|(number, (kind, value))| Seat {
                kind: *kind,
                value: (*value).to_owned(),
                local: Server::start(*kind, Place::Workstation(number), ledger, handle),
                name: format!("seat-{number}"),
                client: Mutex::default(),
            });
        let mut testbed = Self {
            ledger: Arc::clone(ledger),
            seats: seats.collect(),
            runtime,
            descriptors: 0,
            agent,
            manager: Mutex::new(manager),
            manager_address,
            faults: Mutex::default(),
            manager_changes: AtomicU64::new(0),
            panics: Mutex::default(),
            _apps: apps,
        };
        for seat in 0..testbed.seats.len() {
            testbed.create(seat);
        }
        for Seat { name, client, .. } in &testbed.seats {
            testbed.agent.serves(name);
            lock(client).as_ref().unwrap().line("direct=connected");
        }
        testbed.descriptors = testbed.agent_descriptors();
        testbed
    }

    /// Returns the address at which callers reach a protocol's port.
    pub(crate) fn address(&self, kind: Kind) -> SocketAddr {
        let at = Kind::ALL.iter().position(|other| *other == kind).unwrap();
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.agent.sidecar.ports[at].agent))
    }

    /// Returns the seats of a protocol.
    pub(crate) fn seats_of(&self, kind: Kind) -> impl Iterator<Item = usize> {
        let seats = self.seats.iter().enumerate();
        seats
            .filter(move |(_, seat)| seat.kind == kind)
            .map(|(number, _)| number)
    }

    /// Starts a seat's client, without waiting for it.
    pub(crate) fn create(&self, seat: usize) {
        let Seat {
            kind,
            value,
            local,
            name,
            client,
        } = &self.seats[seat];
        let at = Kind::ALL.iter().position(|other| other == kind).unwrap();
        let container = self.agent.sidecar.ports[at].container;
        let mut command = Command::new(programs::path("intercept"));
        command
            .args([
                "create",
                name,
                "--workload",
                WORKLOAD,
                "--namespace",
                NAMESPACE,
            ])
            .args([
                "--port",
                &format!(
                    "{}:{container}/{}",
                    local.address().port(),
                    kind.transport()
                ),
            ])
            .args(["--client", &format!("{name}@laptop")])
            .args(["--manager", &self.manager_address.to_string()]);
        if !value.is_empty() {
            command.arg(format!("--http-header={HEADER}={value}"));
        }
        *lock(client) = Some(Process::start(name, &mut command));
    }

    /// Ends a seat's client in order; returns true if it and the agent know that it is over.
    pub(crate) fn leave(&self, seat: usize) -> bool {
        let changes = self.manager_changes();
        let client = lock(&self.seats[seat].client).take().unwrap();
        // A manager that is away learns nothing: the agent goes on until the client is gone.
        let quiet = || self.manager_changes() == changes && changes.is_multiple_of(2);
        client.signal(Signal::TERM);
        while client.is_running() {
            if !quiet() && self.ledger.look(seat).0 == Standing::Changing {
                self.unsettle(seat);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.note_panics(&client);
        if !quiet() {
            return false;
        }
        until_within(SETTLE_TIMEOUT, "the agent to end the intercept", || {
            (!self.serves(seat) || !quiet()).then_some(())
        });
        quiet()
    }

    /// Sends a signal to a seat's client.
    pub(crate) fn signal(&self, seat: usize, signal: Signal) {
        let client = lock(&self.seats[seat].client);
        client.as_ref().unwrap().signal(signal);
    }

    /// Kills a seat's client and waits for its end.
    pub(crate) fn kill(&self, seat: usize) {
        let client = lock(&self.seats[seat].client).take().unwrap();
        client.kill();
        self.note_panics(&client);
    }

    /// Waits until a seat's requests reach its workstation, and expects it from then on.
    pub(crate) fn here(&self, seat: usize) {
        if let Some(client) = &*lock(&self.seats[seat].client) {
            // Until then connections come through the manager, and share its fate.
            client.line("direct=connected");
        }
        self.ledger.restart_streak(seat);
        let deadline = Instant::now() + SETTLE_TIMEOUT;
        while self.ledger.streak(seat) < SIGNS && self.ledger.problems().is_empty() {
            if Instant::now() > deadline {
                let problem = format!("requests of seat {seat} do not reach its workstation");
                return self.ledger.problem(problem);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.ledger.stand(seat, Standing::Here);
    }

    /// Waits until every seat's requests reach its workstation.
    pub(crate) fn all_here(&self) {
        (0..self.seats.len()).for_each(|seat| self.here(seat));
    }

    /// Runs `fault` on the way to the workstations, of which nothing is expected meanwhile.
    pub(crate) fn everybody(&self, fault: impl FnOnce()) {
        (0..self.seats.len()).for_each(|seat| self.unsettle(seat));
        fault();
        self.all_here();
    }

    /// Expects a seat's requests to be answered by the workstation or the app.
    pub(crate) fn change(&self, seat: usize) {
        self.ledger.stand(seat, Standing::Changing);
    }

    /// Expects nothing particular of a seat's requests.
    pub(crate) fn unsettle(&self, seat: usize) {
        self.ledger.stand(seat, Standing::Unsettled);
    }

    /// Runs `fault` on the manager, which is away in the meantime.
    pub(crate) fn manager(&self, fault: impl FnOnce(&mut Process)) {
        let mut manager = lock(&self.manager);
        self.manager_changes.fetch_add(1, Ordering::SeqCst);
        fault(&mut manager);
        self.manager_changes.fetch_add(1, Ordering::SeqCst);
    }

    /// Starts the manager again on its port.
    pub(crate) fn begin_manager(&self, manager: &mut Process) {
        self.note_panics(manager);
        *manager = start_manager(self.manager_address.port()).0;
    }

    /// Counts a fault, and notes when it came.
    pub(crate) fn count(&self, fault: &'static str, seat: Option<usize>) {
        *lock(&self.faults).entry(fault).or_default() += 1;
        let seat = seat.map_or(String::new(), |seat| format!(", seat {seat}"));
        self.ledger.note(&format!("{fault}{seat}"));
    }

    /// Returns the number of descriptors that the agent has open.
    pub(crate) fn agent_descriptors(&self) -> usize {
        let folder = format!("/proc/{}/fd", self.agent.process.pid());
        std::fs::read_dir(folder).unwrap().count()
    }

    /// Fails if a program has panicked.
    pub(crate) fn no_panics(&self) {
        self.note_panics(&self.agent.process);
        self.note_panics(&lock(&self.manager));
        for seat in &self.seats {
            if let Some(client) = &*lock(&seat.client) {
                self.note_panics(client);
            }
        }
        let panics = lock(&self.panics);
        assert!(panics.is_empty(), "{panics:#?}");
    }

    fn note_panics(&self, program: &Process) {
        lock(&self.panics).extend(program.lines("panicked"));
    }

    fn manager_changes(&self) -> u64 {
        self.manager_changes.load(Ordering::SeqCst)
    }

    fn serves(&self, seat: usize) -> bool {
        let name = format!("\"name\": \"{}\"", self.seats[seat].name);
        let page = harness::caller::get(self.agent.admin(), "/intercepts", &[]);
        String::from_utf8_lossy(&page.expect("the admin answers").body).contains(&name)
    }
}
