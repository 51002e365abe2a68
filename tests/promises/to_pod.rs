//! Ports of the pod at the workstation's loopback, as long as an intercept lives.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use harness::apps::App;
use harness::ports;
use harness::process::Process;
use harness::programs;
use harness::system::System;
use harness::wait::until;

/// The pod's own address, so that its ports and those of the workstation do not meet.
const POD: Ipv4Addr = Ipv4Addr::new(127, 7, 0, 9);

fn at_own_address(command: &mut Command) {
    command.env("_TEL_AGENT_POD_IP", POD.to_string());
}

/// Greets whoever connects to a port of the pod, and sends back what it then gets.
fn greeter(port: u16) {
    let listener = TcpListener::bind((POD, port)).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            stream.write_all(b"pod:").unwrap();
            let mut said = String::new();
            let _ = stream.read_to_string(&mut said);
            let _ = stream.write_all(said.as_bytes());
        }
    });
}

/// Sends back datagrams, with a mark ahead.
fn echo(port: u16) {
    let socket = UdpSocket::bind((POD, port)).unwrap();
    std::thread::spawn(move || {
        let mut datagram = [0; 1500];
        loop {
            let (length, peer) = socket.recv_from(&mut datagram).unwrap();
            let answer = [b"pod:", &datagram[..length]].concat();
            socket.send_to(&answer, peer).unwrap();
        }
    });
}

fn here(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

#[test]
fn ports_of_the_pod_are_at_the_workstations_loopback_while_the_intercept_lives() {
    let system = System::start_with(|_| {}, at_own_address);
    let (tcp, udp) = (ports::free(), ports::free());
    greeter(tcp);
    echo(udp);
    let laptop = App::start("laptop");
    let flags = [
        "--no-direct".to_owned(),
        format!("--to-pod={tcp}"),
        format!("--to-pod={udp}/UDP"),
    ];
    let flags: Vec<_> = flags.iter().map(String::as_str).collect();
    let intercept = system.intercept("mine", laptop.address(), &flags);
    for round in 0..3 {
        let mut stream = TcpStream::connect(here(tcp)).unwrap();
        let said = format!("hello {round}");
        stream.write_all(said.as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, format!("pod:{said}"));
    }
    let clients: Vec<_> = (0..2)
        .map(|_| {
            let socket = UdpSocket::bind(here(0)).unwrap();
            socket.connect(here(udp)).unwrap();
            socket
                .set_read_timeout(Some(Duration::from_secs(20)))
                .unwrap();
            socket
        })
        .collect();
    for round in 0..3 {
        for (number, socket) in clients.iter().enumerate() {
            let said = format!("{number} {round}");
            socket.send(said.as_bytes()).unwrap();
            let mut answer = [0; 64];
            let length = socket.recv(&mut answer).unwrap();
            assert_eq!(answer[..length], *format!("pod:{said}").as_bytes());
        }
    }
    let mut list = Command::new(programs::path("intercept"));
    list.args(["list", "--manager", &system.manager_address.to_string()]);
    let list = Process::start("intercept list", &mut list);
    list.line(&format!("to pod    {tcp}/TCP, {udp}/UDP"));
    assert!(intercept.terminate().success());
    until("the ports to be free again", || {
        let is_free = TcpListener::bind(here(tcp)).is_ok() && UdpSocket::bind(here(udp)).is_ok();
        is_free.then_some(())
    });
}

#[test]
fn a_port_that_is_taken_here_is_said_before_anything_is_created() {
    let system = System::start_with(|_| {}, at_own_address);
    let (taken, laptop) = (TcpListener::bind(here(0)).unwrap(), App::start("laptop"));
    let port = taken.local_addr().unwrap().port();
    let local = format!(
        "{}:{}",
        laptop.address().port(),
        system.app.address().port()
    );
    let flag = format!("--to-pod={port}");
    let intercept = system.begin_intercept("mine", &local, &[&flag]);
    intercept.line(&format!("--to-pod {port}/TCP: "));
    assert_eq!(intercept.exit().code(), Some(1));
}
