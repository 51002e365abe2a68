//! Intercepts without filters: whole TCP connections, and UDP.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::Command;

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
        .set_read_timeout(Some(std::time::Duration::from_millis(500)))
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
