//! Connections of workstations into the cluster, which the agent dials from its pod: asked through
//! the manager, and at its own port.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::time::{Duration, Instant};

use bytes::Bytes;
use harness::pod::{Pod, Space};
use harness::wait::WAIT_TIMEOUT;
use tokio::sync::mpsc;
use tonic::Streaming;
use tonic::transport::Channel;
use traffic_proto::agent::agent_client::AgentClient;
use traffic_proto::conn_id::ConnId;
use traffic_proto::manager::manager_client::ManagerClient;
use traffic_proto::manager::{SessionInfo, TunnelMessage};
use traffic_proto::port::Transport;
use traffic_proto::tunnel::{Message, StreamInfo};

use crate::rig::{NOBODY, NOBODY6, Rig, SEARCH, Workstation, ips};

/// Time a dial gets from the workstation.
const DIAL_TIMEOUT: Duration = Duration::from_millis(600);
/// Port of everything that answers, and of nothing.
const ECHO: u16 = 7000;
const CLOSED: u16 = 7001;

/// A way to the agent, in a workstation's session.
struct Dialer {
    way: Way,
    session: SessionInfo,
}

enum Way {
    Manager(ManagerClient<Channel>),
    Agent(AgentClient<Channel>),
}

/// Does what `test` says through the manager and at the agent's own port.
fn either_way(rig: &Rig, test: impl AsyncFn(&Dialer) + Sync) {
    let session = rig.workstation(async |Workstation { manager, session }| {
        let dialer = Dialer {
            way: Way::Manager(manager),
            session: session.clone(),
        };
        test(&dialer).await;
        session
    });
    rig.directly(async |agent| {
        let dialer = Dialer {
            way: Way::Agent(agent),
            session,
        };
        test(&dialer).await;
    });
}

/// One tunnel of a workstation.
struct Wire {
    tx: mpsc::Sender<TunnelMessage>,
    rx: Streaming<TunnelMessage>,
}

impl Wire {
    /// Asks for a connection, and returns it behind the answer to the dial.
    async fn dial(dialer: &Dialer, transport: Transport, to: SocketAddr) -> (Self, Message) {
        let source = match to {
            SocketAddr::V4(_) => "192.0.2.1:4711".parse().unwrap(),
            SocketAddr::V6(_) => "[2001:db8::1]:4711".parse().unwrap(),
        };
        let conn = ConnId::new(transport, source, to);
        let session = &dialer.session.session_id;
        let info = StreamInfo::new(conn, session, Duration::ZERO, DIAL_TIMEOUT);
        let (tx, rx) = mpsc::channel(16);
        tx.send(message(&Message::StreamInfo(info))).await.unwrap();
        let outgoing = tokio_stream::wrappers::ReceiverStream::new(rx);
        let rx = match &dialer.way {
            Way::Manager(manager) => manager.clone().tunnel(outgoing).await,
            Way::Agent(agent) => agent.clone().tunnel(outgoing).await,
        };
        let mut wire = Self {
            tx,
            rx: rx.unwrap().into_inner(),
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
pub(crate) fn echo(space: &Space, at: SocketAddr) {
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
        echo(&rig.pod.outside, SocketAddr::new(ip.parse().unwrap(), ECHO));
    }
    for ip in ["127.0.0.1", "::1"] {
        echo(&rig.pod.inside, SocketAddr::new(ip.parse().unwrap(), ECHO));
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
        // The agent's own, and a cloud's metadata.
        ("127.0.0.1", 18000, None),
        ("169.254.169.254", ECHO, None),
        // Nobody answers: as long as the workstation said.
        (NOBODY, ECHO, None),
        (NOBODY6, ECHO, None),
    ];
    either_way(&rig, async |dialer| {
        for (ip, port, from) in rows {
            let to = SocketAddr::new(ip.parse().unwrap(), port);
            let begin = Instant::now();
            let (mut wire, verdict) = Wire::dial(dialer, Transport::Tcp, to).await;
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
    either_way(&rig, async |dialer| {
        for ip in [Pod::OUTSIDE, Pod::OUTSIDE6, "127.0.0.1", "::1"] {
            let to = SocketAddr::new(ip.parse().unwrap(), ECHO);
            let (mut wire, verdict) = Wire::dial(dialer, Transport::Udp, to).await;
            assert_eq!(verdict, Message::DialOk, "{to}");
            // Each is one message, an empty one as well.
            for datagram in [&b"one"[..], b"", b"another"] {
                assert_eq!(wire.echoed(datagram).await, datagram, "{to}");
            }
        }
        // One that nobody takes is lost, and those behind it arrive.
        let closed = SocketAddr::new(Pod::OUTSIDE.parse().unwrap(), CLOSED);
        let (mut wire, verdict) = Wire::dial(dialer, Transport::Udp, closed).await;
        assert_eq!(verdict, Message::DialOk);
        wire.send(b"lost").await;
        wire.send(b"lost").await;
        let late = rig.pod.outside.run(|| UdpSocket::bind(closed).unwrap());
        let answering = std::thread::spawn(move || {
            let mut datagram = [0; 64];
            loop {
                let (length, from) = late.recv_from(&mut datagram).unwrap();
                if &datagram[..length] == b"kept" {
                    late.send_to(b"kept", from).unwrap();
                    // The port is closed again for the other way.
                    return;
                }
            }
        });
        assert_eq!(wire.echoed(b"kept").await, &b"kept"[..]);
        answering.join().unwrap();
    });
}

/// A name, as the stock client does it: looked up by the pod, then dialled by address.
#[test]
fn a_service_is_reached_by_its_name() {
    let rig = rig();
    let all = [("A", Pod::OUTSIDE), ("AAAA", Pod::OUTSIDE6)];
    let through_manager = rig.workstation(async |workstation| {
        let mut found = Vec::new();
        for (kind, _) in all {
            found.push(workstation.text("echo.", kind).await);
        }
        found
    });
    assert_eq!(through_manager, all.map(|(_, ip)| ip));
    let mut directly = ips(rig.asked_directly("echo.")).unwrap();
    directly.sort();
    assert_eq!(directly, through_manager);
    either_way(&rig, async |dialer| {
        for ip in &directly {
            let to = SocketAddr::new(ip.parse().unwrap(), ECHO);
            let (mut wire, verdict) = Wire::dial(dialer, Transport::Tcp, to).await;
            assert_eq!(verdict, Message::DialOk);
            wire.next().await;
            assert_eq!(wire.echoed(b"hello").await, &b"hello"[..]);
        }
    });
}
