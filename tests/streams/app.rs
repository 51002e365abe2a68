//! A server of HTTP/1, HTTP/2 and gRPC on one port that says in `x-answered-by` who it is, in
//! `x-connection` on which of its connections it was asked, and echoes.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;

use bytes::{Buf, BufMut, Bytes};
use futures_util::future::BoxFuture;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;
use tokio_stream::Stream;
use tonic::Status;
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::server::{Grpc, StreamingService, UnaryService};

/// Starts one that serves as long as the runtime lives.
pub(crate) async fn start(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((socket, peer)) = listener.accept().await {
            socket.set_nodelay(true).unwrap();
            let service = hyper::service::service_fn(move |request| async move {
                let mut answer = answer(name, request).await?;
                let id = format!("{peer} to {address}").parse().unwrap();
                answer.headers_mut().insert("x-connection", id);
                Ok::<_, Infallible>(answer)
            });
            tokio::spawn(async move {
                let mut server = auto::Builder::new(TokioExecutor::new());
                // What a stalled stream holds must not be all that the connection may.
                server
                    .http2()
                    .max_concurrent_streams(1_000)
                    .initial_stream_window_size(1 << 16);
                server.http2().initial_connection_window_size(16 << 20);
                // A caller that goes in the middle of something has its reasons, and a test notices
                // by itself.
                let _ = server.serve_connection(TokioIo::new(socket), service).await;
            });
        }
    });
    address
}

async fn answer(
    name: &'static str,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    if request.uri().path().starts_with("/test.Echo/") {
        return Ok(call(name, request).await);
    }
    let answer = Response::builder().header("x-answered-by", name);
    match request.uri().path() {
        "/endless" => {
            let frames = futures_util::stream::repeat_with(|| {
                Ok::<_, Infallible>(Frame::data(Bytes::from(vec![7; 65_536])))
            });
            let gibibyte = futures_util::StreamExt::take(frames, 16_384);
            return Ok(answer.body(Body::new(StreamBody::new(gibibyte))).unwrap());
        }
        "/unread" => {
            // As long as the caller waits.
            let _unread = request;
            return std::future::pending().await;
        }
        _ => {}
    }
    // A body that breaks off has nobody left to be answered.
    let body = request
        .into_body()
        .collect()
        .await
        .map(|body| body.to_bytes())
        .unwrap_or_default();
    Ok(answer
        .header("content-length", body.len())
        .body(Body::new(Full::new(body)))
        .unwrap())
}

async fn call(name: &'static str, request: Request<Incoming>) -> Response<Body> {
    let unary = request.uri().path().ends_with("Unary");
    let mut grpc = Grpc::new(Raw);
    let mut response = match unary {
        true => grpc.unary(Echo, request).await,
        false => grpc.streaming(Echo, request).await,
    };
    response
        .headers_mut()
        .insert("x-answered-by", http::HeaderValue::from_static(name));
    response
}

/// The same messages back.
struct Echo;

impl UnaryService<Bytes> for Echo {
    type Response = Bytes;
    type Future = BoxFuture<'static, Result<tonic::Response<Bytes>, Status>>;

    fn call(&mut self, request: tonic::Request<Bytes>) -> Self::Future {
        Box::pin(async move { Ok(tonic::Response::new(request.into_inner())) })
    }
}

impl StreamingService<Bytes> for Echo {
    type Response = Bytes;
    type ResponseStream = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;
    type Future = BoxFuture<'static, Result<tonic::Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: tonic::Request<tonic::Streaming<Bytes>>) -> Self::Future {
        Box::pin(async move {
            Ok(tonic::Response::new(
                Box::pin(request.into_inner()) as Self::ResponseStream
            ))
        })
    }
}

/// Messages are plain bytes.
#[derive(Clone, Copy, Default)]
pub(crate) struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}
