//! The tunnel as a byte stream, held against a scripted far end that speaks in messages.

#![allow(clippy::unwrap_used)]

use std::io;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use traffic_agent::io::buffers::Buf;
use traffic_agent::io::conn::{Conn, Io};
use traffic_agent::io::relay;
use traffic_agent::io::relay::{PendingBytes, Side};
use traffic_agent::telemetry::metrics::{FailOpen, PortMetrics};
use traffic_agent::upstream::tunnel::{CHUNK, DialFailure, Tunnel};
use traffic_agent::upstream::{Role, TunnelError, TunnelIo};
use traffic_proto::tunnel::Message;
use traffic_proto::tunnel::frame::Frame;

const WAIT_TIMEOUT: Duration = Duration::from_secs(30);

/// The far end of a tunnel.
struct FakeTunnel {
    from_agent: mpsc::Receiver<Frame>,
    to_agent: mpsc::Sender<Result<Bytes, TunnelError>>,
}

fn tunnel(role: Role, depth: usize) -> (Tunnel, FakeTunnel) {
    let (tx, from_agent) = mpsc::channel(depth);
    let (to_agent, rx) = mpsc::channel(64);
    (
        Tunnel::new(TunnelIo::of_payloads(tx, ReceiverStream::new(rx), role)),
        FakeTunnel {
            from_agent,
            to_agent,
        },
    )
}

impl FakeTunnel {
    async fn say(&self, message: Message) {
        self.to_agent.send(Ok(message.encode())).await.unwrap();
    }

    async fn data(&self, data: &'static [u8]) {
        self.say(Message::Normal(Bytes::from_static(data))).await;
    }

    async fn hears(&mut self) -> Option<Message> {
        let frame = timeout(WAIT_TIMEOUT, self.from_agent.recv())
            .await
            .expect("a message, or the end")?;
        Some(Message::decode(frame.payload()).unwrap())
    }
}

fn soon() -> Instant {
    Instant::now() + WAIT_TIMEOUT
}

#[tokio::test]
async fn data_goes_both_ways_and_other_messages_are_no_data() {
    let (mut t, mut far) = tunnel(Role::Caller, 8);
    t.write_all(b"hello").await.unwrap();
    assert_eq!(
        far.hears().await.unwrap(),
        Message::Normal(Bytes::from_static(b"hello"))
    );
    far.say(Message::KeepAlive).await;
    far.say(Message::DialOk).await;
    far.say(Message::Unknown(77, Bytes::from_static(b"?")))
        .await;
    far.say(Message::Normal(Bytes::new())).await;
    far.data(b"wor").await;
    far.data(b"ld").await;
    let mut seen = [0; 5];
    t.read_exact(&mut seen).await.unwrap();
    assert_eq!(&seen, b"world");
}

#[tokio::test]
async fn a_write_beyond_one_message_is_cut_into_chunks() {
    let (mut t, mut far) = tunnel(Role::Caller, 8);
    let sent = vec![5; 3 * CHUNK + 1];
    t.write_all(&sent).await.unwrap();
    drop(t);
    let mut seen = 0;
    while let Some(message) = far.hears().await {
        let Message::Normal(body) = message else {
            panic!("{message:?}")
        };
        assert!(body.len() <= CHUNK);
        seen += body.len();
    }
    assert_eq!(seen, sent.len());
}

#[tokio::test]
async fn a_gathered_write_becomes_one_message() {
    let (mut t, mut far) = tunnel(Role::Caller, 8);
    let n = t
        .write_vectored(&[io::IoSlice::new(b"head "), io::IoSlice::new(b"body")])
        .await
        .unwrap();
    assert_eq!(n, 9);
    assert_eq!(
        far.hears().await.unwrap(),
        Message::Normal(Bytes::from_static(b"head body"))
    );
}

#[tokio::test]
async fn the_grpc_caller_half_closes_by_ending_its_stream_and_still_reads() {
    let (mut t, mut far) = tunnel(Role::Caller, 8);
    t.write_all(b"last").await.unwrap();
    t.shutdown().await.unwrap();
    assert_eq!(
        far.hears().await.unwrap(),
        Message::Normal(Bytes::from_static(b"last"))
    );
    assert_eq!(far.hears().await, None);
    far.data(b"answer").await;
    drop(far);
    let mut seen = Vec::new();
    t.read_to_end(&mut seen).await.unwrap();
    assert_eq!(seen, b"answer");
    assert!(t.write_all(b"more").await.is_err());
}

#[tokio::test]
async fn the_grpc_server_half_closes_by_close_send_and_keeps_the_call_open() {
    let (mut t, mut far) = tunnel(Role::Server, 8);
    t.shutdown().await.unwrap();
    t.shutdown().await.unwrap();
    assert_eq!(far.hears().await.unwrap(), Message::CloseSend);
    assert!(far.from_agent.try_recv().is_err());
    assert!(!far.from_agent.is_closed());
    far.data(b"answer").await;
    far.say(Message::CloseSend).await;
    let mut seen = Vec::new();
    t.read_to_end(&mut seen).await.unwrap();
    assert_eq!(seen, b"answer");
    drop(t);
    assert_eq!(far.hears().await, None);
}

#[tokio::test]
async fn a_disconnect_reads_as_a_reset_and_a_reset_is_said_as_disconnect_even_into_a_full_queue() {
    for role in [Role::Caller, Role::Server] {
        let (mut t, far) = tunnel(role, 8);
        far.say(Message::Disconnect).await;
        let error = t.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);

        let (mut t, mut far) = tunnel(role, 4);
        while timeout(Duration::from_millis(50), t.write(b"fills the queue"))
            .await
            .is_ok()
        {}
        t.abort();
        drop(t);
        let mut last = None;
        while let Some(message) = far.hears().await {
            last = Some(message);
        }
        assert_eq!(last, Some(Message::Disconnect), "{role:?}");
    }
}

#[tokio::test]
async fn a_full_queue_slows_the_writer_until_it_is_drained() {
    let (mut t, mut far) = tunnel(Role::Caller, 4);
    let writer = tokio::spawn(async move {
        t.write_all(&vec![1; 64 * CHUNK]).await.unwrap();
        t
    });
    // Three messages fit beside the slot kept for a Disconnect; the writer waits for the fourth.
    timeout(WAIT_TIMEOUT, async {
        while far.from_agent.len() < 3 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    tokio::task::yield_now().await;
    assert!(!writer.is_finished());
    let mut seen = 0;
    while seen < 64 * CHUNK {
        let Some(Message::Normal(body)) = far.hears().await else {
            panic!("data")
        };
        seen += body.len();
    }
    drop(writer.await.unwrap());
}

#[tokio::test]
async fn the_dial_is_answered_by_dial_ok_or_by_the_first_data() {
    let (mut t, far) = tunnel(Role::Caller, 8);
    far.say(Message::DialOk).await;
    t.await_dial(soon()).await.unwrap();

    let (mut t, far) = tunnel(Role::Caller, 8);
    far.data(b"220 ready").await;
    t.await_dial(soon()).await.unwrap();
    let mut seen = [0; 9];
    t.read_exact(&mut seen).await.unwrap();
    assert_eq!(&seen, b"220 ready");
}

#[tokio::test]
async fn every_way_a_dial_can_fail_is_told_apart() {
    let (mut t, far) = tunnel(Role::Caller, 8);
    far.say(Message::DialReject).await;
    let failure = t.await_dial(soon()).await.unwrap_err();
    assert_eq!(
        (failure.clone(), failure.fail_open()),
        (DialFailure::Rejected, FailOpen::DialRejected)
    );

    let (mut t, far) = tunnel(Role::Server, 8);
    far.say(Message::Disconnect).await;
    assert!(matches!(
        t.await_dial(soon()).await.unwrap_err(),
        DialFailure::Lost(_)
    ));

    let (mut t, far) = tunnel(Role::Server, 8);
    drop(far);
    assert!(matches!(
        t.await_dial(soon()).await.unwrap_err(),
        DialFailure::Lost(_)
    ));

    let (mut t, far) = tunnel(Role::Caller, 8);
    far.to_agent
        .send(Err(TunnelError::Broken("manager gone".to_owned())))
        .await
        .unwrap();
    let failure = t.await_dial(soon()).await.unwrap_err();
    assert!(failure.to_string().contains("manager gone"), "{failure}");

    let (mut t, _far) = tunnel(Role::Caller, 8);
    assert_eq!(
        t.await_dial(Instant::now()).await.unwrap_err(),
        DialFailure::Timeout
    );
}

#[tokio::test]
async fn a_malformed_message_ends_its_own_stream_alone() {
    let (mut bad, mut bad_far) = tunnel(Role::Caller, 8);
    let (mut good, good_far) = tunnel(Role::Caller, 8);
    bad_far.to_agent.send(Ok(Bytes::new())).await.unwrap();
    assert_eq!(
        bad.read(&mut [0; 8]).await.unwrap_err().kind(),
        io::ErrorKind::InvalidData
    );
    assert_eq!(
        bad.read(&mut [0; 8]).await.unwrap_err().kind(),
        io::ErrorKind::InvalidData,
        "and stays ended"
    );
    assert!(bad.write_all(b"x").await.is_err());
    assert_eq!(bad_far.hears().await, Some(Message::Disconnect));
    good_far.data(b"fine").await;
    let mut seen = [0; 4];
    good.read_exact(&mut seen).await.unwrap();
}

#[tokio::test]
async fn datagrams_keep_their_borders_and_are_dropped_rather_than_queued_without_end() {
    let (mut t, mut far) = tunnel(Role::Caller, 4);
    assert!(t.send_datagram(b"one"));
    assert!(t.send_datagram(b"two"));
    assert!(t.send_datagram(b"three"));
    assert!(!t.send_datagram(b"four"));
    assert!(!t.send_datagram(&vec![0; (1 << 16) + 1]));
    assert_eq!(
        far.hears().await.unwrap(),
        Message::Normal(Bytes::from_static(b"one"))
    );
    far.say(Message::DialOk).await;
    far.data(b"a").await;
    far.data(b"bc").await;
    far.say(Message::CloseSend).await;
    assert_eq!(t.recv_datagram().await.unwrap().unwrap(), "a");
    assert_eq!(t.recv_datagram().await.unwrap().unwrap(), "bc");
    assert_eq!(t.recv_datagram().await.unwrap(), None);
}

struct Carried {
    caller: TcpStream,
    far: FakeTunnel,
    task: tokio::task::JoinHandle<relay::Relayed>,
}

async fn carried(role: Role) -> Carried {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (caller, accepted) = tokio::join!(
        TcpStream::connect(listener.local_addr().unwrap()),
        listener.accept()
    );
    let (t, far) = tunnel(role, 50);
    let task = tokio::spawn(async move {
        let (mut down, mut up) = (Conn::Tcp(accepted.unwrap().0), Conn::Other(Box::new(t)));
        let first = PendingBytes {
            from_down: Buf::default(),
            from_up: Buf::default(),
        };
        relay::both(&mut down, &mut up, first, &PortMetrics::default()).await
    });
    Carried {
        caller: caller.unwrap(),
        far,
        task,
    }
}

#[tokio::test]
async fn a_relayed_tunnel_keeps_half_close_in_both_roles() {
    for role in [Role::Caller, Role::Server] {
        let mut c = carried(role).await;
        c.caller.write_all(b"question").await.unwrap();
        c.caller.shutdown().await.unwrap();
        assert_eq!(
            c.far.hears().await.unwrap(),
            Message::Normal(Bytes::from_static(b"question"))
        );
        let close = c.far.hears().await;
        assert_eq!(close, (role == Role::Server).then_some(Message::CloseSend));
        c.far.data(b"answer").await;
        if role == Role::Server {
            drop(c.far.to_agent);
        } else {
            c.far.say(Message::CloseSend).await;
        }
        let mut seen = Vec::new();
        timeout(WAIT_TIMEOUT, c.caller.read_to_end(&mut seen))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(seen, b"answer");
        let relayed = timeout(WAIT_TIMEOUT, c.task).await.unwrap().unwrap();
        assert!(relayed.broken.is_none(), "{relayed:?}");
        assert_eq!((relayed.bytes_in, relayed.bytes_out), (8, 6));
    }
}

#[tokio::test]
async fn a_rejected_dial_a_disconnect_and_a_broken_stream_reset_the_caller() {
    let rejects = [
        Ok(Message::DialReject.encode()),
        Ok(Message::Disconnect.encode()),
        Ok(Bytes::new()),
    ];
    for last in rejects
        .into_iter()
        .chain([Err(TunnelError::Broken("gone".to_owned()))])
    {
        let mut c = carried(Role::Caller).await;
        c.caller.write_all(b"sent at once").await.unwrap();
        c.far.hears().await.unwrap();
        c.far.to_agent.send(last).await.unwrap();
        let error = timeout(WAIT_TIMEOUT, c.caller.read(&mut [0; 1]))
            .await
            .unwrap()
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(
            timeout(WAIT_TIMEOUT, c.task)
                .await
                .unwrap()
                .unwrap()
                .broken
                .unwrap()
                .0,
            Side::Up
        );
    }
}

#[tokio::test]
async fn a_caller_s_reset_reaches_the_workstation_as_disconnect() {
    let mut c = carried(Role::Server).await;
    c.caller.write_all(b"x").await.unwrap();
    c.far.hears().await.unwrap();
    c.caller.abort();
    drop(c.caller);
    assert_eq!(c.far.hears().await.unwrap(), Message::Disconnect);
    assert_eq!(c.far.hears().await, None);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_answers_keep_alives_is_asked_for_a_sign_of_life_and_given_up_without_one() {
    let (mut t, mut far) = tunnel(Role::Caller, 8);
    far.say(Message::DialOk).await;
    far.say(Message::KeepAlive).await;
    let reading = tokio::spawn(async move { t.read(&mut [0; 1]).await });
    for _ in 0..3 {
        assert_eq!(far.hears().await, Some(Message::KeepAlive));
        far.say(Message::KeepAlive).await;
    }
    assert_eq!(far.hears().await, Some(Message::KeepAlive));
    let asked = Instant::now();
    let error = reading.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    assert_eq!(asked.elapsed(), Duration::from_secs(5));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_knows_no_keep_alives_may_be_silent_for_hours() {
    let (mut t, mut far) = tunnel(Role::Caller, 8);
    far.say(Message::DialOk).await;
    let reading = tokio::spawn(async move {
        let mut byte = [0; 1];
        t.read(&mut byte).await.map(|_| byte)
    });
    tokio::time::sleep(Duration::from_secs(7200)).await;
    assert!(far.from_agent.try_recv().is_err());
    far.data(b"x").await;
    assert_eq!(reading.await.unwrap().unwrap(), *b"x");
}
