//! Servers for the mixed load beside [`harness::apps::App`]: gRPC by tonic, and a WebSocket that
//! echoes.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{SinkExt, StreamExt};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_stream::Stream;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_tungstenite::accept_async;
use tokio_tungstenite::tungstenite::Message;
use tonic::body::Body;
use tonic::server::{Grpc, NamedService, ServerStreamingService, UnaryService};
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use super::grpc::{MESSAGES, Raw};

/// Answers with what it was asked (`Unary`), with messages one after the other (`Count`), or
/// without an end (`Endless`).
#[derive(Clone)]
struct Service(&'static str);

#[derive(Clone)]
struct Method(&'static str, String);

impl NamedService for Service {
    const NAME: &'static str = "test.Crowd";
}

impl Method {
    fn signed<T>(&self, message: T) -> Response<T> {
        let mut response = Response::new(message);
        response
            .metadata_mut()
            .insert("x-answered-by", self.0.parse().unwrap());
        response
    }
}

impl UnaryService<Bytes> for Method {
    type Response = Bytes;
    type Future = BoxFuture<'static, Result<Response<Bytes>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let response = self.signed(request.into_inner());
        Box::pin(async move { Ok(response) })
    }
}

type Messages = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

impl ServerStreamingService<Bytes> for Method {
    type Response = Bytes;
    type ResponseStream = Messages;
    type Future = BoxFuture<'static, Result<Response<Messages>, Status>>;

    fn call(&mut self, _: Request<Bytes>) -> Self::Future {
        let count = if self.1.ends_with("Endless") {
            usize::MAX
        } else {
            MESSAGES
        };
        let messages = futures_util::stream::unfold(0, move |number| async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            (number < count).then(|| (Ok(Bytes::from(number.to_string())), number + 1))
        });
        let response = self.signed(Box::pin(messages) as Messages);
        Box::pin(async move { Ok(response) })
    }
}

impl tonic::codegen::Service<http::Request<Body>> for Service {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<http::Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let method = Method(self.0, request.uri().path().to_owned());
        Box::pin(async move {
            let mut grpc = Grpc::new(Raw);
            Ok(match method.1.ends_with("Unary") {
                true => grpc.unary(method, request).await,
                false => grpc.server_streaming(method, request).await,
            })
        })
    }
}

/// A gRPC server that signs its answers with `name`.
pub(super) fn grpc(runtime: &Runtime, name: &'static str) -> SocketAddr {
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    let serving = Server::builder()
        .add_service(Service(name))
        .serve_with_incoming(TcpListenerStream::new(listener));
    runtime.spawn(serving);
    address
}

/// A WebSocket server that echoes texts behind its name.
pub(super) fn websocket(runtime: &Runtime, name: &'static str) -> SocketAddr {
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    runtime.spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let Ok(mut talk) = accept_async(socket).await else {
                    return;
                };
                while let Some(Ok(message)) = talk.next().await {
                    if let Message::Text(text) = message
                        && talk
                            .send(Message::text(format!("{name} {text}")))
                            .await
                            .is_err()
                    {
                        return;
                    }
                }
            });
        }
    });
    address
}
