//! Crowds of slow connections near the memory limit, beside a caller with a connection of its own; and
//! what an attached workstation takes.

use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tonic::Streaming;
use tonic::transport::Channel;
use traffic_proto::agent::agent_client::AgentClient;
use traffic_proto::manager::{DialRequest, InterceptDispositionType as Disposition, InterceptInfo};

use crate::fake::{Fake, intercept};
use crate::pod::Pod;
use crate::steady::{Caller, Control};

/// Callers in the crowd; far more than the limits of these tests admit.
const CROWD: usize = 1_500;
/// Resident memory that the agent may take beyond what it has at rest.
const HEADROOM: usize = 14 << 20;
/// Pages of the program's file that are resident at rest and that a busy system takes back: by so
/// much memory of its own may grow above that.
const FILE_PAGES_KIB: u64 = 6 << 10;
/// Room in the address space. It is no measure of resident memory: the C library reserves 64 MiB of
/// addresses for each thread that allocates, which count before anything lies there, and a crowd is
/// served out of that first. So 40 to 48 MiB become resident here; who wants less limits memory itself.
const ADDRESS_ROOM: usize = 32 << 20;
/// What each says and then no more: most of a head, so that it has to be kept.
const PART_OF_A_HEAD: usize = 24 * 1024;

/// Slow callers, soon all of them at once; those that are refused are gone at once. They come a few at
/// a time, since it is memory and no processor that they are to take.
async fn crowd(pod: &Pod) -> Vec<TcpStream> {
    let head = format!("GET / HTTP/1.1\r\nx-long: {}", "x".repeat(PART_OF_A_HEAD));
    let mut crowd = Vec::new();
    for n in 0..CROWD {
        if n % 10 == 0 {
            tokio::time::sleep(Duration::from_millis(15)).await;
        }
        // One that is refused may learn it before it is connected.
        if let Ok(mut socket) = TcpStream::connect(("127.0.0.1", pod.agent_port)).await {
            let _ = socket.write_all(head.as_bytes()).await;
            crowd.push(socket);
        }
    }
    crowd
}

/// Lets the crowd come; new connections are refused, one that is open is served as before.
async fn withstands(pod: &Pod, most_kib: u64) {
    let control = Control::by(Caller::Kept, pod).await;
    let steady = control.beside(pod);
    let crowd = crowd(pod).await;
    pod.until("somebody to be refused", |pod| {
        !pod.lines("memory limit near").is_empty()
    })
    .await;
    assert!(pod.port_stat("limits.memory").await > 0);
    drop(crowd);
    steady.unharmed_within(&control, most_kib).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn near_the_configured_limit_new_connections_are_refused() {
    let (fake, _dialled) = Fake::start("127.0.0.1:0".parse().unwrap()).await;
    let idle = Pod::start(fake.address, "").await;
    let limit = idle.memory("VmRSS") + HEADROOM;
    let pod = Pod::start(fake.address, &format!("limits: {{memory: {limit}}}")).await;
    withstands(&pod, (HEADROOM as u64 >> 10) + FILE_PAGES_KIB).await;
    assert!(
        pod.memory("VmHWM") < limit,
        "{} {limit}",
        pod.memory("VmHWM")
    );
    assert_eq!(pod.end().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn near_the_end_of_the_address_space_nothing_aborts() {
    let (fake, _dialled) = Fake::start("127.0.0.1:0".parse().unwrap()).await;
    let idle = Pod::start(fake.address, "").await;
    let limit = idle.memory("VmSize") + ADDRESS_ROOM;
    let prefix = ["prlimit".to_owned(), format!("--as={limit}")];
    let pod = Pod::start_behind(&prefix, fake.address, "").await;
    withstands(&pod, 64 << 10).await;
    assert_eq!(pod.end().await, 0);
}

/// Intercepts, each of a client of its own.
const INTERCEPTS: usize = 200;
/// Intercepts before them: they pay for what is there once, such as the thread that applies large
/// snapshots.
const WARM_UP: usize = 40;
/// Memory that each may take, with its workstation attached. Of the 28 kB that the HTTP/2 library
/// allocates for a connection 13 are resident: its buffers are touched where they begin. 8 are what
/// else hyper, h2 and the runtime keep for a connection and its call, 3 the intercept. 23.7 to 24.3
/// thousand bytes are seen; the rest is for what runs differ.
const MAX_PER_INTERCEPT: usize = 25_500;

/// Shows `count` intercepts to the agent and attaches their workstations.
async fn attach(
    fake: &Fake,
    pod: &Pod,
    shown: &mut Vec<InterceptInfo>,
    count: usize,
) -> Vec<(AgentClient<Channel>, Streaming<DialRequest>)> {
    let first = shown.len();
    for n in first..first + count {
        let (name, session) = (format!("i{n}"), format!("client-{n}"));
        let header = Some(("x-dev", name.as_str()));
        let mut one = intercept(&name, Disposition::Active, pod.app_port, header);
        one.id = format!("{session}:{name}");
        one.client_session
            .as_mut()
            .unwrap()
            .session_id
            .clone_from(&session);
        shown.push(one);
    }
    fake.show(shown);
    // Whoever attaches comes when the intercept is there.
    let last = format!("{} of", shown.last().unwrap().id);
    pod.until("the snapshot to be applied", |pod| {
        !pod.lines(&last).is_empty()
    })
    .await;
    let mut attached = Vec::new();
    for one in &shown[first..] {
        let address = format!("http://127.0.0.1:{}", pod.api_port());
        let mut client = AgentClient::connect(address).await.unwrap();
        let session = one.client_session.clone().unwrap();
        let deadline = tokio::time::Instant::now() + crate::WAIT_TIMEOUT;
        let dials = loop {
            // It is not known before the snapshot has arrived.
            match client.watch_dial(session.clone()).await {
                Ok(dials) => break dials.into_inner(),
                Err(status) => assert!(tokio::time::Instant::now() < deadline, "{status}"),
            }
        };
        attached.push((client, dials));
    }
    attached
}

#[tokio::test(flavor = "multi_thread")]
async fn an_intercept_with_its_workstation_attached_takes_little_memory() {
    let (fake, _dialled) = Fake::start("127.0.0.1:0".parse().unwrap()).await;
    let pod = Pod::start(fake.address, "").await;
    fake.until("the watch", |s| s.watched.contains(&"deltas"))
        .await;
    let mut shown = Vec::new();
    let mut attached = attach(&fake, &pod, &mut shown, WARM_UP).await;
    // Without what is mapped from files, which comes and goes.
    let before = pod.memory("RssAnon");
    attached.extend(attach(&fake, &pod, &mut shown, INTERCEPTS).await);
    let each = pod.memory("RssAnon").saturating_sub(before) / INTERCEPTS;
    println!("{each} bytes for each of {INTERCEPTS} intercepts");
    assert!(each < MAX_PER_INTERCEPT, "{each} bytes");
    drop(attached);
}
