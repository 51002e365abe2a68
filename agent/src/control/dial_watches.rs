//! The call by which a workstation watches for dials, served below the gRPC library: such calls last
//! for days and there is one for each developer, and the library takes 8 KiB for the one message of
//! the request and keeps 8 KiB more to encode messages that hardly ever come.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::Stream as _;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::{Body as HttpBody, Frame};
use prost::Message;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::header::CONTENT_TYPE;
use tonic::codegen::http::{HeaderMap, HeaderValue, Request, Response};
use tonic::codegen::{BoxFuture, Service as HttpService};
use tonic::transport::server::TcpConnectInfo;
use traffic_proto::agent::agent_server::AgentServer;
use traffic_proto::manager::SessionInfo;

use crate::control::api::{FIRST_MESSAGE_TIMEOUT, Service};
use crate::control::tunnels::DialStream;

/// Path of the call.
const WATCH_DIAL: &str = "/telepresence.agent.Agent/WatchDial";
/// Largest request; it holds a session.
const MAX_REQUEST: usize = 64 * 1024;
/// Bytes before a message: if it is compressed, and its length.
const PREFIX: usize = 5;

/// The agent's service with its own way of watching for dials.
#[derive(Clone)]
pub(crate) struct DialWatches {
    pub(crate) others: AgentServer<Service>,
    pub(crate) service: Service,
}

impl HttpService<Request<Body>> for DialWatches {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Response<Body>, Infallible>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        HttpService::<Request<Body>>::poll_ready(&mut self.others, cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if request.uri().path() != WATCH_DIAL {
            return self.others.call(request);
        }
        let service = self.service.clone();
        Box::pin(async move {
            let watched = watch(&service, request).await;
            Ok(watched.unwrap_or_else(Status::into_http))
        })
    }
}

async fn watch(service: &Service, request: Request<Body>) -> Result<Response<Body>, Status> {
    let peer = peer(&request);
    let session = session(request.into_body()).await?;
    let dials = service.watch(&session, peer).await?;
    let mut response = Response::new(Body::new(WatchBody { dials: Some(dials) }));
    let mut grpc = HeaderValue::from_static("application/grpc");
    // Kept out of the connection's header table, which so takes no memory: 600 bytes.
    grpc.set_sensitive(true);
    response.headers_mut().insert(CONTENT_TYPE, grpc);
    Ok(response)
}

fn peer(request: &Request<Body>) -> Option<SocketAddr> {
    request.extensions().get::<TcpConnectInfo>()?.remote_addr()
}

/// Reads the request, which is a single message.
async fn session(body: Body) -> Result<SessionInfo, Status> {
    let whole = Limited::new(body, MAX_REQUEST).collect();
    let whole = tokio::time::timeout(FIRST_MESSAGE_TIMEOUT, whole)
        .await
        .map_err(|_| Status::deadline_exceeded("no session in time"))?
        .map_err(|error| Status::internal(format!("the request was not read: {error}")))?;
    decode(whole.to_bytes())
}

fn decode(mut message: Bytes) -> Result<SessionInfo, Status> {
    if message.len() < PREFIX {
        return Err(Status::internal("the request holds no message"));
    }
    if message.get_u8() != 0 {
        return Err(Status::unimplemented("compressed requests are not read"));
    }
    let length = message.get_u32();
    if usize::try_from(length) != Ok(message.len()) {
        return Err(Status::internal(format!(
            "the request is not one message: {length} bytes are announced and {} are there",
            message.len()
        )));
    }
    SessionInfo::decode(message).map_err(|error| Status::internal(format!("no session: {error}")))
}

/// Dial requests as messages, and behind them the status.
struct WatchBody {
    dials: Option<DialStream>,
}

impl HttpBody for WatchBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        let Some(dials) = &mut this.dials else {
            return Poll::Ready(None);
        };
        if let Some(dial) = ready!(Pin::new(dials).poll_next(cx)) {
            return Poll::Ready(Some(Ok(Frame::data(encode(&dial)))));
        }
        this.dials = None;
        let mut trailers = HeaderMap::new();
        trailers.insert(Status::GRPC_STATUS, HeaderValue::from_static("0"));
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }
}

fn encode(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(PREFIX + length);
    frame.extend_from_slice(&[0]);
    frame.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    message.encode_raw(&mut frame);
    frame.freeze()
}

#[cfg(test)]
mod tests {
    use traffic_proto::manager::DialRequest;

    use super::*;

    fn request(flag: u8, length: u32, message: &[u8]) -> Bytes {
        let mut bytes = vec![flag];
        bytes.extend(length.to_be_bytes());
        bytes.extend(message);
        bytes.into()
    }

    #[test]
    fn a_session_is_read_and_what_is_none_is_refused() {
        let info = SessionInfo {
            session_id: "client-1".to_owned(),
            ..SessionInfo::default()
        };
        let bytes = info.encode_to_vec();
        let length = u32::try_from(bytes.len()).unwrap();
        assert_eq!(decode(request(0, length, &bytes)).unwrap(), info);
        let empty = decode(request(0, 0, b"")).unwrap();
        assert_eq!(empty, SessionInfo::default());
        for (what, wrong) in [
            ("nothing", Bytes::new()),
            ("half a prefix", Bytes::from_static(&[0, 0, 0])),
            ("compressed", request(1, length, &bytes)),
            ("too short", request(0, length + 1, &bytes)),
            ("two", request(0, length - 1, &bytes)),
            ("no message", request(0, 2, &[0xff, 0xff])),
        ] {
            assert!(decode(wrong).is_err(), "{what}");
        }
    }

    #[test]
    fn a_message_has_its_length_before_it() {
        let dial = DialRequest {
            conn_id: vec![7; 300].into(),
            ..DialRequest::default()
        };
        let mut frame = encode(&dial);
        assert_eq!(frame.get_u8(), 0);
        assert_eq!(frame.get_u32() as usize, frame.len());
        assert_eq!(DialRequest::decode(frame).unwrap(), dial);
    }
}
