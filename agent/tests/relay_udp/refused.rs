//! Flows whose datagrams nothing takes at the workstation.

use std::time::Duration;

use agent_testkit::WAIT_TIMEOUT;
use agent_testkit::intercept::whole_port;
use agent_testkit::tunnels::{FakeTunnels, FarEnd};
use bytes::Bytes;
use tokio::net::UdpSocket;
use tokio::sync::mpsc::Receiver;
use tokio::time::timeout;
use traffic_agent::proxy::udp::UdpLimits;
use traffic_agent::telemetry::metrics::FailOpen;
use traffic_proto::tunnel::Message;

use crate::{agent, caller, hears, next_message, until};

async fn next_tunnel(opened: &mut Receiver<FarEnd>) -> FarEnd {
    timeout(WAIT_TIMEOUT, opened.recv()).await.unwrap().unwrap()
}

/// Asks once; returns the peer that the app saw.
async fn ask_once(caller: &UdpSocket, word: &str) -> String {
    caller.send(word.as_bytes()).await.unwrap();
    answer_of_app(caller, word).await
}

async fn answer_of_app(caller: &UdpSocket, word: &str) -> String {
    let mut buf = [0; 200];
    let n = timeout(WAIT_TIMEOUT, caller.recv(&mut buf)).await;
    let said = String::from_utf8_lossy(&buf[..n.expect("an answer").unwrap()]).into_owned();
    let (peer, echoed) = said.split_once(' ').unwrap();
    assert_eq!(echoed, word);
    peer.to_owned()
}

/// Sends until a tunnel is opened for it; what is sent meanwhile, the app gets.
async fn until_tried(caller: &UdpSocket, opened: &mut Receiver<FarEnd>) -> FarEnd {
    timeout(WAIT_TIMEOUT, async {
        loop {
            caller.send(b"try").await.unwrap();
            if let Ok(far) = timeout(Duration::from_millis(50), opened.recv()).await {
                return far.unwrap();
            }
        }
    })
    .await
    .expect("a tunnel")
}

async fn drained(caller: &UdpSocket) {
    let mut buf = [0; 200];
    while timeout(Duration::from_millis(100), caller.recv(&mut buf))
        .await
        .is_ok()
    {}
}

#[tokio::test]
async fn refused_datagrams_go_to_the_app_and_so_do_those_behind_them_until_one_is_taken() {
    let (workstation, mut opened) = FakeTunnels::scripted();
    let agent = agent("127.0.0.1:0", workstation, UdpLimits::default()).await;
    agent.shared.routes.store(whole_port());
    let known = caller(agent.addr).await;
    known.send(b"one").await.unwrap();
    known.send(b"two").await.unwrap();
    let mut far = next_tunnel(&mut opened).await;
    assert_eq!(next_message(&mut far).await, Message::KeepAlive);
    assert_eq!(hears(&mut far).await, "one");
    assert_eq!(hears(&mut far).await, "two");
    assert!(far.send(Message::DialOk).await);
    assert!(far.send(Message::DialReject).await);
    let peer = answer_of_app(&known, "one").await;
    assert_eq!(answer_of_app(&known, "two").await, peer);
    assert_eq!(
        ask_once(&known, "three").await,
        peer,
        "one peer for the app"
    );
    let rejected = agent.shared.metrics.fail_open.at(FailOpen::DialRejected);
    assert_eq!(rejected.get(), 1);
    // Others are not sent there either.
    ask_once(&caller(agent.addr).await, "another").await;
    let skipped = agent.shared.metrics.fail_open.at(FailOpen::Skipped);
    assert_eq!(skipped.get(), 1);
    assert!(opened.try_recv().is_err());

    // One tries again after a while, and the app has the datagram if nothing takes it.
    let mut far = until_tried(&known, &mut opened).await;
    drained(&known).await;
    known.send(b"four").await.unwrap();
    assert!(far.send(Message::DialOk).await);
    while hears(&mut far).await != "four" {}
    assert!(far.send(Message::DialReject).await);
    while ask_once_or_older(&known, "five").await != peer {}
    assert_eq!(rejected.get(), 2);

    // An answer brings everybody back.
    let mut far = until_tried(&known, &mut opened).await;
    assert!(far.send(Message::DialOk).await);
    hears(&mut far).await;
    drained(&known).await;
    let answer = Message::Normal(Bytes::from_static(b"from afar"));
    assert!(far.send(answer).await);
    let mut buf = [0; 100];
    let n = timeout(WAIT_TIMEOUT, known.recv(&mut buf)).await.unwrap();
    assert_eq!(&buf[..n.unwrap()], b"from afar");
    let other = caller(agent.addr).await;
    other.send(b"hello").await.unwrap();
    let mut far = next_tunnel(&mut opened).await;
    assert_eq!(hears(&mut far).await, "hello");
}

/// Asks once and takes answers until the one to `word`; returns the peer that the app saw.
async fn ask_once_or_older(caller: &UdpSocket, word: &str) -> String {
    caller.send(word.as_bytes()).await.unwrap();
    let mut buf = [0; 200];
    loop {
        let n = timeout(WAIT_TIMEOUT, caller.recv(&mut buf)).await;
        let said = String::from_utf8_lossy(&buf[..n.expect("an answer").unwrap()]).into_owned();
        if let Some((peer, echoed)) = said.split_once(' ')
            && echoed == word
        {
            return peer.to_owned();
        }
    }
}

/// What is not answered is not refused: after a while it is no longer kept for the app.
#[tokio::test]
async fn a_server_that_lives_and_answers_nothing_keeps_its_flows_and_is_trusted_again() {
    let (workstation, mut opened) = FakeTunnels::scripted();
    let agent = agent("127.0.0.1:0", workstation, UdpLimits::default()).await;
    agent.shared.routes.store(whole_port());
    let first = caller(agent.addr).await;
    first.send(b"lost").await.unwrap();
    let far = next_tunnel(&mut opened).await;
    assert!(far.send(Message::DialOk).await && far.send(Message::DialReject).await);
    answer_of_app(&first, "lost").await;

    let mut far = until_tried(&first, &mut opened).await;
    assert!(far.send(Message::DialOk).await);
    hears(&mut far).await;
    // Nothing has answered: others get the app until it is sure that nothing refuses either.
    let second = caller(agent.addr).await;
    ask_once(&second, "meanwhile").await;
    let mut other = until_tried(&second, &mut opened).await;
    assert!(other.send(Message::DialOk).await);
    assert_eq!(hears(&mut other).await, "try");
    for n in 0..20 {
        let word = format!("silent {n}");
        first.send(word.as_bytes()).await.unwrap();
        while hears(&mut far).await != word {}
    }
    // What is refused after all is the last datagram, and not what was taken longer ago than a
    // rejection takes.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    drained(&second).await;
    second.send(b"too late").await.unwrap();
    assert_eq!(hears(&mut other).await, "too late");
    assert!(other.send(Message::DialReject).await);
    answer_of_app(&second, "too late").await;
}

/// Stock workstations end a flow that is refused as they end any other.
#[tokio::test]
async fn flows_that_end_unanswered_bring_later_ones_to_the_app() {
    let (workstation, mut opened) = FakeTunnels::scripted();
    let agent = agent("127.0.0.1:0", workstation, UdpLimits::default()).await;
    agent.shared.routes.store(whole_port());
    let callers = [caller(agent.addr).await, caller(agent.addr).await];
    for (n, caller) in callers.iter().enumerate() {
        caller.send(b"lost").await.unwrap();
        let mut far = next_tunnel(&mut opened).await;
        assert!(far.send(Message::DialOk).await);
        assert_eq!(hears(&mut far).await, "lost");
        assert!(far.send(Message::CloseSend).await);
        until("the flow to end", || {
            agent.shared.metrics.udp_flows.get() == 0
        })
        .await;
        assert_eq!(agent.shared.metrics.tunnels.get(), n as u64 + 1);
    }
    for caller in &callers {
        ask_once(caller, "again").await;
    }
    let skipped = agent.shared.metrics.fail_open.at(FailOpen::Skipped);
    assert_eq!(skipped.get(), 2);
    assert!(opened.try_recv().is_err());
}
