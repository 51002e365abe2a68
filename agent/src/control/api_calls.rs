//! The calls of the agent's API on HTTP/2 streams, without the gRPC library's server: a tunnel's
//! messages are read and written by who uses it, and calls that last for days, one for each
//! developer, keep no buffers for messages that hardly ever come.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::Stream as _;
use futures_util::future::BoxFuture;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::{Body as HttpBody, Frame};
use prost::Message;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service as _;
use tonic::codegen::http::header::CONTENT_TYPE;
use tonic::codegen::http::{HeaderMap, HeaderValue, Request, Response};
use tonic::metadata::MetadataMap;
use tonic_health::pb::health_server::{Health, HealthServer};
use traffic_proto::manager::{LookupRequest, SessionInfo};

use crate::control::api::{CallPeer, FIRST_MESSAGE_TIMEOUT, Service, SessionCaller};
use crate::control::direct_tunnel::{Incoming, all_well, poll_room};
use crate::control::watchers::DialStream;

/// Prefix of the paths of the agent's calls.
const AGENT: &str = "/telepresence.agent.Agent/";
/// Prefix of the paths of health calls.
const HEALTH: &str = "/grpc.health.v1.Health/";
/// Largest request that is a single message; it holds a session or a name.
const MAX_REQUEST: usize = 64 * 1024;
/// Bytes before a message: if it is compressed, and its length.
const PREFIX: usize = 5;

/// The services of the API.
pub(crate) struct Services<H> {
    pub(crate) agent: Service,
    pub(crate) health: HealthServer<H>,
}

/// What is left to do of a call that has been answered: to send what comes.
pub(crate) type Rest = BoxFuture<'static, ()>;

/// How a call was answered.
pub(crate) enum Answered {
    Whole,
    InPart(Rest),
    /// In part, to a workstation that is now attached.
    Attached(Rest),
}

impl<H: Health> Services<H> {
    /// Answers a call by the service that its path names.
    pub(crate) async fn answer(
        &self,
        request: Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
        peer: &CallPeer,
    ) -> Answered {
        let path = request.uri().path();
        let answered = if path.starts_with(HEALTH) {
            self.health(request, &mut respond).await
        } else if let Some(method) = path.strip_prefix(AGENT) {
            let method = method.to_owned();
            self.agent(&method, request, &mut respond, peer).await
        } else {
            Err(unknown())
        };
        match answered {
            Ok(answered) => answered,
            Err(status) => {
                // Fails only on a stream that is gone.
                let _ = respond.send_response(status.into_http(), true);
                Answered::Whole
            }
        }
    }

    async fn agent(
        &self,
        method: &str,
        request: Request<RecvStream>,
        respond: &mut SendResponse<Bytes>,
        peer: &CallPeer,
    ) -> Result<Answered, Status> {
        let agent = &self.agent;
        match method {
            "Tunnel" => {
                let (caller, body) = called(request, peer);
                let open = || respond.send_response(accepted(), false).map_err(gone);
                let incoming = Incoming::new(body, &peer.tunnels);
                agent.tunnel(incoming, open, &caller).await?;
            }
            "WatchDial" => {
                let (caller, body) = called(request, peer);
                let session: SessionInfo = single(body).await?;
                let dials = Some(agent.watch(&session, &caller).await?);
                let send = respond.send_response(accepted(), false).map_err(gone)?;
                let rest = BodyPipe::new(WatchBody { dials }, send);
                return Ok(Answered::Attached(Box::pin(rest)));
            }
            "Version" => {
                let (head, body) = request.into_parts();
                let () = single(body).await?;
                let asked = MetadataMap::from_headers(head.headers);
                let (version, metadata) = agent.version(&asked);
                reply(respond, &version, metadata)?;
            }
            "Lookup" => {
                let question: LookupRequest = single(request.into_body()).await?;
                let answer = agent.lookup(&question.name).await?;
                reply(respond, &answer, MetadataMap::new())?;
            }
            _ => return Err(unknown()),
        }
        Ok(Answered::Whole)
    }

    async fn health(
        &self,
        request: Request<RecvStream>,
        respond: &mut SendResponse<Bytes>,
    ) -> Result<Answered, Status> {
        let request = request.map(|stream| Body::new(Receiving(stream)));
        let Ok(response) = self.health.clone().call(request).await;
        let (head, body) = response.into_parts();
        let is_over = body.is_end_stream();
        let head = Response::from_parts(head, ());
        let send = respond.send_response(head, is_over).map_err(gone)?;
        if is_over {
            return Ok(Answered::Whole);
        }
        Ok(Answered::InPart(Box::pin(BodyPipe::new(body, send))))
    }
}

/// Takes a call apart into who makes it and what is sent; the rest of its head is forgotten.
fn called(request: Request<RecvStream>, peer: &CallPeer) -> (SessionCaller<'_>, RecvStream) {
    let (head, body) = request.into_parts();
    let caller = SessionCaller::new(peer, &MetadataMap::from_headers(head.headers));
    (caller, body)
}

fn unknown() -> Status {
    Status::unimplemented("the agent has no such call")
}

fn gone(error: h2::Error) -> Status {
    Status::cancelled(error.to_string())
}

/// The head of an answer with messages.
fn accepted() -> Response<()> {
    let mut response = Response::new(());
    let mut grpc = HeaderValue::from_static("application/grpc");
    // Kept out of the connection's header table, which so takes no memory: 600 bytes.
    grpc.set_sensitive(true);
    response.headers_mut().insert(CONTENT_TYPE, grpc);
    response
}

/// Answers with a single message.
fn reply(
    respond: &mut SendResponse<Bytes>,
    message: &impl Message,
    metadata: MetadataMap,
) -> Result<(), Status> {
    let mut head = accepted();
    head.headers_mut().extend(metadata.into_headers());
    let mut send = respond.send_response(head, false).map_err(gone)?;
    send.send_data(encode(message), false).map_err(gone)?;
    send.send_trailers(all_well()).map_err(gone)
}

/// Reads a request that is a single message.
async fn single<M: Message + Default>(stream: RecvStream) -> Result<M, Status> {
    let whole = Limited::new(Receiving(stream), MAX_REQUEST).collect();
    let whole = tokio::time::timeout(FIRST_MESSAGE_TIMEOUT, whole)
        .await
        .map_err(|_| Status::deadline_exceeded("no request in time"))?
        .map_err(|error| Status::internal(format!("the request was not read: {error}")))?;
    decode(whole.to_bytes())
}

fn decode<M: Message + Default>(mut message: Bytes) -> Result<M, Status> {
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
    M::decode(message).map_err(|error| Status::internal(format!("a malformed request: {error}")))
}

/// A request as it comes.
struct Receiving(RecvStream);

impl HttpBody for Receiving {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let data = ready!(self.0.poll_data(cx));
        if let Some(Ok(data)) = &data {
            let _ = self.0.flow_control().release_capacity(data.len());
        }
        Poll::Ready(data.map(|data| data.map(Frame::data)))
    }
}

/// Sends what comes from a body until that or the stream ends.
struct BodyPipe<B> {
    body: B,
    send: SendStream<Bytes>,
    waiting: Option<Bytes>,
}

impl<B> BodyPipe<B> {
    fn new(body: B, send: SendStream<Bytes>) -> Self {
        Self {
            body,
            send,
            waiting: None,
        }
    }
}

impl<B: HttpBody<Data = Bytes> + Unpin> Future for BodyPipe<B> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        loop {
            if this.send.poll_reset(cx).is_ready() {
                return Poll::Ready(());
            }
            if this.waiting.is_some() {
                let has_room = ready!(poll_room(&mut this.send, cx)).is_ok();
                let data = this.waiting.take().filter(|_| has_room);
                if data.is_none_or(|data| this.send.send_data(data, false).is_err()) {
                    return Poll::Ready(());
                }
            }
            let trailers = match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        this.waiting = Some(data);
                        continue;
                    }
                    Err(frame) => frame.into_trailers().unwrap_or_default(),
                },
                Some(Err(_)) => {
                    this.send.send_reset(Reason::INTERNAL_ERROR);
                    return Poll::Ready(());
                }
                None => HeaderMap::new(),
            };
            let _ = this.send.send_trailers(trailers);
            return Poll::Ready(());
        }
    }
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
        Poll::Ready(Some(Ok(Frame::trailers(all_well()))))
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
        assert_eq!(
            decode::<SessionInfo>(request(0, length, &bytes)).unwrap(),
            info
        );
        let empty: SessionInfo = decode(request(0, 0, b"")).unwrap();
        assert_eq!(empty, SessionInfo::default());
        for (what, wrong) in [
            ("nothing", Bytes::new()),
            ("half a prefix", Bytes::from_static(&[0, 0, 0])),
            ("compressed", request(1, length, &bytes)),
            ("too short", request(0, length + 1, &bytes)),
            ("two", request(0, length - 1, &bytes)),
            ("no message", request(0, 2, &[0xff, 0xff])),
        ] {
            assert!(decode::<SessionInfo>(wrong).is_err(), "{what}");
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
