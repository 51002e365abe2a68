//! Intercepts without filters: whole TCP connections, and UDP.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use harness::process::Process;
use harness::sidecar::Port;
use harness::system::{Agent, System, sidecar, start_manager};
use harness::wait::{WAIT_TIMEOUT, until};
use harness::{apps, ports, programs};

/// A database that answers `GET who` with its name.
fn redis(name: &str) -> (Process, SocketAddr) {
    let port = ports::free();
    let mut command = Command::new("redis-server");
    command.args([
        "--port",
        &port.to_string(),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--appendonly",
        "no",
    ]);
    let process = Process::start(&format!("redis {name}"), &mut command);
    process.line("Ready to accept connections");
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut redis = Redis::connect(address);
    assert_eq!(redis.ask(&format!("SET who {name}")), "+OK");
    (process, address)
}

/// A database connection.
struct Redis(BufReader<TcpStream>);

impl Redis {
    fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
        Self(BufReader::new(stream))
    }

    /// The first line of the answer.
    fn ask(&mut self, command: &str) -> String {
        self.0
            .get_mut()
            .write_all(format!("{command}\r\n").as_bytes())
            .unwrap();
        self.line()
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn who(&mut self) -> String {
        self.ask("GET who");
        self.line()
    }
}

#[test]
fn a_database_port_can_be_taken_whole_and_given_back() {
    let (_app, app) = redis("cluster");
    let (_local, local) = redis("laptop");
    let (manager, manager_address) = start_manager(0);
    let sidecar = sidecar(manager_address, vec![Port::tcp(app.port(), ports::free())]);
    let agent = Agent::start(&sidecar, |_| {});
    agent.ready();
    let address = agent.address();
    assert_eq!(Redis::connect(address).who(), "cluster");
    let system = System {
        manager,
        manager_address,
        agent,
        app: apps::App::start("unused"),
    };
    let intercept = system.intercept("db", local, &["--mechanism=tcp"]);
    until("new connections to go to the laptop", || {
        (Redis::connect(address).who() == "laptop").then_some(())
    });
    let mut open = Redis::connect(address);
    for number in 0..500 {
        assert_eq!(open.ask(&format!("SET n {number}")), "+OK");
    }
    assert_eq!(open.who(), "laptop");
    assert!(intercept.terminate().success());
    until("the cluster's to answer", || {
        (Redis::connect(address).who() == "cluster").then_some(())
    });
}

/// A UDP server that puts its name before what it hears.
fn udp_echo(name: &'static str) -> SocketAddr {
    let socket = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
    let address = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 2000];
        while let Ok((count, from)) = socket.recv_from(&mut buffer) {
            let answer = [name.as_bytes(), b" ", &buffer[..count]].concat();
            let _ = socket.send_to(&answer, from);
        }
    });
    address
}

/// Sends a datagram from a socket that takes answers from `address` only; again if it is lost.
fn ask_udp(socket: &UdpSocket, address: SocketAddr, text: &str) -> String {
    socket.connect(address).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    until("an answer by UDP", || {
        socket.send(text.as_bytes()).ok()?;
        let mut buffer = [0; 2000];
        loop {
            let count = socket.recv(&mut buffer).ok()?;
            let answer = String::from_utf8_lossy(&buffer[..count]).into_owned();
            // One that comes late belongs to an earlier question.
            if answer.ends_with(text) {
                return Some(answer);
            }
        }
    })
}

/// A UDP server that sends back what it hears.
fn udp_mirror() -> SocketAddr {
    let socket = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
    let address = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 2000];
        while let Ok((count, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..count], from);
        }
    });
    address
}

/// A manager, and an agent in front of a UDP port.
fn udp_system(app: SocketAddr) -> System {
    let (manager, manager_address) = start_manager(0);
    let port = Port {
        protocol: "UDP",
        ..Port::tcp(app.port(), ports::free())
    };
    let agent = Agent::start(&sidecar(manager_address, vec![port]), |_| {});
    agent.ready();
    System {
        manager,
        manager_address,
        agent,
        app: apps::App::start("unused"),
    }
}

#[test]
fn datagrams_without_bytes_pass_both_ways() {
    let (app, local) = (udp_echo("cluster"), udp_mirror());
    let system = udp_system(app);
    for flags in [&[][..], &["--no-direct"]] {
        let intercept = system.intercept("empty", local, flags);
        let socket = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
        socket.connect(system.address()).unwrap();
        let short = Some(Duration::from_millis(500));
        socket.set_read_timeout(short).unwrap();
        until("an answer without bytes", || {
            socket.send(&[]).ok()?;
            // The app would answer with its name.
            (socket.recv(&mut [0; 64]).ok()? == 0).then_some(())
        });
        assert!(intercept.terminate().success());
    }
}

#[test]
fn a_port_that_is_udp_alone_is_taken_without_saying_so_and_told_as_that() {
    let app = udp_echo("cluster");
    let system = udp_system(app);
    let local = ports::free();
    // Nobody listens there yet.
    let port = format!("{local}:{}", app.port());
    let intercept = system.begin_intercept("dns", &port, &["--no-direct"]);
    intercept.line("state=ACTIVE");
    intercept.line("takes=\"all UDP datagrams\"");
    intercept.line(&format!(
        "Intercepting hello: all UDP datagrams -> 127.0.0.1:{local}."
    ));
    system.agent.serves("dns");
    let socket = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
    socket.connect(system.address()).unwrap();
    socket.send(b"hello").unwrap();
    intercept.line(&format!(
        "warning: nothing listens on 127.0.0.1:{local}; 1 request went to the app"
    ));
    let server = Server::start(local, Some("laptop"));
    until("the workstation to answer", || {
        (ask_udp_once(&socket, "again") == "laptop").then_some(())
    });

    let run = |arguments: &[&str]| {
        let mut command = Command::new(programs::path("intercept"));
        command.args(arguments);
        Process::start("intercept", &mut command)
    };
    let admin = system.agent.admin().to_string();
    let named = format!("{}/udp", app.port());
    let explained = run(&["explain", "--admin", &admin, "--port", &named]);
    explained.line("goes to the workstation: dns takes all datagrams of the port");
    let named = format!("{}/TCP", app.port());
    let explained = run(&["explain", "--admin", &admin, "--port", &named]);
    explained.line(&format!("use one of {}/UDP", app.port()));
    assert_eq!(explained.exit().code(), Some(1));
    server.end();
}

#[test]
fn filters_of_a_udp_port_are_refused_whether_it_is_named_as_one_or_not() {
    let app = udp_echo("cluster");
    let system = udp_system(app);
    for (port, said, code) in [
        (
            format!("5353:{}/UDP", app.port()),
            "--http-header: port",
            64,
        ),
        // Without a cluster the agent alone knows what the port carries.
        (
            format!("5353:{}", app.port()),
            "carries no HTTP requests; intercept it without header and path filters (--http-header",
            1,
        ),
    ] {
        let intercept = system.begin_intercept("dns", &port, &["--http-header=x-dev=me"]);
        intercept.line(said);
        assert_eq!(intercept.exit().code(), Some(code), "{port}");
    }
}

#[test]
fn a_udp_port_can_be_taken_and_every_caller_gets_its_own_answers() {
    let (app, local) = (udp_echo("cluster"), udp_echo("laptop"));
    let (_manager, manager_address) = start_manager(0);
    let port = Port {
        protocol: "UDP",
        ..Port::tcp(app.port(), ports::free())
    };
    let agent = Agent::start(&sidecar(manager_address, vec![port]), |_| {});
    agent.ready();
    let address = agent.address();
    let socket = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
    assert_eq!(ask_udp(&socket, address, "hello"), "cluster hello");
    let mut command = Command::new(programs::path("intercept"));
    let ports = format!("{}:{}/UDP", local.port(), app.port());
    command.args([
        "create",
        "dns",
        "--workload=hello",
        "--port",
        &ports,
        "--manager",
        &manager_address.to_string(),
    ]);
    let intercept = Process::start("intercept dns", &mut command);
    intercept.line("state=ACTIVE");
    until("the laptop to answer", || {
        ask_udp(&socket, address, "hello")
            .starts_with("laptop")
            .then_some(())
    });
    let sockets: Vec<_> = (0..200)
        .map(|_| UdpSocket::bind(("127.0.0.1", 0)).unwrap())
        .collect();
    for (number, socket) in sockets.iter().enumerate() {
        assert_eq!(
            ask_udp(socket, address, &format!("caller {number}")),
            format!("laptop caller {number}")
        );
    }
    assert!(intercept.terminate().success());
    until("the cluster's to answer", || {
        ask_udp(&socket, address, "hello")
            .starts_with("cluster")
            .then_some(())
    });
}

/// A UDP server that puts a name before what it hears, or says nothing.
struct Server {
    address: SocketAddr,
    heard: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

/// Ends a server.
const END: &[u8] = b"end of the server";

impl Server {
    fn start(port: u16, name: Option<&'static str>) -> Self {
        let socket = UdpSocket::bind(("127.0.0.1", port)).unwrap();
        let address = socket.local_addr().unwrap();
        let heard = Arc::<Mutex<Vec<String>>>::default();
        let hears = heard.clone();
        let task = std::thread::spawn(move || {
            let mut buffer = [0; 2000];
            loop {
                let (count, from) = socket.recv_from(&mut buffer).unwrap();
                if &buffer[..count] == END {
                    return;
                }
                let text = String::from_utf8_lossy(&buffer[..count]).into_owned();
                hears.lock().unwrap().push(text);
                if let Some(name) = name {
                    let answer = [name.as_bytes(), b" ", &buffer[..count]].concat();
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
        Self {
            address,
            heard,
            task,
        }
    }

    fn has_heard(&self, text: &str) -> bool {
        self.heard.lock().unwrap().iter().any(|it| it == text)
    }

    /// Closes its port.
    fn end(self) {
        let socket = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
        socket.send_to(END, self.address).unwrap();
        self.task.join().unwrap();
    }
}

/// Asks once; the answer that belongs to it.
fn ask_udp_once(socket: &UdpSocket, text: &str) -> String {
    socket.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
    socket.send(text.as_bytes()).unwrap();
    let mut buffer = [0; 2000];
    loop {
        let count = socket.recv(&mut buffer).unwrap();
        let answer = String::from_utf8_lossy(&buffer[..count]).into_owned();
        if let Some(name) = answer.strip_suffix(&format!(" {text}")) {
            return name.to_owned();
        }
    }
}

fn udp_caller(address: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
    socket.connect(address).unwrap();
    socket
}

#[test]
fn the_app_answers_datagrams_that_nothing_takes_at_the_workstation_until_something_does() {
    let app = udp_echo("cluster");
    let system = udp_system(app);
    for flags in [&[][..], &["--no-direct"]] {
        let local = ports::free();
        let port = format!("{local}:{}", app.port());
        let intercept = system.begin_intercept("dns", &port, flags);
        intercept.line("state=ACTIVE");
        system.agent.serves("dns");
        if flags.is_empty() {
            intercept.line("direct=connected");
        }
        let before = system.agent.stat(".fail_open.dial_rejected");
        // Each datagram is sent once: the one that was refused is answered as well.
        let known = udp_caller(system.address());
        for number in 0..5 {
            assert_eq!(ask_udp_once(&known, &format!("q{number}")), "cluster");
        }
        let new = || ask_udp_once(&udp_caller(system.address()), "new");
        assert_eq!(new(), "cluster");
        assert!(system.agent.stat(".fail_open.dial_rejected") > before);
        let warning = format!("warning: nothing listens on 127.0.0.1:{local}; ");
        intercept.line(&warning);

        let server = Server::start(local, Some("laptop"));
        until("the workstation to answer a known caller", || {
            (ask_udp_once(&known, "who") == "laptop").then_some(())
        });
        assert_eq!(new(), "laptop");
        for number in 0..5 {
            assert_eq!(ask_udp_once(&known, &format!("q{number}")), "laptop");
        }
        server.end();
        for number in 0..5 {
            assert_eq!(ask_udp_once(&known, &format!("q{number}")), "cluster");
        }
        assert_eq!(new(), "cluster");

        // One that answers nothing lives all the same.
        let silent = Server::start(local, None);
        until("another caller to reach the silent server", || {
            known.send(b"statistics").unwrap();
            let other = udp_caller(system.address());
            other.send(b"of another").unwrap();
            std::thread::sleep(Duration::from_millis(20));
            silent.has_heard("of another").then_some(())
        });
        for number in 0..20 {
            let text = format!("n{number}");
            known.send(text.as_bytes()).unwrap();
            until("it to be heard", || silent.has_heard(&text).then_some(()));
        }
        silent.end();
        assert!(intercept.terminate().success());
        until("the intercept to end", || {
            (new() == "cluster").then_some(())
        });
    }
}
