//! The tunnel over a real gRPC connection, the agent being either side of the call.

#![allow(clippy::unwrap_used)]

use std::pin::Pin;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};
use traffic_agent::io::conn::Io;
use traffic_agent::upstream::tunnel::Tunnel;
use traffic_agent::upstream::{Role, TunnelError, TunnelIo};
use traffic_proto::agent::agent_client::AgentClient;
use traffic_proto::agent::agent_server::{Agent, AgentServer};
use traffic_proto::manager::{
    DialRequest, LookupRequest, LookupResponse, SessionInfo, TunnelMessage, VersionInfo2,
};

const WAIT_TIMEOUT: Duration = Duration::from_secs(30);

/// Hands the server's end of every call to the test.
struct Service(Mutex<mpsc::Sender<TunnelIo>>);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Agent for Service {
    type TunnelStream = Answers<TunnelMessage>;
    type WatchDialStream = Answers<DialRequest>;

    async fn tunnel(
        &self,
        request: Request<Streaming<TunnelMessage>>,
    ) -> Result<Response<Self::TunnelStream>, Status> {
        let (tx, answers) = mpsc::channel(50);
        let io = TunnelIo {
            tx,
            rx: payloads(request.into_inner()),
            role: Role::Server,
        };
        let opened = self.0.lock().unwrap().clone();
        opened
            .send(io)
            .await
            .map_err(|_| Status::unavailable("test over"))?;
        Ok(Response::new(Box::pin(
            ReceiverStream::new(answers).map(|payload| Ok(TunnelMessage { payload })),
        )))
    }

    async fn version(&self, _: Request<()>) -> Result<Response<VersionInfo2>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn watch_dial(
        &self,
        _: Request<SessionInfo>,
    ) -> Result<Response<Self::WatchDialStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn lookup(&self, _: Request<LookupRequest>) -> Result<Response<LookupResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

fn payloads(
    stream: Streaming<TunnelMessage>,
) -> Pin<Box<dyn Stream<Item = Result<Bytes, TunnelError>> + Send>> {
    Box::pin(stream.map(|m| {
        m.map(|m| m.payload)
            .map_err(|status| TunnelError::Broken(status.to_string()))
    }))
}

/// Both ends of one call: the gRPC caller's and the server's.
async fn call() -> (Tunnel, Tunnel) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (opened_tx, mut opened_rx) = mpsc::channel(1);
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(AgentServer::new(Service(Mutex::new(opened_tx))))
            .serve_with_incoming(TcpListenerStream::new(listener)),
    );
    let mut client = AgentClient::connect(format!("http://{addr}"))
        .await
        .unwrap();
    let (tx, messages) = mpsc::channel(50);
    let messages = ReceiverStream::new(messages).map(|payload| TunnelMessage { payload });
    let answers = client.tunnel(messages).await.unwrap().into_inner();
    let caller = Tunnel::new(TunnelIo {
        tx,
        rx: payloads(answers),
        role: Role::Caller,
    });
    (caller, Tunnel::new(opened_rx.recv().await.unwrap()))
}

/// `late` goes on after `early` has said it has no more data, and is dropped at once when it has
/// written all.
async fn nothing_is_lost(mut early: Tunnel, mut late: Tunnel) {
    const LEN: usize = 8 << 20;
    early.write_all(b"over").await.unwrap();
    early.shutdown().await.unwrap();
    let writer = tokio::spawn(async move {
        let mut seen = Vec::new();
        late.read_to_end(&mut seen).await.unwrap();
        assert_eq!(seen, b"over");
        late.write_all(&vec![9; LEN]).await.unwrap();
        late.shutdown().await.unwrap();
    });
    let mut seen = Vec::new();
    timeout(WAIT_TIMEOUT, early.read_to_end(&mut seen))
        .await
        .expect("ends")
        .expect("ends properly");
    assert_eq!(seen.len(), LEN);
    writer.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_caller_writes_after_the_server_s_half_close_arrives_whole() {
    let (caller, server) = call().await;
    nothing_is_lost(server, caller).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_writes_after_the_caller_s_half_close_arrives_whole() {
    let (caller, server) = call().await;
    nothing_is_lost(caller, server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_of_either_side_is_a_reset_at_the_other() {
    for server_resets in [true, false] {
        let (mut caller, mut server) = call().await;
        caller.write_all(b"x").await.unwrap();
        server.read_exact(&mut [0; 1]).await.unwrap();
        let (mut breaks, mut sees) = if server_resets {
            (server, caller)
        } else {
            (caller, server)
        };
        breaks.abort();
        drop(breaks);
        let error = timeout(WAIT_TIMEOUT, sees.read(&mut [0; 1]))
            .await
            .unwrap()
            .unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
}
