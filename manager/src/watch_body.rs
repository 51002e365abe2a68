//! Bodies of watches. The encoder of the gRPC library keeps a buffer as large as the largest message
//! that a stream has ever had, for as long as the stream lives. Watches live for days, so their
//! messages are framed here: each in memory of its own that is free when the transport has sent it.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use http_body_util::StreamBody;
use hyper::body::Frame;
use prost::Message;
use tonic::body::Body;
use tonic::codegen::Service as HttpService;
use tonic::codegen::http::{HeaderMap, HeaderValue, Request, Response};
use tonic::server::NamedService;
use traffic_proto::sync::lock;

use crate::pending::PendingPlace;

/// A server stream of a gRPC call.
pub(crate) type Messages<T> = BoxStream<'static, Result<T, tonic::Status>>;

/// Messages of a watch as frames of gRPC; carried by the response until the body is made.
#[derive(Clone)]
struct WatchFrames(Arc<Mutex<Option<Messages<Bytes>>>>);

/// A frame, with its place in the budget of what is not sent yet.
struct PlacedFrame {
    frame: Vec<u8>,
    #[expect(dead_code, reason = "held until the frame is sent")]
    place: PendingPlace,
}

impl AsRef<[u8]> for PlacedFrame {
    fn as_ref(&self) -> &[u8] {
        &self.frame
    }
}

/// Makes a frame of a message; the place is given back when it has been sent.
pub(crate) fn frame(message: &impl Message, place: PendingPlace) -> Bytes {
    /// The message is not compressed.
    const PLAIN: u8 = 0;
    let length = message.encoded_len();
    let mut frame = Vec::with_capacity(length + 5);
    frame.push(PLAIN);
    frame.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    message.encode_raw(&mut frame);
    Bytes::from_owner(PlacedFrame { frame, place })
}

/// Answers a watch with frames of `M`.
pub(crate) fn answer<M: Send + 'static>(frames: Messages<Bytes>) -> tonic::Response<Messages<M>> {
    let mut response = tonic::Response::new(stream::empty().boxed());
    let frames = WatchFrames(Arc::new(Mutex::new(Some(frames))));
    response.extensions_mut().insert(frames);
    response
}

/// Puts the bodies of watches into the responses of a gRPC service.
#[derive(Clone, Debug)]
pub(crate) struct WatchBodies<S>(pub(crate) S);

impl<S: NamedService> NamedService for WatchBodies<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> HttpService<Request<Body>> for WatchBodies<S>
where
    S: HttpService<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let response = self.0.call(request);
        Box::pin(async move {
            let mut response = response.await?;
            if let Some(WatchFrames(frames)) = response.extensions_mut().remove()
                && let Some(frames) = lock(&frames).take()
            {
                *response.body_mut() = Body::new(StreamBody::new(body(frames)));
            }
            Ok(response)
        })
    }
}

/// The frames, and behind them the status.
fn body(frames: Messages<Bytes>) -> BoxStream<'static, Result<Frame<Bytes>, tonic::Status>> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let end = stream::once(async { Ok(Frame::trailers(trailers)) });
    frames
        .map(|frame| frame.map(Frame::data))
        .chain(end)
        .boxed()
}
