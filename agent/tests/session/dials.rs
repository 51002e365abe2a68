//! Dials for workstations that must not be made, or are too many, beside a caller that nobody
//! intercepts.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use traffic_proto::agent::agent_client::AgentClient;
use traffic_proto::conn_id::ConnId;
use traffic_proto::manager::{DnsRequest, InterceptDispositionType as Disposition};
use traffic_proto::port::Transport;
use traffic_proto::tunnel::{Message, StreamInfo};

use crate::WAIT_TIMEOUT;
use crate::fake::{Fake, Wire, intercept, outgoing};
use crate::pod::{Pod, free_ports};
use crate::steady::Control;

async fn pod(limits: &str) -> (Fake, Pod, mpsc::Receiver<(StreamInfo, Wire)>) {
    let (fake, dialled) = Fake::start("127.0.0.1:0".parse().unwrap()).await;
    let pod = Pod::start(fake.address, limits).await;
    fake.until("the watches", |s| {
        s.watched.contains(&"dials") && s.watched.contains(&"questions")
    })
    .await;
    (fake, pod, dialled)
}

fn conn(source: u16, destination: SocketAddr) -> ConnId {
    ConnId::new(
        Transport::Tcp,
        SocketAddr::from(([10, 9, 9, 9], source)),
        destination,
    )
}

/// What the agent says about a dial that the manager asks for.
async fn verdict(
    fake: &Fake,
    dialled: &mut mpsc::Receiver<(StreamInfo, Wire)>,
    destination: SocketAddr,
) -> Message {
    verdict_of(fake, dialled, conn(4711, destination)).await
}

async fn verdict_of(
    fake: &Fake,
    dialled: &mut mpsc::Receiver<(StreamInfo, Wire)>,
    conn: ConnId,
) -> Message {
    fake.dial(conn);
    let (_, mut wire) = tokio::time::timeout(WAIT_TIMEOUT, dialled.recv())
        .await
        .unwrap()
        .unwrap();
    wire.next().await
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_reaches_the_agents_own_ports_through_it() {
    let [metrics_port] = free_ports();
    let (fake, pod, mut dialled) = pod(&format!("metrics: {{port: {metrics_port}}}")).await;
    let control = Control::of(&pod).await;
    let steady = control.beside(&pod);
    let mut refused = 0;
    for port in [pod.admin_port(), pod.api_port(), metrics_port] {
        for ip in [
            "127.0.0.1",
            "127.0.0.9",
            "0.0.0.0",
            "::1",
            "::",
            "::ffff:127.0.0.1",
        ] {
            let destination = SocketAddr::new(ip.parse().unwrap(), port);
            let said = verdict(&fake, &mut dialled, destination).await;
            assert_eq!(said, Message::DialReject, "{destination}");
            refused += 1;
        }
    }
    // A workstation that is attached to the agent itself gets no further.
    let mut client = AgentClient::connect(format!("http://127.0.0.1:{}", pod.api_port()))
        .await
        .unwrap();
    let own = conn(1, SocketAddr::from(([127, 0, 0, 1], pod.admin_port())));
    let info = StreamInfo::new(own, "client-1", Duration::ZERO, Duration::from_secs(2));
    let (tx, rx) = mpsc::channel(16);
    tx.send(Message::StreamInfo(info).encode()).await.unwrap();
    let rx = client.tunnel(outgoing(rx)).await.unwrap().into_inner();
    let mut wire = Wire { tx, rx };
    assert_eq!(wire.next().await, Message::StreamOk(2));
    assert_eq!(wire.next().await, Message::DialReject);
    assert_eq!(
        pod.stat("traffic_agent.limits.dial_own_port").await,
        refused + 1
    );
    pod.until("the refusal in the log", |pod| {
        !pod.lines("the destination is a port of this agent")
            .is_empty()
    })
    .await;
    // Everything else of the pod is dialled as ever.
    let app = SocketAddr::from(([127, 0, 0, 1], pod.app_port));
    assert_eq!(verdict(&fake, &mut dialled, app).await, Message::DialOk);
    steady.unharmed(&control).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn link_local_addresses_are_dialled_only_where_that_is_allowed() {
    let (fake, pod, mut dialled) = pod("dial: {allow: ['169.254.20.10']}").await;
    for ip in [
        "169.254.169.254",
        "::ffff:169.254.169.254",
        "fe80::1",
        "fd00:ec2::254",
    ] {
        let destination = SocketAddr::new(ip.parse().unwrap(), 80);
        let said = verdict(&fake, &mut dialled, destination).await;
        assert_eq!(said, Message::DialReject, "{destination}");
    }
    assert_eq!(pod.stat("traffic_agent.limits.dial_link_local").await, 4);
    pod.until("the refusal in the log", |pod| {
        !pod.lines("link-local or metadata address").is_empty()
    })
    .await;
    // Tried, whatever comes of it.
    fake.dial(conn(1, "169.254.20.10:9".parse().unwrap()));
    dialled.recv().await.unwrap().1.next().await;
    assert_eq!(pod.stat("traffic_agent.limits.dial_link_local").await, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn dials_beyond_the_limit_are_refused_and_callers_do_not_notice() {
    let (fake, pod, mut dialled) = pod("limits: {dialledConnections: 8}").await;
    let control = Control::of(&pod).await;
    let steady = control.beside(&pod);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let destination = listener.local_addr().unwrap();
    let mut held = Vec::new();
    for n in 0..8 {
        fake.dial(conn(n + 1, destination));
        let (_, mut wire) = dialled.recv().await.unwrap();
        assert_eq!(wire.next().await, Message::DialOk);
        held.push(wire);
    }
    for n in 0..8 {
        let said = verdict_of(&fake, &mut dialled, conn(n + 100, destination)).await;
        assert_eq!(said, Message::DialReject, "dial {n} beyond");
    }
    let limit = "traffic_agent.limits.dialled_connections";
    let deadline = tokio::time::Instant::now() + WAIT_TIMEOUT;
    while pod.stat(limit).await < 8 {
        assert!(tokio::time::Instant::now() < deadline, "never refused");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    pod.until("what is said", |pod| {
        !pod.lines("raise dialledConnections").is_empty()
    })
    .await;
    // A place that is given back is taken again.
    drop(held);
    drop(listener);
    let app = SocketAddr::from(([127, 0, 0, 1], pod.app_port));
    loop {
        fake.dial(conn(200, app));
        let answer = tokio::time::timeout(Duration::from_millis(500), dialled.recv()).await;
        if let Ok(Some((_, mut wire))) = answer
            && wire.next().await == Message::DialOk
        {
            break;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "no place is given back"
        );
    }
    steady.unharmed(&control).await;
}

/// Dials that are asked for in all, of which a quarter of the descriptors' number may be held.
const HELD_DIALS: u16 = 1_100;
/// Descriptors that the agent may have, and callers at once, two descriptors each.
const DESCRIPTORS: usize = 1_024;
const CALLERS: usize = 300;

/// Workstations hold as many connections as they get and ask for names meanwhile, in a pod with few
/// descriptors: callers get theirs.
#[tokio::test(flavor = "multi_thread")]
async fn held_dials_and_questions_leave_callers_their_descriptors() {
    let (fake, mut dialled) = Fake::start("127.0.0.1:0".parse().unwrap()).await;
    let prefix = ["prlimit".to_owned(), format!("--nofile={DESCRIPTORS}")];
    let pod = Pod::start_behind(&prefix, fake.address, "").await;
    fake.until("the watches", |s| {
        s.watched.contains(&"dials") && s.watched.contains(&"questions")
    })
    .await;
    let control = Control::of(&pod).await;
    let steady = control.beside(&pod);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let destination = listener.local_addr().unwrap();
    let accepting = tokio::spawn(async move {
        let mut accepted = Vec::new();
        while let Ok((socket, _)) = listener.accept().await {
            accepted.push(socket);
        }
    });
    let mut held = Vec::new();
    let mut rejected = 0;
    for n in 1..=HELD_DIALS {
        for question in 0..5 {
            ask_for(&fake, &format!("name-{n}-{question}.invalid."));
        }
        fake.dial(conn(n, destination));
        let asked = tokio::time::timeout(WAIT_TIMEOUT, dialled.recv()).await;
        let (_, mut wire) = asked.unwrap_or_else(|_| panic!("dial {n}")).unwrap();
        match wire.next().await {
            Message::DialOk => held.push(wire),
            Message::DialReject => rejected += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(held.len(), DESCRIPTORS / 4);
    assert_eq!(rejected + held.len(), usize::from(HELD_DIALS));
    let mut callers = Vec::new();
    for _ in 0..CALLERS {
        let caller = tokio::net::TcpStream::connect(("127.0.0.1", pod.agent_port));
        callers.push(caller.await.unwrap());
    }
    let served = callers.into_iter().map(|mut caller| async move {
        let request = b"GET / HTTP/1.1\r\nhost: web\r\n\r\n";
        caller.write_all(request).await.unwrap();
        let mut answer = [0; 64];
        let count = caller.read(&mut answer).await.unwrap();
        assert!(answer[..count].ends_with(b"app"), "{count} bytes");
        caller
    });
    let callers = futures_util::future::join_all(served).await;
    assert_eq!(pod.port_stat("limits.descriptors").await, 0);
    let refused = pod.stat("traffic_agent.limits.dialled_connections").await;
    assert_eq!(refused, rejected as u64);
    assert!(!fake.seen().answers.is_empty(), "questions are answered");
    pod.until("the limit in the log", |pod| {
        !pod.lines("raise dialledConnections").is_empty()
    })
    .await;
    steady.unharmed(&control).await;
    accepting.abort();
    drop((callers, held));
}

fn ask_for(fake: &Fake, name: &str) {
    let _ = fake.questions.send(DnsRequest {
        name: name.to_owned(),
        r#type: 1,
        ..DnsRequest::default()
    });
}

/// `telepresence ingest` mounts volumes without an intercept, by what the agent says when it
/// arrives; by the pod's address alone, as it is told.
#[tokio::test(flavor = "multi_thread")]
async fn volumes_are_reached_at_the_pods_address_without_an_intercept() {
    let (fake, mut dialled) = Fake::start("127.0.0.1:0".parse().unwrap()).await;
    let root = crate::pod::new_root();
    let folder = root.path().join("tel_app_mounts/app/data");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("hello"), "hello").unwrap();
    let environment = [("A_TELEPRESENCE_MOUNTS", "/data")];
    let pod = Pod::start_in(root, fake.address, &environment).await;
    let seen = fake
        .until("the watch", |s| s.watched.contains(&"dials"))
        .await;
    let port = u16::try_from(seen.arrivals[0].sftp_port).unwrap();
    assert_ne!(port, 0);
    let said = verdict(&fake, &mut dialled, ([127, 0, 0, 9], port).into()).await;
    assert_eq!(said, Message::DialReject, "another address");
    assert_eq!(pod.stat("traffic_agent.limits.dial_own_port").await, 1);
    fake.dial(conn(4712, ([127, 0, 0, 1], port).into()));
    let (_, mut wire) = dialled.recv().await.unwrap();
    assert_eq!(wire.next().await, Message::DialOk);
    // SSH_FXP_INIT and SSH_FXP_VERSION of SFTP, version 3.
    let init = [0, 0, 0, 5, 1, 0, 0, 0, 3];
    wire.send(Message::Normal(bytes::Bytes::copy_from_slice(&init)))
        .await;
    match wire.next().await {
        Message::Normal(answer) => assert_eq!(answer[4..9], [2, 0, 0, 0, 3]),
        other => panic!("{other:?}"),
    }
    // FTP as well, with the port that it opens for a listing.
    let port = u16::try_from(seen.arrivals[0].ftp_port).unwrap();
    assert_ne!(port, 0);
    let said = verdict(&fake, &mut dialled, ([127, 0, 0, 9], port).into()).await;
    assert_eq!(said, Message::DialReject, "another address");
    fake.dial(conn(4713, ([127, 0, 0, 1], port).into()));
    let (_, mut control) = dialled.recv().await.unwrap();
    assert_eq!(control.next().await, Message::DialOk);
    let commands = &b"USER anonymous\r\nPASS x\r\nEPSV\r\nNLST app/data\r\n"[..];
    control.send(Message::Normal(commands.into())).await;
    let replies = text_until(&mut control, "\r\n150 ").await;
    let passive = replies.split('|').nth(3).unwrap().parse::<u16>().unwrap();
    fake.dial(conn(4714, ([127, 0, 0, 1], passive).into()));
    let (_, mut data) = dialled.recv().await.unwrap();
    assert_eq!(data.next().await, Message::DialOk);
    assert_eq!(text_until(&mut data, "\r\n").await, "hello\r\n");
}

/// What arrives up to a text that ends it.
async fn text_until(wire: &mut Wire, end: &str) -> String {
    let mut text = String::new();
    while !text.contains(end) {
        match wire.next().await {
            Message::Normal(bytes) => text.push_str(std::str::from_utf8(&bytes).unwrap()),
            other => panic!("{other:?} behind {text:?}"),
        }
    }
    text
}

/// Every one of 100 rejections arrives, and behind it the orderly end of the call: by the manager,
/// and directly.
#[tokio::test(flavor = "multi_thread")]
async fn a_rejection_always_arrives() {
    let (fake, pod, mut dialled) = pod("").await;
    let nobody = std::net::SocketAddr::from(([127, 0, 0, 1], harness::ports::free()));
    for n in 0..100 {
        fake.dial(conn(n + 1, nobody));
        let (_, mut wire) = dialled.recv().await.unwrap();
        assert_eq!(
            wire.next().await,
            Message::DialReject,
            "by the manager, {n}"
        );
        assert!(
            wire.rx.message().await.unwrap().is_none(),
            "by the manager, {n}"
        );
    }
    let address = format!("http://127.0.0.1:{}", pod.api_port());
    let mut client = AgentClient::connect(address).await.unwrap();
    let _watch = client
        .watch_dial(traffic_proto::manager::SessionInfo {
            session_id: "client-1".to_owned(),
            ..Default::default()
        })
        .await
        .unwrap();
    for n in 0..100 {
        let wait = Duration::from_secs(2);
        let info = StreamInfo::new(conn(n + 1, nobody), "client-1", Duration::ZERO, wait);
        let (tx, rx) = mpsc::channel(16);
        tx.send(Message::StreamInfo(info).encode()).await.unwrap();
        let rx = client.tunnel(outgoing(rx)).await.unwrap().into_inner();
        let mut wire = Wire { tx, rx };
        assert_eq!(wire.next().await, Message::StreamOk(2));
        assert_eq!(wire.next().await, Message::DialReject, "directly, {n}");
        assert!(wire.rx.message().await.unwrap().is_none(), "directly, {n}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_questions_is_cut_and_costs_neither_threads_nor_descriptors() {
    let (fake, pod, _dialled) = pod("limits: {dnsQuestions: 4}").await;
    let control = Control::of(&pod).await;
    let steady = control.beside(&pod);
    let threads = pod.threads();
    for n in 0..5_000 {
        ask_for(&fake, &format!("name-{n}.invalid."));
        if n % 8 == 0 {
            tokio::task::yield_now().await;
        }
    }
    // Answered or cut, all of them have come to an end, and the next one finds a place.
    let deadline = tokio::time::Instant::now() + WAIT_TIMEOUT;
    while pod.stat("traffic_agent.limits.dns_questions").await == 0 {
        assert!(tokio::time::Instant::now() < deadline, "never cut");
        ask_for(&fake, "once-more.invalid.");
    }
    pod.until("what is said", |pod| {
        !pod.lines("raise dnsQuestions").is_empty()
    })
    .await;
    assert_eq!(pod.threads(), threads);
    assert!(pod.descriptors() < 100, "{}", pod.descriptors());
    steady.unharmed(&control).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_by_name_costs_no_thread() {
    let (fake, pod, _dialled) = pod("").await;
    let mut named = intercept("i", Disposition::Active, pod.app_port, Some(("x-dev", "a")));
    named.spec.as_mut().unwrap().target_host = "nobody.invalid".to_owned();
    let threads = pod.threads();
    fake.show(&[named]);
    pod.until("the intercept", |pod| pod.threads() == threads)
        .await;
    for _ in 0..50 {
        assert_eq!(pod.ask("x-dev: a\r\n").await.unwrap(), "app");
    }
    assert_eq!(pod.threads(), threads);
}
