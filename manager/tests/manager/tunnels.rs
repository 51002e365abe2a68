//! Tunnels: agent to workstation, workstation to agent, workstation to whatever the manager
//! reaches.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};
use traffic_proto::manager::{DialRequest, TunnelMessage};
use traffic_proto::tunnel::{Message, StreamInfo, normal_from};
use traffic_proto::{ConnId, Transport};

use crate::fixture::{Fixture, Party, spec, within_timeout};

/// One end of a tunnel, as a peer of the manager has it.
struct End {
    tx: Option<mpsc::Sender<TunnelMessage>>,
    rx: Streaming<TunnelMessage>,
}

impl End {
    /// Opens a stream; these are the first messages after the stream info.
    async fn open(
        party: &Party,
        conn: ConnId,
        wait: Duration,
        then: &[Message],
    ) -> Result<Self, Status> {
        let (tx, rx) = mpsc::channel(64);
        let end = Self {
            tx: Some(tx),
            rx: party
                .manager
                .clone()
                .tunnel(ReceiverStream::new(rx))
                .await?
                .into_inner(),
        };
        end.send(Message::StreamInfo(StreamInfo::new(
            conn,
            party.id(),
            Duration::ZERO,
            wait,
        )))
        .await;
        for message in then {
            end.send(message.clone()).await;
        }
        Ok(end)
    }

    async fn send(&self, message: Message) {
        self.tx
            .as_ref()
            .unwrap()
            .send(TunnelMessage {
                payload: message.encode(),
            })
            .await
            .unwrap();
    }

    async fn received(&mut self) -> Result<Option<Message>, Status> {
        let message = within_timeout(self.rx.message()).await?;
        Ok(message.map(|message| Message::decode(message.payload).unwrap()))
    }

    /// Returns the next message that is no sign of life.
    async fn next(&mut self) -> Result<Option<Message>, Status> {
        loop {
            let message = self.received().await?;
            if message != Some(Message::KeepAlive) {
                return Ok(message);
            }
        }
    }

    async fn expect(&mut self, wanted: Message) {
        let found = match wanted {
            Message::KeepAlive => self.received().await,
            _ => self.next().await,
        };
        assert_eq!(found.unwrap(), Some(wanted));
    }

    /// Half-closes.
    fn finish(&mut self) {
        self.tx = None;
    }
}

fn conn(port: u16) -> ConnId {
    ConnId::new(
        Transport::Tcp,
        ([10, 1, 1, 1], port).into(),
        ([127, 0, 0, 1], 8080).into(),
    )
}

async fn dials(party: &Party) -> Streaming<DialRequest> {
    party
        .manager
        .clone()
        .watch_dial(party.session.clone())
        .await
        .unwrap()
        .into_inner()
}

/// An agent's end and a workstation's, joined.
async fn joined(fixture: &Fixture, port: u16) -> (End, End) {
    let (agent, dev) = (fixture.agent("app-1").await, fixture.client("dev").await);
    let mut announced = dials(&dev).await;
    let session = Message::Session(dev.id().into());
    let mut from = End::open(&agent, conn(port), Duration::from_secs(5), &[session])
        .await
        .unwrap();
    from.expect(Message::StreamOk(2)).await;
    let request = within_timeout(announced.message()).await.unwrap().unwrap();
    assert_eq!(request.conn_id, conn(port).to_bytes());
    assert_eq!(
        (request.dial_timeout, request.roundtrip_latency),
        (5_000_000_000, 0)
    );
    let mut to = End::open(&dev, conn(port), Duration::from_secs(5), &[])
        .await
        .unwrap();
    to.expect(Message::StreamOk(2)).await;
    (from, to)
}

#[tokio::test]
async fn messages_pass_verbatim_in_both_directions() {
    let fixture = Fixture::start().await;
    let (mut agent, mut dev) = joined(&fixture, 1).await;
    dev.send(Message::DialOk).await;
    agent.expect(Message::DialOk).await;
    for message in [
        Message::Normal("hello".into()),
        Message::KeepAlive,
        Message::Unknown(77, "future".into()),
        Message::Normal(vec![7; 1 << 20].into()),
    ] {
        agent.send(message.clone()).await;
        dev.expect(message.clone()).await;
        dev.send(message.clone()).await;
        agent.expect(message).await;
    }
}

#[tokio::test]
async fn the_end_of_one_direction_does_not_end_the_other() {
    let fixture = Fixture::start().await;
    let (mut agent, mut dev) = joined(&fixture, 1).await;
    agent.send(Message::Normal("last words".into())).await;
    agent.finish();
    dev.expect(Message::Normal("last words".into())).await;
    dev.expect(Message::CloseSend).await;
    dev.send(Message::Normal("answer".into())).await;
    dev.finish();
    agent.expect(Message::Normal("answer".into())).await;
    agent.expect(Message::CloseSend).await;
    assert_eq!(agent.next().await.unwrap(), None, "the call ends in order");
    assert_eq!(dev.next().await.unwrap(), None);
}

#[tokio::test]
async fn a_peer_that_vanishes_is_reported_as_a_disconnect() {
    let fixture = Fixture::start().await;
    let (agent, mut dev) = joined(&fixture, 1).await;
    drop(agent);
    // Dropping the sender may show as a half-close first.
    let first = dev.next().await.unwrap();
    if first != Some(Message::Disconnect) {
        assert_eq!(first, Some(Message::CloseSend));
        dev.expect(Message::Disconnect).await;
    }
    assert_eq!(dev.next().await.unwrap(), None);
}

#[tokio::test]
async fn a_rejected_dial_ends_the_tunnel() {
    let fixture = Fixture::start().await;
    let (mut agent, dev) = joined(&fixture, 1).await;
    dev.send(Message::DialReject).await;
    agent.expect(Message::DialReject).await;
    assert_eq!(agent.next().await.unwrap(), None);
}

#[tokio::test]
async fn a_workstation_that_does_not_dial_is_given_up() {
    let fixture = Fixture::start().await;
    let (agent, dev) = (fixture.agent("app-1").await, fixture.client("dev").await);
    let session = [Message::Session(dev.id().into())];
    let mut end = End::open(&agent, conn(1), Duration::from_millis(100), &session)
        .await
        .unwrap();
    end.expect(Message::StreamOk(2)).await;
    assert_eq!(end.next().await.unwrap_err().code(), Code::DeadlineExceeded);
    // The same addresses again: whoever waited before is forgotten, and so is the stale dial
    // request.
    let mut again = End::open(&agent, conn(1), Duration::from_secs(5), &session)
        .await
        .unwrap();
    again.expect(Message::StreamOk(2)).await;
    let mut announced = dials(&dev).await;
    within_timeout(announced.message()).await.unwrap().unwrap();
    let answer = End::open(&dev, conn(1), Duration::from_secs(5), &[])
        .await
        .unwrap();
    answer.send(Message::DialOk).await;
    again.expect(Message::DialOk).await;
    assert!(
        tokio::time::timeout(Duration::from_millis(200), announced.message())
            .await
            .is_err()
    );
}

#[tokio::test]
async fn a_workstation_whose_watch_ends_is_not_waited_for() {
    let fixture = Fixture::start().await;
    let (agent, dev) = (fixture.agent("app-1").await, fixture.client("dev").await);
    let mut announced = dials(&dev).await;
    let session = Message::Session(dev.id().into());
    let wait = Duration::from_secs(60);
    let mut from = End::open(&agent, conn(1), wait, &[session]).await.unwrap();
    from.expect(Message::StreamOk(2)).await;
    within_timeout(announced.message()).await.unwrap().unwrap();
    // As a program that is killed.
    drop((announced, dev));
    from.expect(Message::DialReject).await;
    assert_eq!(from.next().await.unwrap(), None);
}

#[tokio::test]
async fn a_workstation_that_departs_is_not_waited_for() {
    let fixture = Fixture::start().await;
    let (agent, mut dev) = (fixture.agent("app-1").await, fixture.client("dev").await);
    let session = [Message::Session(dev.id().into())];
    let mut end = End::open(&agent, conn(1), Duration::from_secs(60), &session)
        .await
        .unwrap();
    end.expect(Message::StreamOk(2)).await;
    dev.depart().await;
    assert_eq!(end.next().await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn tunnels_outlive_the_sessions_they_were_opened_in() {
    let fixture = Fixture::start().await;
    let (mut agent, dev) = (fixture.agent("app-1").await, fixture.client("dev").await);
    let mut announced = dials(&dev).await;
    let session = [Message::Session(dev.id().into())];
    let from = End::open(&agent, conn(1), Duration::from_secs(5), &session)
        .await
        .unwrap();
    within_timeout(announced.message()).await.unwrap().unwrap();
    let mut to = End::open(&dev, conn(1), Duration::from_secs(5), &[])
        .await
        .unwrap();
    to.expect(Message::StreamOk(2)).await;
    from.send(Message::Normal("before".into())).await;
    to.expect(Message::Normal("before".into())).await;
    agent.depart().await;
    from.send(Message::Normal("after".into())).await;
    to.expect(Message::Normal("after".into())).await;
}

#[tokio::test]
async fn a_tunnel_that_is_opened_wrongly_is_refused() {
    let fixture = Fixture::start().await;
    let (agent, dev) = (fixture.agent("app-1").await, fixture.client("dev").await);
    let unknown = Party {
        manager: dev.manager.clone(),
        session: Default::default(),
    };
    let wait = Duration::from_secs(5);
    let mut first = End::open(&unknown, conn(1), wait, &[]).await.unwrap();
    assert_eq!(first.next().await.unwrap_err().code(), Code::NotFound);
    for (then, code) in [
        (
            Message::Normal("no session".into()),
            Code::FailedPrecondition,
        ),
        (Message::Session("nobody".into()), Code::NotFound),
    ] {
        let mut end = End::open(&agent, conn(2), wait, &[then]).await.unwrap();
        end.expect(Message::StreamOk(2)).await;
        assert_eq!(end.next().await.unwrap_err().code(), code);
    }
    for payload in [&b""[..], b"\x01\x02", b"\x02\x02"] {
        let (tx, rx) = mpsc::channel(1);
        tx.send(TunnelMessage {
            payload: payload.into(),
        })
        .await
        .unwrap();
        let mut answers = dev
            .manager
            .clone()
            .tunnel(ReceiverStream::new(rx))
            .await
            .unwrap()
            .into_inner();
        assert_eq!(
            within_timeout(answers.message()).await.unwrap_err().code(),
            Code::FailedPrecondition,
            "{payload:?}"
        );
    }
}

#[tokio::test]
async fn a_client_reaches_the_cluster_through_an_agent_it_intercepts() {
    let fixture = Fixture::start().await;
    let (agent, mut dev) = (fixture.agent("app-1").await, fixture.client("dev").await);
    dev.create(spec("one")).await;
    let mut announced = dials(&agent).await;
    let mut from = End::open(&dev, conn(1), Duration::from_secs(5), &[])
        .await
        .unwrap();
    from.expect(Message::StreamOk(2)).await;
    let request = within_timeout(announced.message()).await.unwrap().unwrap();
    assert_eq!(request.conn_id, conn(1).to_bytes());
    let mut to = End::open(&agent, conn(1), Duration::from_secs(5), &[])
        .await
        .unwrap();
    to.expect(Message::StreamOk(2)).await;
    to.send(Message::DialOk).await;
    from.expect(Message::DialOk).await;
    from.send(Message::Normal("ping".into())).await;
    to.expect(Message::Normal("ping".into())).await;
}

/// A client of a namespace without agents, for which the manager dials.
async fn dialled_by_the_manager(
    fixture: &Fixture,
    transport: Transport,
    destination: SocketAddr,
) -> End {
    let dev = fixture.client("dev").await;
    let conn = ConnId::new(transport, ([10, 1, 1, 1], 1).into(), destination);
    let mut end = End::open(&dev, conn, Duration::from_secs(5), &[])
        .await
        .unwrap();
    end.expect(Message::StreamOk(2)).await;
    end
}

#[tokio::test]
async fn without_agents_the_manager_dials_itself() {
    let fixture = Fixture::start().await;
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let mut end =
        dialled_by_the_manager(&fixture, Transport::Tcp, listener.local_addr().unwrap()).await;
    let (mut stream, _) = within_timeout(listener.accept()).await.unwrap();
    end.expect(Message::DialOk).await;
    end.send(Message::Normal("question".into())).await;
    end.finish();
    let mut asked = String::new();
    within_timeout(stream.read_to_string(&mut asked))
        .await
        .unwrap();
    assert_eq!(asked, "question", "a half-close reaches the target as one");
    stream.write_all(b"answer").await.unwrap();
    drop(stream);
    end.expect(Message::Normal("answer".into())).await;
    end.expect(Message::CloseSend).await;
    assert_eq!(end.next().await.unwrap(), None);
}

#[tokio::test]
async fn the_manager_reports_a_target_it_cannot_reach() {
    let fixture = Fixture::start().await;
    let nobody = std::net::SocketAddr::from(([127, 0, 0, 1], harness::ports::free()));
    let mut end = dialled_by_the_manager(&fixture, Transport::Tcp, nobody).await;
    end.expect(Message::DialReject).await;
    end.finish();
    assert_eq!(end.next().await.unwrap(), None);
}

/// Every one of 100 rejections arrives, and behind it the orderly end of the call.
#[tokio::test]
async fn a_rejection_always_arrives() {
    let fixture = Fixture::start().await;
    let nobody = std::net::SocketAddr::from(([127, 0, 0, 1], harness::ports::free()));
    let other = fixture.client("other").await;
    for n in 0..100 {
        let id = ConnId::new(Transport::Tcp, ([10, 1, 1, 1], n + 1).into(), nobody);
        let wait = Duration::from_secs(5);
        let mut end = End::open(&other, id, wait, &[]).await.unwrap();
        end.expect(Message::StreamOk(2)).await;
        end.expect(Message::DialReject).await;
        end.finish();
        assert_eq!(end.next().await.unwrap(), None, "own dial {n}");
    }
    let (agent, dev) = (fixture.agent("app-1").await, fixture.client("dev").await);
    let mut announced = dials(&dev).await;
    for n in 0..100 {
        let session = Message::Session(dev.id().into());
        let wait = Duration::from_secs(5);
        let mut from = End::open(&agent, conn(n + 1), wait, &[session]).await;
        let from = from.as_mut().unwrap();
        from.expect(Message::StreamOk(2)).await;
        within_timeout(announced.message()).await.unwrap().unwrap();
        let mut to = End::open(&dev, conn(n + 1), wait, &[]).await.unwrap();
        to.expect(Message::StreamOk(2)).await;
        to.send(Message::DialReject).await;
        to.finish();
        from.expect(Message::DialReject).await;
        assert_eq!(from.next().await.unwrap(), None, "joined {n}");
        assert_eq!(to.next().await.unwrap(), None, "joined {n}");
    }
}

#[tokio::test]
async fn nobody_reaches_the_managers_own_ports_or_link_local_addresses_through_it() {
    let metrics = harness::ports::free();
    let fixture = Fixture::with(|settings| {
        settings.prometheus_port = metrics;
        settings.dial_allow = vec!["169.254.20.10".parse().unwrap()];
    })
    .await;
    let dev = fixture.client("dev").await;
    let mut source = 0;
    let mut verdict = async |destination: SocketAddr| {
        source += 1;
        let id = ConnId::new(Transport::Tcp, ([10, 1, 1, 1], source).into(), destination);
        let wait = Duration::from_secs(1);
        let mut end = End::open(&dev, id, wait, &[]).await.unwrap();
        end.expect(Message::StreamOk(2)).await;
        end.next().await.unwrap().unwrap()
    };
    for port in [fixture.address.port(), metrics] {
        for ip in [
            "127.0.0.1",
            "127.0.0.9",
            "0.0.0.0",
            "::1",
            "::ffff:127.0.0.1",
        ] {
            let own = SocketAddr::new(ip.parse().unwrap(), port);
            assert_eq!(verdict(own).await, Message::DialReject, "{own}");
        }
    }
    for ip in [
        "169.254.169.254",
        "::ffff:169.254.169.254",
        "fe80::1",
        "fd00:ec2::254",
    ] {
        let metadata = SocketAddr::new(ip.parse().unwrap(), 80);
        assert_eq!(verdict(metadata).await, Message::DialReject, "{metadata}");
    }
    // Tried, whatever comes of it.
    verdict("169.254.20.10:9".parse().unwrap()).await;
    let mut scrape = tokio::net::TcpStream::connect(("127.0.0.1", metrics))
        .await
        .unwrap();
    scrape
        .write_all(b"GET /metrics HTTP/1.1\r\nhost: m\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut page = String::new();
    within_timeout(scrape.read_to_string(&mut page))
        .await
        .unwrap();
    for counted in [
        "traffic_manager_limits_total{limit=\"dial_own_port\"} 10",
        "traffic_manager_limits_total{limit=\"dial_link_local\"} 4",
    ] {
        assert!(page.contains(counted), "{counted} in {page}");
    }
}

#[tokio::test]
async fn the_manager_dials_udp() {
    let fixture = Fixture::start().await;
    let socket = UdpSocket::bind(("127.0.0.1", 0)).await.unwrap();
    let mut end =
        dialled_by_the_manager(&fixture, Transport::Udp, socket.local_addr().unwrap()).await;
    end.expect(Message::DialOk).await;
    for datagram in ["one", "two"] {
        end.send(Message::Normal(datagram.into())).await;
        let mut buffer = [0; 100];
        let (count, from) = within_timeout(socket.recv_from(&mut buffer)).await.unwrap();
        assert_eq!(&buffer[..count], datagram.as_bytes());
        socket.send_to(&buffer[..count], from).await.unwrap();
        end.expect(Message::Normal(datagram.into())).await;
    }
}

#[tokio::test]
async fn a_stalled_tunnel_holds_up_no_other() {
    let fixture = Fixture::start().await;
    let (agent, dev) = (fixture.agent("app-1").await, fixture.client("dev").await);
    let mut announced = dials(&dev).await;
    let mut open = async |port| {
        let session = [Message::Session(dev.id().into())];
        let from = End::open(&agent, conn(port), Duration::from_secs(5), &session)
            .await
            .unwrap();
        within_timeout(announced.message()).await.unwrap().unwrap();
        let mut to = End::open(&dev, conn(port), Duration::from_secs(5), &[])
            .await
            .unwrap();
        to.expect(Message::StreamOk(2)).await;
        (from, to)
    };
    let (stalled, _not_read) = open(1).await;
    let tx = stalled.tx.clone().unwrap();
    // Sends until nothing more is taken: everything on the way to the reader is full.
    let message = TunnelMessage {
        payload: normal_from(&[0; 256 << 10]),
    };
    while tokio::time::timeout(Duration::from_millis(500), tx.send(message.clone()))
        .await
        .is_ok()
    {}
    let (from, mut to) = open(2).await;
    for _ in 0..50 {
        from.send(Message::Normal(vec![1; 64 << 10].into())).await;
        to.expect(Message::Normal(vec![1; 64 << 10].into())).await;
    }
}
