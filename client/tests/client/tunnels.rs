//! Connections that arrive at the workstation through the manager.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, UdpSocket};
use std::sync::mpsc::channel;
use std::time::Duration;

use harness::apps::{App, raw};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use traffic_proto::manager::{
    InterceptDispositionType as Disposition, InterceptInfo, TunnelMessage,
};
use traffic_proto::tunnel::{Message, StreamInfo};
use traffic_proto::{ConnId, Transport};

use crate::fixture::{Agent, Manager, within_timeout};

/// The agent's end of a tunnel.
struct Tunnel {
    tx: Option<mpsc::Sender<TunnelMessage>>,
    rx: Streaming<TunnelMessage>,
}

impl Tunnel {
    /// Opens a tunnel to the workstation of `info` for a connection to `destination`.
    async fn open(
        agent: &Agent,
        info: &InterceptInfo,
        transport: Transport,
        destination: SocketAddr,
    ) -> Self {
        let (tx, rx) = mpsc::channel(64);
        let conn = ConnId::new(transport, ([10, 9, 8, 7], 6543).into(), destination);
        let wait = Duration::from_secs(10);
        let rx = agent
            .manager
            .clone()
            .tunnel(ReceiverStream::new(rx))
            .await
            .unwrap()
            .into_inner();
        let mut tunnel = Self { tx: Some(tx), rx };
        let session = &agent.session.session_id;
        tunnel
            .send(Message::StreamInfo(StreamInfo::new(
                conn, session, wait, wait,
            )))
            .await;
        tunnel
            .send(Message::Session(
                info.client_session.clone().unwrap().session_id,
            ))
            .await;
        tunnel.expect(Message::StreamOk(2)).await;
        tunnel
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

    async fn next(&mut self) -> Option<Message> {
        loop {
            let message = within_timeout(self.rx.message()).await.unwrap()?;
            match Message::decode(message.payload).unwrap() {
                // Signs of life may come at any time.
                Message::KeepAlive => {}
                message => return Some(message),
            }
        }
    }

    async fn expect(&mut self, wanted: Message) {
        assert_eq!(self.next().await, Some(wanted));
    }

    /// Data up to the next message of another kind, which is returned as well.
    async fn rest(&mut self) -> (Vec<u8>, Option<Message>) {
        let mut data = Vec::new();
        loop {
            match self.next().await {
                Some(Message::Normal(more)) => data.extend_from_slice(&more),
                other => return (data, other),
            }
        }
    }
}

/// An active intercept that is delivered to `local`, with its agent and client.
async fn active(
    manager: &Manager,
    local: SocketAddr,
) -> (Agent, InterceptInfo, harness::process::Process) {
    let mut agent = manager.agent().await;
    let client = manager.create(local, &[]);
    let info = agent.review(Disposition::Active, "").await;
    client.line("state=ACTIVE");
    (agent, info, client)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_reaches_the_local_server() {
    let manager = Manager::start().await;
    let app = App::start("local");
    let (agent, info, client) = active(&manager, app.address()).await;
    let mut tunnel = Tunnel::open(&agent, &info, Transport::Tcp, app.address()).await;
    tunnel.expect(Message::DialOk).await;
    tunnel
        .send(Message::Normal(
            "GET / HTTP/1.1\r\nconnection: close\r\n\r\n".into(),
        ))
        .await;
    let (answer, end) = tunnel.rest().await;
    assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\nx-answered-by: local\r\n"));
    assert_eq!(end, Some(Message::CloseSend));
    tunnel.tx = None;
    assert_eq!(tunnel.next().await, None);
    assert!(client.terminate().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn half_closes_pass_in_both_directions() {
    let manager = Manager::start().await;
    let (said_tx, said) = channel();
    let local = raw(move |mut stream| {
        // Ends its own direction first, then hears the other to its end.
        stream.write_all(b"greeting").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut heard = String::new();
        stream.read_to_string(&mut heard).unwrap();
        said_tx.send(heard).unwrap();
    });
    let (agent, info, _client) = active(&manager, local).await;
    let mut tunnel = Tunnel::open(&agent, &info, Transport::Tcp, local).await;
    tunnel.expect(Message::DialOk).await;
    assert_eq!(
        tunnel.rest().await,
        (b"greeting".to_vec(), Some(Message::CloseSend))
    );
    tunnel.send(Message::Normal("long after".into())).await;
    tunnel.tx = None;
    assert_eq!(tunnel.next().await, None);
    assert_eq!(
        said.recv_timeout(Duration::from_secs(20)).unwrap(),
        "long after"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn megabytes_pass_both_ways_at_once() {
    let manager = Manager::start().await;
    let local = raw(|stream| {
        let (mut reader, mut writer) = (stream.try_clone().unwrap(), stream);
        std::io::copy(&mut reader, &mut writer).unwrap();
    });
    let (agent, info, _client) = active(&manager, local).await;
    let mut tunnel = Tunnel::open(&agent, &info, Transport::Tcp, local).await;
    tunnel.expect(Message::DialOk).await;
    let bytes: Vec<u8> = (0..8_000_000u32).map(|n| (n % 251) as u8).collect();
    let tx = tunnel.tx.take().unwrap();
    let chunks: Vec<_> = bytes
        .chunks(100_000)
        .map(|chunk| Message::Normal(chunk.to_vec().into()).encode())
        .collect();
    let sending = tokio::spawn(async move {
        for payload in chunks {
            tx.send(TunnelMessage { payload }).await.unwrap();
        }
    });
    let (echo, end) = tunnel.rest().await;
    sending.await.unwrap();
    assert!(echo == bytes, "{} of {} bytes", echo.len(), bytes.len());
    assert_eq!(end, Some(Message::CloseSend));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_server_that_is_down_is_a_rejected_dial() {
    let manager = Manager::start().await;
    let nobody = std::net::SocketAddr::from(([127, 0, 0, 1], harness::ports::free()));
    let (agent, info, client) = active(&manager, nobody).await;
    let mut tunnel = Tunnel::open(&agent, &info, Transport::Tcp, nobody).await;
    tunnel.expect(Message::DialReject).await;
    assert!(client.is_running());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_but_the_target_is_dialled() {
    let manager = Manager::start().await;
    let (app, private) = (App::start("local"), App::start("private"));
    let (agent, info, _client) = active(&manager, app.address()).await;
    let mut tunnel = Tunnel::open(&agent, &info, Transport::Tcp, private.address()).await;
    tunnel.expect(Message::DialReject).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_server_that_resets_is_a_disconnect() {
    let manager = Manager::start().await;
    let local = raw(|mut stream| {
        stream.read_exact(&mut [0]).unwrap();
        // Closing with unread data makes the kernel send a reset.
        stream.peek(&mut [0]).unwrap();
    });
    let (agent, info, _client) = active(&manager, local).await;
    let mut tunnel = Tunnel::open(&agent, &info, Transport::Tcp, local).await;
    tunnel.expect(Message::DialOk).await;
    tunnel.send(Message::Normal("ab".into())).await;
    assert_eq!(tunnel.rest().await.1, Some(Message::Disconnect));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disconnect_resets_the_local_server() {
    let manager = Manager::start().await;
    let (ended_tx, ended) = channel();
    let local = raw(move |mut stream| {
        stream.write_all(b"x").unwrap();
        ended_tx
            .send(stream.read(&mut [0]).map_err(|error| error.kind()))
            .unwrap();
    });
    let (agent, info, _client) = active(&manager, local).await;
    let mut tunnel = Tunnel::open(&agent, &info, Transport::Tcp, local).await;
    tunnel.expect(Message::DialOk).await;
    tunnel.expect(Message::Normal("x".into())).await;
    tunnel.send(Message::Disconnect).await;
    let ended = ended.recv_timeout(Duration::from_secs(20)).unwrap();
    assert_eq!(
        ended,
        Err(std::io::ErrorKind::ConnectionReset),
        "an abrupt end is no orderly close"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn datagrams_keep_their_bounds() {
    let manager = Manager::start().await;
    let socket = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
    let local = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 2000];
        while let Ok((count, from)) = socket.recv_from(&mut buffer) {
            socket.send_to(&buffer[..count], from).unwrap();
        }
    });
    let (agent, info, _client) = active(&manager, local).await;
    let mut tunnel = Tunnel::open(&agent, &info, Transport::Udp, local).await;
    tunnel.expect(Message::DialOk).await;
    for size in [1, 1400, 0, 10] {
        let datagram = Message::Normal(vec![b'd'; size].into());
        tunnel.send(datagram.clone()).await;
        tunnel.expect(datagram).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn datagrams_that_nothing_takes_are_told_to_the_developer_and_later_ones_pass() {
    let manager = Manager::start().await;
    let local = SocketAddr::from(([127, 0, 0, 1], harness::ports::free()));
    let (agent, info, client) = active(&manager, local).await;
    let mut tunnel = Tunnel::open(&agent, &info, Transport::Udp, local).await;
    tunnel.expect(Message::DialOk).await;
    let datagram = Message::Normal("hello".into());
    let warning = format!("warning: nothing listens on {local}; 1 datagram was lost");
    tunnel.send(datagram.clone()).await;
    client.line(&warning);
    let bind = || {
        let server = UdpSocket::bind(local).unwrap();
        let limit = Some(harness::wait::WAIT_TIMEOUT);
        server.set_read_timeout(limit).unwrap();
        server
    };
    let answer = |server: UdpSocket| {
        let mut buffer = [0; 64];
        let (count, from) = server.recv_from(&mut buffer).unwrap();
        server.send_to(&buffer[..count], from).unwrap();
    };
    // The same tunnel carries the first datagram that somebody takes.
    let server = bind();
    tunnel.send(datagram.clone()).await;
    answer(server);
    tunnel.expect(datagram.clone()).await;
    // That nobody does any more is news.
    tunnel.send(datagram.clone()).await;
    client.nth_line(&warning, 2);
    let server = bind();
    tunnel.send(datagram.clone()).await;
    answer(server);
    tunnel.expect(datagram.clone()).await;
    assert!(client.is_running());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flow_that_nothing_takes_is_rejected_where_the_agent_has_said_that_it_understands() {
    let manager = Manager::start().await;
    let local = SocketAddr::from(([127, 0, 0, 1], harness::ports::free()));
    let (agent, info, client) = active(&manager, local).await;
    let mut tunnel = Tunnel::open(&agent, &info, Transport::Udp, local).await;
    tunnel.expect(Message::DialOk).await;
    tunnel.send(Message::KeepAlive).await;
    let datagram = Message::Normal("hello".into());
    tunnel.send(datagram.clone()).await;
    tunnel.expect(Message::DialReject).await;
    tunnel.tx = None;
    assert_eq!(tunnel.next().await, None);
    client.line(&format!(
        "warning: nothing listens on {local}; 1 request went to the app"
    ));
    // A server that has answered and is gone is the same.
    let server = UdpSocket::bind(local).unwrap();
    let limit = Some(harness::wait::WAIT_TIMEOUT);
    server.set_read_timeout(limit).unwrap();
    let mut tunnel = Tunnel::open(&agent, &info, Transport::Udp, local).await;
    tunnel.expect(Message::DialOk).await;
    tunnel.send(Message::KeepAlive).await;
    tunnel.send(datagram.clone()).await;
    let mut buffer = [0; 64];
    let (count, from) = server.recv_from(&mut buffer).unwrap();
    server.send_to(&buffer[..count], from).unwrap();
    tunnel.expect(datagram.clone()).await;
    drop(server);
    tunnel.send(datagram.clone()).await;
    tunnel.expect(Message::DialReject).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_in_flight_is_finished_before_the_client_leaves() {
    let manager = Manager::start().await;
    let app = App::start("local");
    let (mut agent, info, client) = active(&manager, app.address()).await;
    let mut tunnel = Tunnel::open(&agent, &info, Transport::Tcp, app.address()).await;
    tunnel.expect(Message::DialOk).await;
    tunnel
        .send(Message::Normal(
            "GET /drip/20/50 HTTP/1.1\r\nconnection: close\r\n\r\n".into(),
        ))
        .await;
    client.signal(rustix::process::Signal::TERM);
    agent.until_none().await;
    let (answer, end) = tunnel.rest().await;
    assert!(
        answer.ends_with(b"drip\n\r\n0\r\n\r\n"),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    assert_eq!(end, Some(Message::CloseSend));
    tunnel.tx = None;
    assert!(client.exit().success());
}
