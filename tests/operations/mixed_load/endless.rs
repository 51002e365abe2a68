//! Exchanges that never end by themselves: a dripping response, a stream of messages, an open
//! WebSocket.

use std::net::SocketAddr;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use harness::caller::Caller;
use http::uri::PathAndQuery;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tonic::Request;
use tonic::transport::Endpoint;

use super::DEV;
use super::grpc::Raw;

/// An endless exchange; knows if it was broken off or ended as if complete.
pub(crate) struct Endless(Kind);

enum Kind {
    Http1(Caller),
    Task(JoinHandle<bool>),
}

impl Endless {
    /// Waits for its end; whether that was seen to be none.
    pub(crate) fn breaks(self) -> bool {
        match self.0 {
            Kind::Http1(mut caller) => caller.answer().is_err(),
            Kind::Task(task) => {
                harness::wait::until("its end", || task.is_finished().then_some(()));
                joined(task)
            }
        }
    }
}

fn joined(task: JoinHandle<bool>) -> bool {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(task)
        .unwrap()
}

pub(super) fn http1(address: SocketAddr, dev: bool) -> Endless {
    let mut caller = Caller::connect(address).unwrap();
    caller
        .send(
            "GET",
            "/drip/100000/50",
            if dev { &[DEV] } else { &[] },
            b"",
        )
        .unwrap();
    assert_eq!(caller.stream().peek(&mut [0]).unwrap(), 1);
    Endless(Kind::Http1(caller))
}

pub(super) async fn grpc(address: SocketAddr, dev: bool) -> Endless {
    let channel = Endpoint::from_shared(format!("http://{address}"))
        .unwrap()
        .connect()
        .await
        .unwrap();
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.unwrap();
    let mut request = Request::new(Bytes::new());
    if dev {
        request.metadata_mut().insert(DEV.0, DEV.1.parse().unwrap());
    }
    let path = PathAndQuery::from_static("/test.Crowd/Endless");
    let mut messages = grpc
        .server_streaming::<_, Bytes, _>(request, path, Raw)
        .await
        .unwrap()
        .into_inner();
    messages.message().await.unwrap().unwrap();
    Endless(Kind::Task(tokio::spawn(async move {
        loop {
            match messages.message().await {
                Ok(Some(_)) => {}
                ended => return ended.is_err(),
            }
        }
    })))
}

pub(super) async fn websocket(address: SocketAddr, dev: bool) -> Endless {
    let socket = TcpStream::connect(address).await.unwrap();
    let mut request = "ws://app.example/talk".into_client_request().unwrap();
    if dev {
        request.headers_mut().insert(DEV.0, DEV.1.parse().unwrap());
    }
    let (mut talk, _) = client_async(request, socket).await.unwrap();
    talk.send(Message::text("hello")).await.unwrap();
    talk.next().await.unwrap().unwrap();
    Endless(Kind::Task(tokio::spawn(async move {
        !matches!(talk.next().await, Some(Ok(Message::Close(_))))
    })))
}
