//! Datagrams through the real agent: sizes, many flows, a workstation that comes, goes and dies.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use harness::apps::App;
use harness::caller;
use harness::pace::Pace;
use harness::ports;
use harness::process::Process;
use harness::sidecar::Port;
use harness::system::{Agent, System, sidecar, start_manager_with};
use harness::wait::until;

/// Puts a letter before every datagram it sends back.
fn echo(letter: u8) -> SocketAddr {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut buffer = vec![0; 70_000];
        while let Ok((count, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&[&[letter], &buffer[..count]].concat(), from);
        }
    });
    address
}

struct Caller(UdpSocket);

impl Caller {
    fn of(agent: SocketAddr) -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.connect(agent).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(500)))
            .unwrap();
        Self(socket)
    }

    /// Sends, again while nothing comes back; says which letter the answer begins with.
    fn ask(&self, datagram: &[u8]) -> char {
        until("an answer", || {
            self.0.send(datagram).ok()?;
            let mut buffer = vec![0; 70_000];
            loop {
                let count = self.0.recv(&mut buffer).ok()?;
                if &buffer[1..count] == datagram {
                    return Some(char::from(buffer[0]));
                }
            }
        })
    }
}

fn sizes(caller: &Caller, letter: char) {
    for size in [0, 1, 2, 511, 512, 1472, 1473, 9000, 32_000, 65_000] {
        let datagram: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
        assert_eq!(caller.ask(&datagram), letter, "{size} bytes");
    }
}

#[test]
fn datagrams_of_every_size_reach_whoever_has_the_port_and_the_app_has_it_when_the_workstation_dies()
{
    let (app, laptop) = (echo(b'A'), echo(b'L'));
    let (manager, manager_address) = start_manager_with(0, &["--client-ttl=7s"]);
    let port = Port {
        protocol: "UDP",
        ..Port::tcp(app.port(), ports::free())
    };
    let agent = Agent::start(&sidecar(manager_address, vec![port]), |_| {});
    agent.ready();
    let system = System {
        manager,
        manager_address,
        agent,
        app: App::start("unused"),
    };
    let old = Caller::of(system.address());
    sizes(&old, 'A');
    // The second run of the same user takes the place of the one that was killed.
    for flags in [&[][..], &["--no-direct"]] {
        let client: Process = system.begin_intercept(
            "dns",
            &format!("{}:{}/UDP", laptop.port(), app.port()),
            flags,
        );
        client.line("state=ACTIVE");
        system.agent.serves("dns");
        if flags.is_empty() {
            client.line("direct=connected");
        }
        until("the laptop to have the port", || {
            (old.ask(b"who") == 'L').then_some(())
        });
        let callers: Vec<Caller> = (0..50).map(|_| Caller::of(system.address())).collect();
        for caller in &callers {
            assert_eq!(caller.ask(b"hello"), 'L');
        }
        sizes(&callers[0], 'L');
        // Until that is noticed, datagrams are lost on the way to it.
        client.kill();
        until("the app to have it again", || {
            (Caller::of(system.address()).ask(b"who") == 'A').then_some(())
        });
        sizes(&Caller::of(system.address()), 'A');
        until("an old flow to go there too", || {
            (callers[0].ask(b"who") == 'A').then_some(())
        });
    }
}

/// Time in which questions are asked.
const FLOOD_PERIOD: Duration = Duration::from_secs(3);
/// Questions a second that are tried, most first: a debug build on a machine that runs other tests
/// as well may not hold all of them. Each is tried straight to the app first. The row that this
/// stands for lost a quarter at 150 a second.
const FLOOD_RATES: [u32; 4] = [5_000, 2_500, 1_250, 600];
/// Time after which a question counts as lost.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);
/// How much more memory the agent may have.
const MAX_GROWTH_KIB: u64 = 16 << 10;

/// Asks as resolvers do, each question from a port of its own; returns how many were asked and lost.
fn flood(server: SocketAddr, rate: u32) -> (u64, u64) {
    let (begin, mut due, mut asked, mut lost) = (Instant::now(), 0, 0, 0);
    let mut open: VecDeque<(Instant, UdpSocket)> = VecDeque::new();
    while begin.elapsed() < FLOOD_PERIOD || !open.is_empty() {
        let was_due = due;
        due = (begin.elapsed().min(FLOOD_PERIOD).as_secs_f64() * f64::from(rate)) as u64;
        // A sender that was held up does not make a burst of what it missed.
        for _ in 0..(due - was_due).min(50) {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket.connect(server).unwrap();
            socket.send(b"a question as small as those of DNS").unwrap();
            open.push_back((Instant::now() + ANSWER_TIMEOUT, socket));
            asked += 1;
        }
        while open.front().is_some_and(|(due, _)| *due <= Instant::now()) {
            let (_, socket) = open.pop_front().unwrap();
            lost += u64::from(socket.recv(&mut [0; 64]).is_err());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    (asked, lost)
}

/// Questions of thousands of new callers a second, beside one caller of another port: all are
/// answered that are answered without the agent, and flows give way to others.
#[test]
fn a_flood_of_questions_is_answered_as_without_the_agent() {
    let app = echo(b'A');
    let web = App::start("web");
    let (manager, manager_address) = start_manager_with(0, &[]);
    let udp = Port {
        protocol: "UDP",
        ..Port::tcp(app.port(), ports::free())
    };
    let tcp = Port::tcp(web.address().port(), ports::free());
    let agent = Agent::start(&sidecar(manager_address, vec![tcp, udp]), |_| {});
    agent.ready();
    let [web_at, dns_at] =
        [0, 1].map(|n| SocketAddr::from((Ipv4Addr::LOCALHOST, agent.sidecar.ports[n].agent)));
    let pid = agent.process.pid();
    let call = move || {
        let answer = caller::get(web_at, "/", &[]).map_err(|error| error.to_string())?;
        (answer.status == 200).then_some(()).ok_or(answer.head)
    };
    // The flow table is full afterwards, which is what it costs and no growth of this flood's.
    flood(dns_at, FLOOD_RATES[2]);
    let held = FLOOD_RATES.into_iter().find(|&rate| {
        let pace = Pace::start(pid, call);
        let straight = flood(app, rate);
        let control = pace.end();
        let pace = Pace::start(pid, call);
        let through = flood(dns_at, rate);
        let calls = pace.end();
        eprintln!("{rate}/s: straight {straight:?}, through the agent {through:?} asked and lost");
        calls.assert_unharmed(&control, MAX_GROWTH_KIB);
        through.1 <= straight.1
    });
    assert!(held.is_some(), "questions are lost at every rate");
    let full = agent.stat(".limits.udp_flows");
    let line = "UDP flow limit reached";
    assert_eq!(full > 0, !agent.process.lines(line).is_empty(), "{full}");
    drop(manager);
}
