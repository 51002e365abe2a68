//! UDP flows with real sockets: many callers, the right return address, rules that change, idle
//! expiry, limits.

#![allow(clippy::unwrap_used)]

mod refused;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use agent_testkit::WAIT_TIMEOUT;
use agent_testkit::intercept::whole_port;
use agent_testkit::port::context;
use agent_testkit::tunnels::{FakeTunnels, FarEnd};
use bytes::Bytes;
use tokio::net::UdpSocket;
use tokio::time::timeout;
use traffic_agent::proxy::context::PortContext;
use traffic_agent::proxy::udp;
use traffic_agent::proxy::udp::UdpLimits;
use traffic_agent::telemetry::metrics::{FailOpen, Limit};
use traffic_agent::upstream::Transport;
use traffic_core::routing::RouteTable;
use traffic_proto::tunnel::Message;

const LATE_DELAY: Duration = Duration::from_millis(300);

/// An app that answers each datagram with the address of its peer and what it said; to `late` it
/// answers after [`LATE_DELAY`].
async fn app() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let addr = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buf = vec![0; 65_536];
        loop {
            let (n, from) = socket.recv_from(&mut buf).await.unwrap();
            let said = String::from_utf8_lossy(&buf[..n]).into_owned();
            if said == "late" {
                tokio::time::sleep(LATE_DELAY).await;
            }
            socket
                .send_to(format!("{from} {said}").as_bytes(), from)
                .await
                .unwrap();
        }
    });
    addr
}

struct Agent {
    addr: SocketAddr,
    shared: Arc<PortContext>,
    task: tokio::task::JoinHandle<std::io::Result<()>>,
}

async fn agent(bind: &str, tunnels: Arc<FakeTunnels>, limits: UdpLimits) -> Agent {
    let mut shared = context(app().await, tunnels);
    shared.transport = Transport::Udp;
    let shared = Arc::new(shared);
    let socket = UdpSocket::bind(bind).await.unwrap();
    let addr = socket.local_addr().unwrap();
    let task = tokio::spawn(udp::serve(socket, shared.clone(), limits));
    Agent { addr, shared, task }
}

async fn caller(to: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })
        .await
        .unwrap();
    socket.connect(to).await.unwrap();
    socket
}

/// Asks, again after a while since datagrams may be lost, and answers the peer the app saw.
async fn ask(caller: &UdpSocket, word: &str) -> String {
    let mut buf = [0; 200];
    let asked = async {
        loop {
            caller.send(word.as_bytes()).await.unwrap();
            if let Ok(n) = timeout(Duration::from_secs(2), caller.recv(&mut buf)).await {
                let said = String::from_utf8_lossy(&buf[..n.unwrap()]).into_owned();
                if let Some((peer, echoed)) = said.split_once(' ')
                    && echoed == word
                {
                    return peer.to_owned();
                }
            }
        }
    };
    timeout(WAIT_TIMEOUT, asked).await.expect("an answer")
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let waited = timeout(WAIT_TIMEOUT, async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_callers_each_get_their_own_answers_over_their_own_flow() {
    let agent = agent("127.0.0.1:0", FakeTunnels::away(), UdpLimits::default()).await;
    let mut callers = Vec::new();
    for _ in 0..1000 {
        callers.push(caller(agent.addr).await);
    }
    let mut peers = std::collections::HashSet::new();
    for round in 0..2 {
        for (i, caller) in callers.iter().enumerate() {
            peers.insert(ask(caller, &format!("{round}-{i}")).await);
        }
    }
    assert_eq!(
        peers.len(),
        1000,
        "one flow for each caller, kept over both rounds"
    );
    assert_eq!(agent.shared.metrics.udp_flows.get(), 1000);
    // Counted after it is sent, so the caller may be quicker than the counter.
    until("every answer is counted", || {
        agent.shared.metrics.datagrams_out.get() >= 2000
    })
    .await;
}

#[tokio::test]
async fn answers_come_from_the_address_the_caller_used() {
    // Connected callers drop everything from elsewhere, so an answer is the proof.
    let agent = agent("0.0.0.0:0", FakeTunnels::away(), UdpLimits::default()).await;
    for ip in ["127.0.0.1", "127.0.0.9", "127.5.5.5"] {
        ask(
            &caller(SocketAddr::new(ip.parse().unwrap(), agent.addr.port())).await,
            ip,
        )
        .await;
    }
    let agent = self::agent("[::]:0", FakeTunnels::away(), UdpLimits::default()).await;
    for ip in ["::1", "127.0.0.9"] {
        ask(
            &caller(SocketAddr::new(ip.parse().unwrap(), agent.addr.port())).await,
            ip,
        )
        .await;
    }
}

#[tokio::test]
async fn a_quiet_flow_is_forgotten_and_a_busy_one_is_not() {
    let limits = UdpLimits {
        idle: Duration::from_millis(400),
        ..UdpLimits::default()
    };
    let agent = agent("127.0.0.1:0", FakeTunnels::away(), limits).await;
    let (quiet, busy) = (caller(agent.addr).await, caller(agent.addr).await);
    let first = ask(&quiet, "a").await;
    let kept = ask(&busy, "b").await;
    timeout(WAIT_TIMEOUT, async {
        while agent.shared.metrics.udp_flows.get() > 1 {
            assert_eq!(ask(&busy, "b").await, kept, "the same flow");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("the quiet flow ends");
    until("and the busy one, once quiet", || {
        agent.shared.metrics.udp_flows.get() == 0
    })
    .await;
    assert_ne!(ask(&quiet, "c").await, first, "a fresh flow");
}

#[tokio::test]
async fn beyond_the_limit_the_least_recently_used_flow_gives_way_and_it_is_counted() {
    let limits = UdpLimits {
        flows: 2,
        ..UdpLimits::default()
    };
    let agent = agent("127.0.0.1:0", FakeTunnels::away(), limits).await;
    let (one, two, three) = (
        caller(agent.addr).await,
        caller(agent.addr).await,
        caller(agent.addr).await,
    );
    let kept = ask(&one, "1").await;
    let given = ask(&two, "2").await;
    // Times of use are told apart by the millisecond.
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert_eq!(ask(&one, "1").await, kept);
    ask(&three, "3").await;
    assert_eq!(agent.shared.metrics.limits.at(Limit::UdpFlows).get(), 1);
    assert_eq!(ask(&one, "1").await, kept, "used last, so it stays");
    assert_ne!(ask(&two, "2").await, given, "a fresh flow");
    until("two flows are left", || {
        agent.shared.metrics.udp_flows.get() == 2
    })
    .await;
}

#[tokio::test]
async fn a_flow_of_one_question_and_one_answer_ends_soon_and_a_longer_one_does_not() {
    let limits = UdpLimits {
        one_shot: Duration::from_millis(100),
        ..UdpLimits::default()
    };
    let agent = agent("127.0.0.1:0", FakeTunnels::away(), limits).await;
    let long = caller(agent.addr).await;
    let kept = ask(&long, "a").await;
    assert_eq!(ask(&long, "b").await, kept);
    for _ in 0..20 {
        ask(&caller(agent.addr).await, "once").await;
    }
    until("only the longer flow is left", || {
        agent.shared.metrics.udp_flows.get() == 1
    })
    .await;
    assert_eq!(ask(&long, "c").await, kept);
    let limits = &agent.shared.metrics.limits;
    assert_eq!(limits.at(Limit::UdpFlows).get(), 0);
}

/// An answer that comes after the time of such a flow ends it soon all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_flow_of_one_question_and_one_late_answer_ends_soon_too() {
    let limits = UdpLimits {
        one_shot: LATE_DELAY / 3,
        ..UdpLimits::default()
    };
    let agent = agent("127.0.0.1:0", FakeTunnels::away(), limits).await;
    ask(&caller(agent.addr).await, "late").await;
    until("no flow is left", || {
        agent.shared.metrics.udp_flows.get() == 0
    })
    .await;
}

/// A flood of callers that ask once, many times what the table holds, beside one that asks again
/// and again: every question of either is answered.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_new_callers_leaves_nobody_unanswered() {
    let limits = UdpLimits {
        flows: 64,
        ..UdpLimits::default()
    };
    let agent = agent("127.0.0.1:0", FakeTunnels::away(), limits).await;
    let address = agent.addr;
    let steady = caller(address).await;
    let kept = ask(&steady, "steady").await;
    for n in 0..250 {
        // Eight at a time, so that no queue of the kernel overflows, and so that the steady one is
        // never the least recently used, however late its turn comes.
        let crowd = (0..8).map(|_| async {
            ask(&caller(address).await, "once").await;
        });
        let word = n.to_string();
        let (_, answer) = tokio::join!(futures_util::future::join_all(crowd), ask(&steady, &word));
        assert_eq!(answer, kept, "the same flow");
    }
    let given_way = agent.shared.metrics.limits.at(Limit::UdpFlows).get();
    assert!(given_way >= 1900, "{given_way}");
    until("the bound holds", || {
        agent.shared.metrics.udp_flows.get() <= 64
    })
    .await;
}

/// An app on some of the loopback addresses, with a socket for each; gone when dropped.
struct OnFamilies(tokio::task::JoinSet<()>);

impl OnFamilies {
    async fn start(addresses: &[&str], port: u16) -> Self {
        let mut tasks = tokio::task::JoinSet::new();
        for address in addresses {
            let socket = UdpSocket::bind((*address, port)).await.unwrap();
            tasks.spawn(async move {
                let mut buf = [0; 100];
                // An answer that could not be delivered is reported here.
                loop {
                    if let Ok((n, from)) = socket.recv_from(&mut buf).await {
                        let said = String::from_utf8_lossy(&buf[..n]).into_owned();
                        let _ = socket
                            .send_to(format!("{from} {said}").as_bytes(), from)
                            .await;
                    }
                }
            });
        }
        Self(tasks)
    }

    async fn end(mut self) {
        self.0.shutdown().await;
    }
}

const IPV4: &str = "127.0.0.1";
const IPV6: &str = "::1";

/// A port of both families in front of an app that is configured by an address of one.
async fn in_front_of(configured: &str) -> (Agent, u16) {
    let port = harness::ports::free();
    let app = SocketAddr::new(configured.parse().unwrap(), port);
    let mut shared = context(app, FakeTunnels::away());
    shared.transport = Transport::Udp;
    let shared = Arc::new(shared);
    let socket = UdpSocket::bind("[::]:0").await.unwrap();
    let addr = socket.local_addr().unwrap();
    let limits = UdpLimits::default();
    let task = tokio::spawn(udp::serve(socket, shared.clone(), limits));
    (Agent { addr, shared, task }, port)
}

/// Asks in a family; returns the one in which the app was asked.
async fn family_of_answer(agent: &Agent, asked: &str) -> &'static str {
    let address = SocketAddr::new(asked.parse().unwrap(), agent.addr.port());
    let peer = ask(&caller(address).await, "x").await;
    let peer: SocketAddr = peer.parse().unwrap();
    if peer.is_ipv4() { IPV4 } else { IPV6 }
}

#[tokio::test]
async fn an_app_is_asked_in_the_family_of_its_caller_else_where_it_listens() {
    for (configured, other) in [(IPV4, IPV6), (IPV6, IPV4)] {
        let (agent, port) = in_front_of(configured).await;
        // In this order: what one app has taught must not hold for the next.
        for listens in [
            &[configured][..],
            &[other],
            &[configured, other],
            &[configured],
        ] {
            let app = OnFamilies::start(listens, port).await;
            for asked in [other, configured, other] {
                // Who asks where nobody listens, is not answered without us either, unless the
                // app is where it is configured to be.
                let expected = if listens.contains(&asked) {
                    asked
                } else {
                    configured
                };
                if listens.contains(&expected) {
                    let place = format!("{configured}: {listens:?} asked at {asked}");
                    assert_eq!(family_of_answer(&agent, asked).await, expected, "{place}");
                }
            }
            app.end().await;
        }
    }
}

#[tokio::test]
async fn a_known_caller_follows_an_app_that_moves_to_the_other_family() {
    let (agent, port) = in_front_of(IPV4).await;
    let caller = caller(SocketAddr::new(IPV6.parse().unwrap(), agent.addr.port())).await;
    for (listens, prefix) in [(IPV4, "127."), (IPV6, "[::1]"), (IPV4, "127.")] {
        let app = OnFamilies::start(&[listens], port).await;
        let peer = ask(&caller, listens).await;
        assert!(peer.starts_with(prefix), "{listens}: {peer}");
        app.end().await;
    }
    assert_eq!(agent.shared.metrics.udp_flows.get(), 1);
}

async fn next_message(far: &mut FarEnd) -> Message {
    let frame = timeout(WAIT_TIMEOUT, far.from_agent.recv()).await;
    Message::decode(frame.unwrap().unwrap().payload()).unwrap()
}

/// The next datagram; that rejections are understood was said before the first.
async fn hears(far: &mut FarEnd) -> Bytes {
    loop {
        match next_message(far).await {
            Message::Normal(datagram) => return datagram,
            Message::KeepAlive => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_known_caller_s_next_datagram_follows_a_new_intercept_and_its_end() {
    let (workstation, mut opened) = FakeTunnels::scripted();
    let agent = agent("127.0.0.1:0", workstation, UdpLimits::default()).await;
    let caller = caller(agent.addr).await;
    ask(&caller, "before").await;

    agent.shared.routes.store(whole_port());
    caller.send(b"during").await.unwrap();
    let mut far = timeout(WAIT_TIMEOUT, opened.recv()).await.unwrap().unwrap();
    assert_eq!(
        (far.caller.0, far.transport),
        (caller.local_addr().unwrap(), Transport::Udp)
    );
    assert_eq!(hears(&mut far).await, "during");
    caller.send(b"again").await.unwrap();
    assert_eq!(hears(&mut far).await, "again");
    far.to_agent
        .send(Ok(
            Message::Normal(Bytes::from_static(b"from afar")).encode()
        ))
        .await
        .unwrap();
    let mut buf = [0; 100];
    let n = timeout(WAIT_TIMEOUT, caller.recv(&mut buf))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&buf[..n], b"from afar");

    // A rebuilt table with the same rule changes nothing; its end sends the next datagram to the
    // app, while a late answer still comes through.
    agent.shared.routes.store(whole_port());
    caller.send(b"same tunnel").await.unwrap();
    assert_eq!(hears(&mut far).await, "same tunnel");
    agent.shared.routes.store(RouteTable::default());
    ask(&caller, "after").await;
    far.to_agent
        .send(Ok(Message::Normal(Bytes::from_static(b"late")).encode()))
        .await
        .unwrap();
    let n = timeout(WAIT_TIMEOUT, caller.recv(&mut buf))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&buf[..n], b"late");
    assert!(opened.try_recv().is_err(), "one tunnel in all");
}

#[tokio::test]
async fn datagrams_whose_tunnel_cannot_be_opened_go_to_the_app() {
    let agent = agent("127.0.0.1:0", FakeTunnels::away(), UdpLimits::default()).await;
    agent.shared.routes.store(whole_port());
    ask(&caller(agent.addr).await, "hello").await;
    assert_eq!(
        agent.shared.metrics.fail_open.at(FailOpen::NoTunnel).get(),
        1
    );
}

#[tokio::test]
async fn draining_ends_the_service_once_it_is_quiet() {
    let agent = agent("127.0.0.1:0", FakeTunnels::away(), UdpLimits::default()).await;
    let caller = caller(agent.addr).await;
    ask(&caller, "x").await;
    agent.shared.drain.start();
    ask(&caller, "known callers are still served").await;
    timeout(WAIT_TIMEOUT, agent.task)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert_eq!(agent.shared.metrics.udp_flows.get(), 0);
}
