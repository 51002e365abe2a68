//! A tunnel call to the manager. The connection is the gRPC library's; the messages are framed here,
//! because the library keeps 85 kB to decode those of each call.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::Stream;
use hyper::body::{Body as HttpBody, Frame as BodyFrame};
use tokio::sync::mpsc;
use tonic::body::Body;
use tonic::codegen::Service as _;
use tonic::codegen::http::header::{CONTENT_TYPE, HeaderValue, TE};
use tonic::codegen::http::{HeaderMap, Method, Request};
use tonic::{Code, Status};
use traffic_proto::port::Transport;
use traffic_proto::tunnel::frame::{Frame, FrameReader};
use traffic_proto::tunnel::{Message, STREAM_VERSION, StreamInfo};

use crate::control::manager_token::{Calls, Manager};
use crate::control::meter::Meter;
use crate::upstream::{Role, TunnelError, TunnelIo};

/// Messages queued towards the manager in one tunnel.
pub(crate) const QUEUE_CAPACITY: usize = 16;

/// The manager, as far as tunnels need it.
#[derive(Clone)]
pub(crate) struct ManagerLink {
    pub(crate) client: Manager,
    /// The way of calls that are framed here.
    pub(crate) calls: Calls,
    /// Session id of the agent.
    pub(crate) session: String,
}

const PATH: &str = "/telepresence.manager.Manager/Tunnel";

/// Opens a tunnel call to the manager and exchanges StreamInfo and StreamOK.
pub(crate) async fn call(
    link: &ManagerLink,
    info: StreamInfo,
    meter: Arc<Meter>,
) -> Result<TunnelIo, TunnelError> {
    let (tx, queue) = mpsc::channel(QUEUE_CAPACITY);
    let mut reader = FrameReader::default();
    if info.conn_id.transport() == Transport::Udp {
        reader.keep_borders();
    }
    // The queue is empty and has room for more than one.
    let _ = tx.try_send(Frame::from(&Message::StreamInfo(info)));
    let outgoing = Outgoing {
        queue,
        meter: Arc::clone(&meter),
    };
    let body = answered(link.calls.clone(), Body::new(outgoing)).await;
    let mut incoming = Box::pin(AnswerMessages {
        body: body.map_err(|status| broken(&status))?,
        reader,
        received: Bytes::new(),
        over: false,
        meter,
    });
    match poll_fn(|cx| incoming.as_mut().poll_next(cx)).await {
        Some(Ok(Message::StreamOk(STREAM_VERSION))) => {}
        Some(Ok(other)) => {
            let text = format!("answered with {other:?} instead of StreamOK");
            return Err(TunnelError::Broken(text));
        }
        Some(Err(error)) => return Err(error),
        None => {
            let text = "ended before its first message".to_owned();
            return Err(TunnelError::Broken(text));
        }
    }
    Ok(TunnelIo::queued(tx, incoming, Role::Caller))
}

/// Makes the call, and returns what the manager answers.
async fn answered(mut calls: Calls, outgoing: Body) -> Result<Body, Status> {
    let mut request = Request::new(outgoing);
    *request.method_mut() = Method::POST;
    *request.uri_mut() = tonic::codegen::http::Uri::from_static(PATH);
    let headers = request.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(TE, HeaderValue::from_static("trailers"));
    let failed = |error| Status::from_error(Box::new(error));
    poll_fn(|cx| calls.poll_ready(cx)).await.map_err(failed)?;
    let response = calls.call(request).await.map_err(failed)?;
    // A call that is refused has its status here.
    status(response.headers())?;
    if !response.status().is_success() {
        let text = format!("the traffic-manager answered {}", response.status());
        return Err(Status::unavailable(text));
    }
    Ok(Body::new(response.into_body()))
}

fn status(headers: &HeaderMap) -> Result<(), Status> {
    match Status::from_header_map(headers) {
        Some(status) if status.code() != Code::Ok => Err(status),
        _ => Ok(()),
    }
}

fn broken(status: &Status) -> TunnelError {
    TunnelError::Broken(format!("{:?}: {}", status.code(), status.message()))
}

/// What is queued, as the body of the request.
struct Outgoing {
    queue: mpsc::Receiver<Frame>,
    meter: Arc<Meter>,
}

impl HttpBody for Outgoing {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<BodyFrame<Bytes>, Status>>> {
        let Some(frame) = ready!(self.queue.poll_recv(cx)) else {
            return Poll::Ready(None);
        };
        self.meter.sent(&frame);
        Poll::Ready(Some(Ok(BodyFrame::data(frame.into_bytes()))))
    }
}

/// The messages in the body of the answer.
struct AnswerMessages {
    body: Body,
    reader: FrameReader,
    received: Bytes,
    over: bool,
    meter: Arc<Meter>,
}

impl AnswerMessages {
    /// Ends the messages, with an error unless the manager says that all is well.
    fn end(&mut self, status: Result<(), Status>) -> Option<Result<Message, TunnelError>> {
        self.over = true;
        status.err().map(|status| Err(broken(&status)))
    }
}

impl Stream for AnswerMessages {
    type Item = Result<Message, TunnelError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        while !this.over {
            match this.reader.next(&mut this.received) {
                Ok(None) => {}
                Ok(Some(message)) => {
                    this.meter.received(&message);
                    return Poll::Ready(Some(Ok(message)));
                }
                Err(error) => {
                    this.over = true;
                    let error = TunnelError::Malformed(error.to_string());
                    return Poll::Ready(Some(Err(error)));
                }
            }
            let frame = match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                Some(Err(status)) => return Poll::Ready(this.end(Err(status))),
                None => {
                    let status = Status::unknown("the call ended without a status");
                    return Poll::Ready(this.end(Err(status)));
                }
            };
            match frame.into_data() {
                Ok(data) => this.received = data,
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        let said = status(&trailers);
                        return Poll::Ready(this.end(said));
                    }
                }
            }
        }
        Poll::Ready(None)
    }
}
