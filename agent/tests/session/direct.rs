//! Clients that are attached to the agent itself, and dials on their behalf.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::mpsc;
use tonic::Code;
use tonic::transport::Channel;
use traffic_proto::agent::agent_client::AgentClient;
use traffic_proto::conn_id::ConnId;
use traffic_proto::manager::InterceptDispositionType as Disposition;
use traffic_proto::manager::{LookupRequest, SessionInfo, TunnelMetrics};
use traffic_proto::port::Transport;
use traffic_proto::tunnel::{Message, StreamInfo};

use crate::fake::{Fake, Seen, Wire, intercept, outgoing, serve_http};
use crate::pod::{Pod, request};

async fn pod() -> (
    Fake,
    Pod,
    AgentClient<Channel>,
    mpsc::Receiver<(StreamInfo, Wire)>,
) {
    let (fake, dialled) = Fake::start("127.0.0.1:0".parse().unwrap()).await;
    let pod = Pod::start(fake.address, "").await;
    fake.until("the watches", |s| {
        s.watched.contains(&"dials") && s.watched.contains(&"deltas")
    })
    .await;
    let client = AgentClient::connect(format!("http://127.0.0.1:{}", pod.api_port()))
        .await
        .unwrap();
    (fake, pod, client, dialled)
}

fn session(id: &str) -> SessionInfo {
    SessionInfo {
        session_id: id.to_owned(),
        ..SessionInfo::default()
    }
}

async fn tunnel(client: &mut AgentClient<Channel>, first: Message) -> Result<Wire, tonic::Status> {
    let (tx, rx) = mpsc::channel(16);
    tx.send(first.encode()).await.unwrap();
    let rx = client.tunnel(outgoing(rx)).await?.into_inner();
    let mut wire = Wire { tx, rx };
    assert_eq!(wire.next().await, Message::StreamOk(2));
    Ok(wire)
}

fn info(conn_id: ConnId, session: &str) -> Message {
    Message::StreamInfo(StreamInfo::new(
        conn_id,
        session,
        Duration::ZERO,
        Duration::from_secs(2),
    ))
}

fn conn(transport: Transport, destination: SocketAddr) -> ConnId {
    ConnId::new(transport, "10.9.9.9:4711".parse().unwrap(), destination)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workstation_that_watches_the_agent_is_asked_itself() {
    let (fake, pod, mut client, _dialled) = pod().await;
    let mut first = client
        .watch_dial(session("client-1"))
        .await
        .unwrap()
        .into_inner();
    // A second watch replaces the first, and the end of the first does not end the second.
    let mut dials = client
        .watch_dial(session("client-1"))
        .await
        .unwrap()
        .into_inner();
    assert!(first.message().await.unwrap().is_none());
    drop(first);
    fake.show(&[intercept(
        "i",
        Disposition::Active,
        pod.app_port,
        Some(("x-dev", "a")),
    )]);
    let mut answering = client.clone();
    let workstation = tokio::spawn(async move {
        while let Ok(Some(request)) = dials.message().await {
            let conn_id = ConnId::parse(&request.conn_id).unwrap();
            assert_eq!(
                (conn_id.destination().port(), request.dial_timeout),
                (1, 1_000_000_000)
            );
            let mut wire = tunnel(&mut answering, info(conn_id, "client-1"))
                .await
                .unwrap();
            tokio::spawn(async move {
                wire.send(Message::DialOk).await;
                serve_http(&mut wire.rx, &wire.tx).await;
            });
        }
    });
    pod.until_answered_by("x-dev: a\r\n", "workstation").await;
    for _ in 0..20 {
        assert_eq!(pod.ask("x-dev: a\r\n").await.unwrap(), "workstation");
    }
    assert!(
        fake.seen().tunnels.is_empty(),
        "nothing went through the manager"
    );
    // Bytes of each request and answer, in reports that come at most once a second.
    let (asked, answered) = (21 * 50, 21 * 40);
    let seen = fake
        .until("reports", |s| {
            let of = |bytes: fn(&TunnelMetrics) -> u64| s.reports.iter().map(bytes).sum::<u64>();
            of(|r| r.ingress_bytes) > asked && of(|r| r.egress_bytes) > answered
        })
        .await;
    let sessions = seen.reports.iter().map(|r| &*r.client_session_id);
    assert!(sessions.clone().all(|session| session == "client-1"));
    assert!(
        sessions.count() < 10,
        "a call to the manager for each tunnel"
    );
    workstation.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workstation_that_does_not_answer_costs_the_budget_and_leaves_no_waiter_behind() {
    let (fake, pod, mut client, _dialled) = pod().await;
    let mut dials = client
        .watch_dial(session("client-1"))
        .await
        .unwrap()
        .into_inner();
    fake.show(&[intercept(
        "i",
        Disposition::Active,
        pod.app_port,
        Some(("x-dev", "a")),
    )]);
    // The watch stays open: a workstation without one is not waited for.
    let asked = tokio::spawn(async move {
        let request = dials.message().await.unwrap().unwrap();
        (ConnId::parse(&request.conn_id).unwrap(), dials)
    });
    let started = Instant::now();
    let port = pod.agent_port;
    let answer = loop {
        let began = Instant::now();
        let answer = crate::pod::request(port, "x-dev: a\r\n").await.unwrap();
        if asked.is_finished() {
            assert!(
                began.elapsed() >= Duration::from_millis(900),
                "the dial timeout is one second"
            );
            break answer;
        }
        assert!(
            started.elapsed() < crate::WAIT_TIMEOUT,
            "never asked to dial"
        );
    };
    assert_eq!(answer, "app");
    // The same connection, answered too late: not handed to the dead waiter, but dialled like any
    // other (port 1 is closed).
    let (conn, _dials) = asked.await.unwrap();
    let late = info(conn, "client-1");
    let mut wire = tunnel(&mut client, late).await.unwrap();
    assert_eq!(wire.next().await, Message::DialReject);
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_of_a_replaced_container_wait_for_a_slow_workstation() {
    let (fake, _dialled) = Fake::start("127.0.0.1:0".parse().unwrap()).await;
    let pod = Pod::start_replacing(fake.address).await;
    fake.show(&[intercept("i", Disposition::Active, pod.app_port, None)]);
    pod.until("the intercept", |p| !p.lines("dev@box started").is_empty())
        .await;
    assert_eq!(pod.ask("").await.unwrap(), "workstation");
    let before = fake.seen().tunnels.len();
    fake.script(|script| script.dial_delay = Duration::from_millis(300));
    let first = tokio::spawn(request(pod.agent_port, ""));
    let dialling = |seen: &Seen| seen.tunnels.len() > before;
    fake.until("the first dial", dialling).await;
    assert_eq!(pod.ask("").await.unwrap(), "workstation");
    assert_eq!(first.await.unwrap().unwrap(), "workstation");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_dials_anywhere_for_a_client() {
    let (_fake, _pod, mut client, _dialled) = pod().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let destination = listener.local_addr().unwrap();
    let echo = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut all = Vec::new();
        socket.read_to_end(&mut all).await.unwrap();
        socket.write_all(&all).await.unwrap();
    });
    let mut wire = tunnel(
        &mut client,
        info(conn(Transport::Tcp, destination), "client-1"),
    )
    .await
    .unwrap();
    assert_eq!(wire.next().await, Message::DialOk);
    wire.send(Message::Normal(Bytes::from_static(b"hello ")))
        .await;
    wire.send(Message::KeepAlive).await;
    wire.send(Message::Normal(Bytes::from_static(b"there")))
        .await;
    // Half-close: the answer comes only after the end of what we say.
    let (unused, _) = mpsc::channel(1);
    drop(std::mem::replace(&mut wire.tx, unused));
    let mut answer = Vec::new();
    loop {
        match wire.next().await {
            Message::Normal(data) => answer.extend_from_slice(&data),
            Message::CloseSend => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(answer, b"hello there");
    echo.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn datagrams_are_carried_and_a_closed_port_is_rejected() {
    let (_fake, _pod, mut client, _dialled) = pod().await;
    let echo = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let destination = echo.local_addr().unwrap();
    tokio::spawn(async move {
        let mut datagram = [0; 2048];
        while let Ok((n, from)) = echo.recv_from(&mut datagram).await {
            echo.send_to(&datagram[..n], from).await.unwrap();
        }
    });
    let mut wire = tunnel(
        &mut client,
        info(conn(Transport::Udp, destination), "client-1"),
    )
    .await
    .unwrap();
    assert_eq!(wire.next().await, Message::DialOk);
    for text in ["one", "two"] {
        wire.send(Message::Normal(Bytes::from_static(text.as_bytes())))
            .await;
        assert_eq!(
            wire.next().await,
            Message::Normal(Bytes::from_static(text.as_bytes()))
        );
    }
    let [closed] = crate::pod::free_ports();
    let closed = conn(Transport::Tcp, SocketAddr::from(([127, 0, 0, 1], closed)));
    let mut wire = tunnel(&mut client, info(closed, "client-1")).await.unwrap();
    assert_eq!(wire.next().await, Message::DialReject);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_manager_may_ask_for_a_dial() {
    let (fake, _pod, _client, mut dialled) = pod().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let conn_id = conn(Transport::Tcp, listener.local_addr().unwrap());
    fake.dial(conn_id);
    let (mut socket, _) = listener.accept().await.unwrap();
    let (info, mut wire) = tokio::time::timeout(crate::WAIT_TIMEOUT, dialled.recv())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (info.session_id.as_str(), info.conn_id),
        ("session-0", conn_id)
    );
    assert_eq!(wire.next().await, Message::DialOk);
    wire.send(Message::Normal(Bytes::from_static(b"ping")))
        .await;
    let mut said = [0; 4];
    socket.read_exact(&mut said).await.unwrap();
    socket.write_all(&said).await.unwrap();
    assert_eq!(
        wire.next().await,
        Message::Normal(Bytes::from_static(b"ping"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_make_no_sense_are_refused_alone() {
    let (_fake, pod, mut client, _dialled) = pod().await;
    let nowhere = conn(Transport::Tcp, "127.0.0.1:1".parse().unwrap());
    let code = |r: Result<Wire, tonic::Status>| r.map(|_| ()).unwrap_err().code();
    assert_eq!(
        code(tunnel(&mut client, Message::DialOk).await),
        Code::FailedPrecondition
    );
    assert_eq!(
        code(tunnel(&mut client, info(nowhere, "")).await),
        Code::Unauthenticated
    );
    assert_eq!(
        client.watch_dial(session("")).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    let lookup = |name: &str| LookupRequest {
        name: name.to_owned(),
        ..LookupRequest::default()
    };
    assert_eq!(
        client.lookup(lookup("localhost")).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    assert_eq!(
        client.lookup(lookup(".")).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    let version = client.version(()).await.unwrap().into_inner();
    assert!(
        version.version.starts_with('v') && version.name.contains("Traffic Agent"),
        "{version:?}"
    );
    assert_eq!(pod.ask("").await.unwrap(), "app");
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_on_a_port_declared_as_http2_is_said_to_everybody_concerned() {
    let (fake, _dialled) = Fake::start("127.0.0.1:0".parse().unwrap()).await;
    let pod = Pod::start(fake.address, "appProtocolStrategy: http2").await;
    fake.until("the watch", |s| s.watched.contains(&"deltas"))
        .await;
    let shown = intercept("i", Disposition::Active, pod.app_port, Some(("x-dev", "a")));
    fake.show(std::slice::from_ref(&shown));
    pod.until("the intercept", |pod| !pod.lines("started").is_empty())
        .await;
    let mut caller = tokio::net::TcpStream::connect(("127.0.0.1", pod.agent_port))
        .await
        .unwrap();
    // The first bytes of a ClientHello.
    let hello = [22, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3];
    caller.write_all(&hello).await.unwrap();
    pod.until("the warning", |pod| {
        !pod.lines("speak TLS, which is relayed unread").is_empty()
    })
    .await;
    let explained = pod.admin(&format!("/explain?port={}", pod.app_port)).await;
    assert!(explained.contains("relayed unread"), "{explained}");
    let seen = fake
        .until("the report", |s| {
            s.reports.iter().any(|r| r.failed_open == 1)
        })
        .await;
    let report = seen.reports.iter().find(|r| r.failed_open == 1).unwrap();
    assert_eq!(report.intercept_id, shown.id);
    assert!(report.failure.contains("speak TLS"), "{}", report.failure);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_tunnel_through_the_manager_gives_way_once_the_workstation_is_attached() {
    let (fake, pod, mut client, _dialled) = pod().await;
    fake.show(&[intercept(
        "i",
        Disposition::Active,
        pod.app_port,
        Some(("x-dev", "a")),
    )]);
    pod.until_answered_by("x-dev: a\r\n", "workstation").await;
    let mut caller = tokio::net::TcpStream::connect(("127.0.0.1", pod.agent_port))
        .await
        .unwrap();
    assert_eq!(ask_again(&mut caller).await, "workstation");
    let through_manager = fake.seen().tunnels.len();
    assert_eq!(ask_again(&mut caller).await, "workstation");
    assert_eq!(fake.seen().tunnels.len(), through_manager, "it is kept");

    let mut dials = client
        .watch_dial(session("client-1"))
        .await
        .unwrap()
        .into_inner();
    let next = ask_again(&mut caller);
    let attached = async {
        let request = dials.message().await.unwrap().unwrap();
        let conn_id = ConnId::parse(&request.conn_id).unwrap();
        let mut wire = tunnel(&mut client.clone(), info(conn_id, "client-1"))
            .await
            .unwrap();
        wire.send(Message::DialOk).await;
        tokio::spawn(async move { serve_http(&mut wire.rx, &wire.tx).await });
    };
    let (answer, ()) = tokio::join!(next, attached);
    assert_eq!(answer, "workstation");
    assert_eq!(ask_again(&mut caller).await, "workstation");
    assert_eq!(fake.seen().tunnels.len(), through_manager);
    // The manager may go: the caller's connection does not need it.
    fake.vanish();
    assert_eq!(ask_again(&mut caller).await, "workstation");
}

/// Sends a matched request on a connection that is kept, and returns who answered.
async fn ask_again(caller: &mut tokio::net::TcpStream) -> String {
    let request = b"GET / HTTP/1.1\r\nhost: app\r\nx-dev: a\r\n\r\n";
    caller.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"workstation") && !answer.ends_with(b"app") {
        let read = caller.read_buf(&mut answer).await.unwrap();
        assert_ne!(read, 0, "{}", String::from_utf8_lossy(&answer));
    }
    let text = String::from_utf8(answer).unwrap();
    text.rsplit("\r\n").next().unwrap().to_owned()
}
