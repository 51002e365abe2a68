//! Connections of workstations into the cluster, which the agent dials from its pod.

use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::time::{Duration, Instant};

use bytes::Bytes;
use harness::pod::{Pod, Space};
use harness::wait::WAIT_TIMEOUT;
use tokio::sync::mpsc;
use tonic::Streaming;
use traffic_proto::conn_id::ConnId;
use traffic_proto::manager::TunnelMessage;
use traffic_proto::port::Transport;
use traffic_proto::tunnel::{Message, StreamInfo};

use crate::rig::{NOBODY, NOBODY6, Rig, SEARCH, Workstation, ips};

/// Time a dial gets from the workstation.
const DIAL_TIMEOUT: Duration = Duration::from_millis(600);
/// Port of everything that answers, and of nothing.
const ECHO: u16 = 7000;
const CLOSED: u16 = 7001;

/// One tunnel of a workstation, through the manager.
struct Wire {
    tx: mpsc::Sender<TunnelMessage>,
    rx: Streaming<TunnelMessage>,
}

impl Wire {
    /// Asks for a connection, and returns it behind the answer to the dial.
    async fn dial(
        workstation: &Workstation,
        transport: Transport,
        to: SocketAddr,
    ) -> (Self, Message) {
        let source = match to {
            SocketAddr::V4(_) => "192.0.2.1:4711".parse().unwrap(),
            SocketAddr::V6(_) => "[2001:db8::1]:4711".parse().unwrap(),
        };
        let conn = ConnId::new(transport, source, to);
        let session = &workstation.session.session_id;
        let info = StreamInfo::new(conn, session, Duration::ZERO, DIAL_TIMEOUT);
        let (tx, rx) = mpsc::channel(16);
        tx.send(message(&Message::StreamInfo(info))).await.unwrap();
        let outgoing = tokio_stream::wrappers::ReceiverStream::new(rx);
        let rx = workstation.manager.clone().tunnel(outgoing).await.unwrap();
        let mut wire = Self {
            tx,
            rx: rx.into_inner(),
        };
        assert!(matches!(wire.next().await, Message::StreamOk(_)));
        let verdict = wire.next().await;
        (wire, verdict)
    }

    async fn next(&mut self) -> Message {
        let next = tokio::time::timeout(WAIT_TIMEOUT, self.rx.message());
        let next = next.await.expect("a message in time").unwrap();
        Message::decode(next.expect("a message before the end").payload).unwrap()
    }

    async fn send(&self, payload: &'static [u8]) {
        let message = message(&Message::Normal(Bytes::from_static(payload)));
        self.tx.send(message).await.unwrap();
    }

    /// Sends bytes and returns what comes back.
    async fn echoed(&mut self, payload: &'static [u8]) -> Bytes {
        self.send(payload).await;
        match self.next().await {
            Message::Normal(payload) => payload,
            other => panic!("{other:?}"),
        }
    }
}

fn message(message: &Message) -> TunnelMessage {
    TunnelMessage {
        payload: message.encode(),
    }
}

/// Answers connections and datagrams to an address with the caller's address, and the bytes.
fn echo(space: &Space, ip: &str) {
    let at = SocketAddr::new(ip.parse().unwrap(), ECHO);
    let (listener, socket) =
        space.run(|| (TcpListener::bind(at).unwrap(), UdpSocket::bind(at).unwrap()));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let from = stream.peer_addr().unwrap().ip();
                std::io::Write::write_all(&mut stream, format!("{from} ").as_bytes()).unwrap();
                let mut back = stream.try_clone().unwrap();
                let _ = std::io::copy(&mut stream, &mut back);
            });
        }
    });
    std::thread::spawn(move || {
        let mut datagram = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut datagram) {
            let _ = socket.send_to(&datagram[..length], from);
        }
    });
}

fn rig() -> Rig {
    let rig = Rig::start(&format!("nameserver 10.88.0.1\n{SEARCH}"));
    for ip in [Pod::OUTSIDE, Pod::OUTSIDE6] {
        echo(&rig.pod.outside, ip);
    }
    for ip in ["127.0.0.1", "::1"] {
        echo(&rig.pod.inside, ip);
    }
    rig
}

#[test]
fn a_dial_reaches_what_the_pod_reaches_and_says_what_it_does_not() {
    let rig = rig();
    rig.pod
        .inside
        .sh("ip route add prohibit 10.99.0.0/24; ip -6 route add unreachable fd99::/64");
    let rows = [
        // From the pod's own address, in both families; its loopback is the pod's.
        (Pod::OUTSIDE, ECHO, Some(Pod::IP)),
        (Pod::OUTSIDE6, ECHO, Some(Pod::IP6)),
        ("127.0.0.1", ECHO, Some("127.0.0.1")),
        ("::1", ECHO, Some("::1")),
        // Refused, without a route, forbidden.
        (Pod::OUTSIDE, CLOSED, None),
        (Pod::OUTSIDE6, CLOSED, None),
        ("203.0.113.1", ECHO, None),
        ("2001:db8::1", ECHO, None),
        ("10.99.0.1", ECHO, None),
        ("fd99::1", ECHO, None),
        // Nobody answers: as long as the workstation said.
        (NOBODY, ECHO, None),
        (NOBODY6, ECHO, None),
    ];
    rig.workstation(async |workstation| {
        for (ip, port, from) in rows {
            let to = SocketAddr::new(ip.parse().unwrap(), port);
            let begin = Instant::now();
            let (mut wire, verdict) = Wire::dial(&workstation, Transport::Tcp, to).await;
            let took = begin.elapsed();
            let Some(from) = from else {
                assert_eq!(verdict, Message::DialReject, "{to}");
                let waits = ip == NOBODY || ip == NOBODY6;
                assert_eq!(took >= DIAL_TIMEOUT, waits, "{to} after {took:?}");
                continue;
            };
            assert_eq!(verdict, Message::DialOk, "{to}");
            let mut said = wire.next().await;
            if let Message::Normal(greeting) = &mut said {
                assert_eq!(greeting, format!("{from} ").as_bytes(), "{to}");
            }
            assert_eq!(
                wire.echoed(b"and back").await,
                &b"and back"[..],
                "{to}: {said:?}"
            );
        }
    });
}

#[test]
fn datagrams_go_there_and_back() {
    let rig = rig();
    rig.workstation(async |workstation| {
        for ip in [Pod::OUTSIDE, Pod::OUTSIDE6, "127.0.0.1", "::1"] {
            let to = SocketAddr::new(ip.parse().unwrap(), ECHO);
            let (mut wire, verdict) = Wire::dial(&workstation, Transport::Udp, to).await;
            assert_eq!(verdict, Message::DialOk, "{to}");
            // Each is one message, an empty one as well.
            for datagram in [&b"one"[..], b"", b"another"] {
                assert_eq!(wire.echoed(datagram).await, datagram, "{to}");
            }
        }
        // One that nobody takes is lost, and those behind it arrive.
        let closed = SocketAddr::new(Pod::OUTSIDE.parse().unwrap(), CLOSED);
        let (mut wire, verdict) = Wire::dial(&workstation, Transport::Udp, closed).await;
        assert_eq!(verdict, Message::DialOk);
        wire.send(b"lost").await;
        wire.send(b"lost").await;
        let late = rig.pod.outside.run(|| UdpSocket::bind(closed).unwrap());
        std::thread::spawn(move || {
            let mut datagram = [0; 64];
            while let Ok((length, from)) = late.recv_from(&mut datagram) {
                if &datagram[..length] == b"kept" {
                    let _ = late.send_to(b"kept", from);
                }
            }
        });
        assert_eq!(wire.echoed(b"kept").await, &b"kept"[..]);
    });
}

/// A name, as the stock client does it: looked up by the pod, then dialled by address.
#[test]
fn a_service_is_reached_by_its_name() {
    let rig = rig();
    rig.workstation(async |workstation| {
        for (kind, expected) in [("A", Pod::OUTSIDE), ("AAAA", Pod::OUTSIDE6)] {
            let found = workstation.text("echo.", kind).await;
            assert_eq!(found, expected);
            let to = SocketAddr::new(found.parse().unwrap(), ECHO);
            let (mut wire, verdict) = Wire::dial(&workstation, Transport::Tcp, to).await;
            assert_eq!(verdict, Message::DialOk);
            wire.next().await;
            assert_eq!(wire.echoed(b"hello").await, &b"hello"[..]);
        }
    });
    let directly = ips(rig.asked_directly("echo.")).unwrap();
    let all = directly.iter().map(|ip| ip.parse::<IpAddr>().unwrap());
    assert_eq!(all.count(), 2);
}
