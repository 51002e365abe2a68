//! Ports of the pod at the workstation (`intercept create --to-pod`), of what listens on the pod's
//! loopback alone and elsewhere.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;

use harness::pod::{Pod, Space};
use harness::process::Process;
use harness::programs;
use harness::wait::{WAIT_TIMEOUT, until};

use crate::dials::echo;
use crate::rig::Rig;

/// Ports by where something listens, and one of nothing.
const PLACES: [(u16, &str); 4] = [
    (7100, "127.0.0.1"),
    (7101, "::1"),
    (7102, Pod::IP),
    (7103, "0.0.0.0"),
];
const CLOSED: u16 = 7104;

/// Answer to a connection to a port here: the address that it seems to come from, and its bytes.
fn asked(port: u16) -> String {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    stream.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
    stream.write_all(b"hello").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    // A connection that nobody takes may be reset.
    let _ = stream.read_to_string(&mut answer);
    answer
}

fn client(space: &Space, local: u16) -> Process {
    let mut command = Command::new(programs::path("intercept"));
    command
        .args(["create", "mine", "--workload=web", "--namespace=shop"])
        .args(["--manager=10.88.0.1:8081", "--no-direct"])
        .arg(format!("--port={local}:http"));
    for port in PLACES.map(|(port, _)| port).into_iter().chain([CLOSED]) {
        command.arg(format!("--to-pod={port}"));
        command.arg(format!("--to-pod={port}/UDP"));
    }
    let client = space.run(|| Process::start("intercept mine", &mut command));
    client.line("state=ACTIVE");
    client
}

#[test]
fn what_listens_on_the_pod_s_loopback_alone_is_reached_too() {
    let rig = Rig::start("nameserver 10.88.0.1\n");
    for (port, ip) in PLACES {
        let ip: IpAddr = ip.parse().unwrap();
        echo(&rig.pod.inside, SocketAddr::new(ip, port));
    }
    let outside = &rig.pod.outside;
    let local = outside.run(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
    let _client = client(outside, local.local_addr().unwrap().port());
    for (port, ip) in PLACES {
        // A caller of its own machine comes from the address that it calls.
        let from = if ip == "0.0.0.0" { Pod::IP } else { ip };
        let answer = outside.run(|| asked(port));
        assert_eq!(answer, format!("{from} hello"), "{port} at {ip}");
    }
    assert_eq!(outside.run(|| asked(CLOSED)), "");

    for (port, ip) in PLACES {
        let socket = outside.run(|| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
        socket.connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        socket.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
        for said in ["one", "two", "three"] {
            socket.send(said.as_bytes()).unwrap();
            let mut answer = [0; 64];
            let length = socket.recv(&mut answer).unwrap();
            assert_eq!(&answer[..length], said.as_bytes(), "{port}/UDP at {ip}");
        }
    }
    // Somebody who listens later is found by the next datagram.
    let socket = outside.run(|| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
    socket.connect((Ipv4Addr::LOCALHOST, CLOSED)).unwrap();
    socket.send(b"lost").unwrap();
    echo(
        &rig.pod.inside,
        SocketAddr::from((Ipv4Addr::LOCALHOST, CLOSED)),
    );
    let short = std::time::Duration::from_millis(300);
    socket.set_read_timeout(Some(short)).unwrap();
    until("an answer", || {
        socket.send(b"again").unwrap();
        let length = socket.recv(&mut [0; 64]).ok()?;
        (length == 5).then_some(())
    });
}
