//! Opaque protocols: servers that speak first, half-closes, resets.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use harness::apps::raw;
use harness::sidecar::Port;
use harness::system::{Agent, System};
use harness::wait::WAIT_TIMEOUT;
use harness::{apps, ports};

use crate::rig::{Way, connect, each, patient, read_out, reset, towards};

const WAYS: [Way; 4] = [Way::App, Way::Beside, Way::Direct, Way::Manager];
/// Size larger than all socket buffers on the way.
const MUCH: usize = 8 << 20;

/// A mail server as far as it matters here.
fn mail(name: &'static str) -> SocketAddr {
    raw(move |mut stream| {
        patient(&stream);
        let _ = stream.write_all(format!("220 {name} ESMTP\r\n").as_bytes());
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        while let Some(Ok(line)) = lines.next() {
            let answer = if line == "QUIT" { "221 bye" } else { "250 ok" };
            let _ = stream.write_all(format!("{answer} {line}\r\n").as_bytes());
            if line == "QUIT" {
                return;
            }
        }
    })
}

/// Waits for the banner, without having sent anything, and then talks. Says whose banner it was.
fn talk(address: SocketAddr) -> String {
    let mut stream = connect(address);
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut banner = String::new();
    reader.read_line(&mut banner).unwrap();
    for command in ["EHLO example", "GET / HTTP/1.1", "QUIT"] {
        stream
            .write_all(format!("{command}\r\n").as_bytes())
            .unwrap();
        let mut answer = String::new();
        reader.read_line(&mut answer).unwrap();
        assert!(answer.ends_with(&format!(" {command}\r\n")), "{answer}");
    }
    assert_eq!(
        reader.read_to_end(&mut Vec::new()).unwrap(),
        0,
        "an orderly end"
    );
    banner.split(' ').nth(1).unwrap_or_default().to_owned()
}

#[test]
fn a_banner_comes_without_a_word_of_the_caller_whatever_the_port_was_declared_to_speak() {
    let declared = ["", "http", "ws", "http2", "grpc", "tcp"];
    let (manager, manager_address) = harness::system::start_manager(0);
    let mail_ports = declared.map(|protocol| {
        let port = Port::tcp(mail("app").port(), ports::free());
        Port {
            app_protocol: protocol.to_owned(),
            ..port
        }
    });
    let sidecar = harness::system::sidecar(manager_address, mail_ports.to_vec());
    let agent = Agent::start(&sidecar, |_| {});
    agent.ready();
    let system = System {
        manager,
        manager_address,
        agent,
        app: apps::App::start("unused"),
    };
    let talk_on_all = || {
        for port in &mail_ports {
            let address = SocketAddr::from(([127, 0, 0, 1], port.agent));
            assert_eq!(talk(address), "app", "{:?}", port.app_protocol);
        }
    };
    talk_on_all();
    let laptop = apps::App::start("laptop");
    // Where nothing is looked into, nobody can take single requests.
    let _intercepts: Vec<_> = mail_ports
        .iter()
        .filter(|port| port.app_protocol != "tcp")
        .map(|port| {
            let name = format!("on-{}", port.container);
            let ports = format!("{}:{}", laptop.address().port(), port.container);
            let client = system.begin_intercept(&name, &ports, &["--http-header=x-dev=a"]);
            client.line("state=ACTIVE");
            system.agent.serves(&name);
            client
        })
        .collect();
    talk_on_all();
}

#[test]
fn a_banner_comes_from_the_workstation_that_took_the_port() {
    each(&[Way::Direct, Way::Manager], |way| {
        let (system, client) = towards(mail("laptop"), way, &[]);
        assert_eq!(talk(system.address()), "laptop", "{way:?}");
        drop(client);
    });
}

/// Bytes and error that a server of [`halves`] saw.
type Seen = Receiver<(Vec<u8>, Option<ErrorKind>)>;

/// Bytes that no HTTP request begins with, so that detection does not wait.
const HELLO: &[u8; 5] = b"\0ello";
const FIRST: &[u8; 6] = b"\0first";
const LAST: &[u8; 6] = b"\0last.";

/// A server for half-closes. Told [`FIRST`], it ends its side and then reads; told [`LAST`], it
/// reads until the caller has ended its side and then answers; both times there is much to carry.
fn halves() -> (SocketAddr, Seen) {
    let (told, seen) = channel();
    let address = raw(move |mut stream| {
        patient(&stream);
        let mut order = [0; 6];
        // Whoever asks for TLS or HTTP/2 is the agent, which goes away again.
        if stream.read_exact(&mut order).is_err() || !matches!(&order, FIRST | LAST) {
            return;
        }
        if &order == FIRST {
            stream.write_all(&pattern(MUCH)).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
        }
        let read = read_out(&mut stream);
        if &order == LAST {
            stream.write_all(&pattern(MUCH)).unwrap();
        }
        told.send(read).unwrap();
    });
    (address, seen)
}

fn pattern(size: usize) -> Vec<u8> {
    (0..size)
        .map(|at| (at ^ at >> 8 ^ at >> 16) as u8)
        .collect()
}

#[test]
fn either_side_may_end_first_while_the_other_goes_on() {
    each(&WAYS, |way| {
        let (server, seen) = halves();
        let (system, _client) = towards(
            server,
            way,
            if way.is_tunnel() {
                &[]
            } else {
                &["--http-header=x-dev=a"]
            },
        );
        let mut caller = connect(system.address());
        caller.write_all(LAST).unwrap();
        caller.write_all(&pattern(MUCH)).unwrap();
        caller.shutdown(Shutdown::Write).unwrap();
        assert!(
            read_out(&mut caller) == (pattern(MUCH), None),
            "the caller ended first, {way:?}"
        );
        assert!(
            seen.recv_timeout(WAIT_TIMEOUT).unwrap() == (pattern(MUCH), None),
            "{way:?}"
        );

        let mut caller = connect(system.address());
        caller.write_all(FIRST).unwrap();
        assert!(
            read_out(&mut caller) == (pattern(MUCH), None),
            "the server ended first, {way:?}"
        );
        caller.write_all(&pattern(MUCH)).unwrap();
        drop(caller);
        assert!(
            seen.recv_timeout(WAIT_TIMEOUT).unwrap() == (pattern(MUCH), None),
            "{way:?}"
        );
    });
}

/// A server that sends back what it reads until it reads `reset`; then it breaks off.
fn breaking() -> (SocketAddr, Seen) {
    let (told, seen) = channel();
    let address = raw(move |mut stream: TcpStream| {
        patient(&stream);
        let mut buffer = [0; 1024];
        let mut all = Vec::new();
        let error = loop {
            match stream.read(&mut buffer) {
                Ok(0) => break None,
                Ok(count) => {
                    all.extend_from_slice(&buffer[..count]);
                    if all.ends_with(b"reset\n") {
                        return reset(&stream);
                    }
                    let _ = stream.write_all(&buffer[..count]);
                }
                Err(error) => break Some(error.kind()),
            }
        };
        if all.starts_with(HELLO) {
            told.send((all, error)).unwrap();
        }
    });
    (address, seen)
}

#[test]
fn a_reset_by_either_side_arrives_as_a_reset() {
    each(&WAYS, |way| {
        let (server, seen) = breaking();
        let (system, _client) = towards(
            server,
            way,
            if way.is_tunnel() {
                &[]
            } else {
                &["--http-header=x-dev=a"]
            },
        );
        let mut echo = [0; 5];
        let mut caller = connect(system.address());
        caller.write_all(HELLO).unwrap();
        caller.read_exact(&mut echo).unwrap();
        reset(&caller);
        drop(caller);
        let error = seen.recv_timeout(WAIT_TIMEOUT).unwrap();
        assert_eq!(
            error,
            (HELLO.to_vec(), Some(ErrorKind::ConnectionReset)),
            "seen by the server, {way:?}"
        );

        let mut caller = connect(system.address());
        caller.write_all(HELLO).unwrap();
        caller.read_exact(&mut echo).unwrap();
        caller.write_all(b"reset\n").unwrap();
        let error = read_out(&mut caller).1;
        assert_eq!(
            error,
            Some(ErrorKind::ConnectionReset),
            "seen by the caller, {way:?}"
        );

        // An orderly end stays one beside them.
        let mut caller = connect(system.address());
        caller.write_all(HELLO).unwrap();
        caller.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_out(&mut caller), (HELLO.to_vec(), None), "{way:?}");
        assert_eq!(
            seen.recv_timeout(WAIT_TIMEOUT).unwrap(),
            (HELLO.to_vec(), None),
            "{way:?}"
        );
    });
}

#[test]
fn a_reset_behind_a_half_close_arrives_at_an_app_that_is_silent() {
    let (told, seen) = channel();
    // Silent, so that nothing but the reset itself can tell that the caller is gone.
    let server = raw(move |mut stream| {
        patient(&stream);
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        let deadline = Instant::now() + WAIT_TIMEOUT / 2;
        told.send(None).unwrap();
        let gone = loop {
            match stream.take_error().unwrap() {
                None if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
                error => break error.map(|error| error.kind()),
            }
        };
        told.send(gone).unwrap();
    });
    let (system, _client) = towards(server, Way::App, &[]);
    // Directly, and through the agent.
    for address in [server, system.address()] {
        let mut caller = connect(address);
        caller.write_all(HELLO).unwrap();
        caller.shutdown(Shutdown::Write).unwrap();
        assert_eq!(seen.recv_timeout(WAIT_TIMEOUT).unwrap(), None);
        reset(&caller);
        drop(caller);
        // What the kernel calls a reset behind the peer's end.
        assert_eq!(
            seen.recv_timeout(WAIT_TIMEOUT).unwrap(),
            Some(ErrorKind::BrokenPipe),
            "{address}"
        );
    }
}
