//! A tunnel over a real gRPC call on loopback.

use std::pin::Pin;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};
use traffic_agent::upstream::tunnel::Tunnel;
use traffic_agent::upstream::{Role, TunnelError, TunnelIo};
use traffic_proto::agent::agent_client::AgentClient;
use traffic_proto::agent::agent_server::{Agent, AgentServer};
use traffic_proto::manager::{
    DialRequest, LookupRequest, LookupResponse, SessionInfo, TunnelMessage, VersionInfo2,
};
use traffic_proto::tunnel::frame::Frame;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Both ends of one call: the gRPC client's and the server's. Windows are large where `bulk`.
pub async fn tunnel_pair(bulk: bool) -> (Tunnel, Tunnel) {
    let windows = bulk.then_some((1 << 20, 4 << 20));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (opened_tx, mut opened) = mpsc::channel(1);
    tokio::spawn(
        tonic::transport::Server::builder()
            .initial_stream_window_size(windows.map(|w| w.0))
            .initial_connection_window_size(windows.map(|w| w.1))
            .add_service(AgentServer::new(Service(opened_tx)))
            .serve_with_incoming(TcpListenerStream::new(listener)),
    );
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{addr}"))
        .unwrap()
        .initial_stream_window_size(windows.map(|w| w.0))
        .initial_connection_window_size(windows.map(|w| w.1))
        .connect()
        .await
        .unwrap();
    let (tx, messages) = mpsc::channel(50);
    let messages = ReceiverStream::new(messages).map(message);
    let mut client = AgentClient::new(channel);
    let answers = client.tunnel(messages).await.unwrap().into_inner();
    let near = TunnelIo::of_payloads(tx, payloads(answers), Role::Caller);
    (Tunnel::new(near), Tunnel::new(opened.recv().await.unwrap()))
}

fn payloads(
    stream: Streaming<TunnelMessage>,
) -> Pin<Box<dyn Stream<Item = Result<Bytes, TunnelError>> + Send>> {
    Box::pin(stream.map(|message| {
        message
            .map(|message| message.payload)
            .map_err(|status| TunnelError::Broken(status.to_string()))
    }))
}

fn message(frame: Frame) -> TunnelMessage {
    TunnelMessage {
        payload: frame.payload(),
    }
}

/// Hands out the server's end of every call.
struct Service(mpsc::Sender<TunnelIo>);

#[tonic::async_trait]
impl Agent for Service {
    type TunnelStream = Answers<TunnelMessage>;
    type WatchDialStream = Answers<DialRequest>;

    async fn tunnel(
        &self,
        request: Request<Streaming<TunnelMessage>>,
    ) -> Result<Response<Self::TunnelStream>, Status> {
        let (tx, answers) = mpsc::channel(50);
        let io = TunnelIo::of_payloads(tx, payloads(request.into_inner()), Role::Server);
        self.0.send(io).await.map_err(|_| unknown())?;
        let answers = ReceiverStream::new(answers).map(|frame| Ok(message(frame)));
        Ok(Response::new(Box::pin(answers)))
    }

    async fn version(&self, _: Request<()>) -> Result<Response<VersionInfo2>, Status> {
        Err(unknown())
    }

    async fn watch_dial(
        &self,
        _: Request<SessionInfo>,
    ) -> Result<Response<Self::WatchDialStream>, Status> {
        Err(unknown())
    }

    async fn lookup(&self, _: Request<LookupRequest>) -> Result<Response<LookupResponse>, Status> {
        Err(unknown())
    }
}

fn unknown() -> Status {
    Status::unimplemented("not in this test")
}
