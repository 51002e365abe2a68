//! A gRPC server like the agent's and one call to it, as a pair of tunnels: the agent's end and the
//! workstation's.

#![allow(dead_code, unreachable_pub)]

use std::pin::Pin;
use std::sync::Mutex;

use bytes::Bytes;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};
use traffic_agent::upstream::tunnel::Tunnel;
use traffic_agent::upstream::{Role, TunnelError, TunnelIo};
use traffic_proto::agent::agent_client::AgentClient;
use traffic_proto::agent::agent_server::{Agent, AgentServer};
use traffic_proto::manager::{
    DialRequest, LookupRequest, LookupResponse, SessionInfo, TunnelMessage, VersionInfo2,
};

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
        let opened = self
            .0
            .lock()
            .map_err(|_| Status::internal("poisoned"))?
            .clone();
        opened
            .send(io)
            .await
            .map_err(|_| Status::unavailable("bench over"))?;
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

/// Returns the agent's end (the gRPC server) and the workstation's.
pub async fn call() -> (Tunnel, Tunnel) {
    let listener = TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a loopback port");
    let addr = listener
        .local_addr()
        .expect("a bound listener has an address");
    let (opened_tx, mut opened_rx) = mpsc::channel(1);
    tokio::spawn(
        tonic::transport::Server::builder()
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(4 << 20)
            .add_service(AgentServer::new(Service(Mutex::new(opened_tx))))
            .serve_with_incoming(TcpListenerStream::new(listener)),
    );
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{addr}"))
        .expect("a URI")
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .connect()
        .await
        .expect("connect");
    let (tx, messages) = mpsc::channel(50);
    let messages = ReceiverStream::new(messages).map(|payload| TunnelMessage { payload });
    let answers = AgentClient::new(channel)
        .tunnel(messages)
        .await
        .expect("a call")
        .into_inner();
    let workstation = Tunnel::new(TunnelIo {
        tx,
        rx: payloads(answers),
        role: Role::Caller,
    });
    (
        Tunnel::new(opened_rx.recv().await.expect("the server's end")),
        workstation,
    )
}
