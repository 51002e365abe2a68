//! gRPC callers by tonic, whose channels connect again by themselves. A call that never was
//! processed is repeated, as gRPC's transparent retries do; tonic leaves that to its user.

use std::error::Error;
use std::io::ErrorKind;

use bytes::{Buf, BufMut, Bytes};
use h2::Reason;
use http::uri::PathAndQuery;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};

use super::{Call, DEV, GRPC, Unanswered};

/// Messages of a stream.
pub(super) const MESSAGES: usize = 40;

/// Messages are plain bytes.
#[derive(Clone, Copy, Default)]
pub(super) struct Raw;

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

pub(super) async fn unary(call: &Call<'_>) -> Result<(), String> {
    let channel = channel(call);
    while !call.should_stop() {
        let mut grpc = match ready(&channel).await {
            Ok(grpc) => grpc,
            Err(error) => return call.gone(&error),
        };
        let path = PathAndQuery::from_static("/test.Crowd/Unary");
        match grpc.unary(request(call), path, Raw).await {
            Ok(response) => {
                if response.get_ref() != &Bytes::from_static(b"question") {
                    return Err(format!("another answer: {response:?}"));
                }
                call.answered(
                    response
                        .metadata()
                        .get("x-answered-by")
                        .unwrap()
                        .to_str()
                        .unwrap(),
                )?;
            }
            Err(status) => match sorted(&status) {
                None => return call.gone(&status),
                Some(Unanswered::Repeat) => call.repeated(),
                Some(Unanswered::Failed(problem)) => return Err(problem),
            },
        }
    }
    Ok(())
}

pub(super) async fn streaming(call: &Call<'_>) -> Result<(), String> {
    let channel = channel(call);
    while !call.should_stop() {
        let mut grpc = match ready(&channel).await {
            Ok(grpc) => grpc,
            Err(error) => return call.gone(&error),
        };
        let path = PathAndQuery::from_static("/test.Crowd/Count");
        let response = match grpc
            .server_streaming::<_, Bytes, _>(request(call), path, Raw)
            .await
        {
            Ok(response) => response,
            Err(status) => match sorted(&status) {
                None => return call.gone(&status),
                Some(Unanswered::Repeat) => {
                    call.repeated();
                    continue;
                }
                Some(Unanswered::Failed(problem)) => return Err(problem),
            },
        };
        let by = response
            .metadata()
            .get("x-answered-by")
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned();
        let count = drained(response.into_inner())
            .await
            .map_err(|e| format!("cut within a stream: {e:?}"))?;
        if count != MESSAGES {
            return Err(format!("{count} messages of {MESSAGES}"));
        }
        call.answered(&by)?;
    }
    Ok(())
}

async fn drained(mut stream: Streaming<Bytes>) -> Result<usize, Status> {
    let mut count = 0;
    while stream.message().await?.is_some() {
        count += 1;
    }
    Ok(count)
}

fn channel(call: &Call<'_>) -> Channel {
    Endpoint::from_shared(format!("http://{}", call.testbed.address(GRPC)))
        .unwrap()
        .connect_lazy()
}

async fn ready(channel: &Channel) -> Result<Grpc<Channel>, tonic::transport::Error> {
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await?;
    Ok(grpc)
}

fn request(call: &Call<'_>) -> Request<Bytes> {
    let mut request = Request::new(Bytes::from_static(b"question"));
    if call.dev {
        request.metadata_mut().insert(DEV.0, DEV.1.parse().unwrap());
    }
    request
}

/// Classifies a call's error; none if there is no connection any more.
fn sorted(status: &Status) -> Option<Unanswered> {
    let mut cause = status.source();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<h2::Error>()
            && (error.is_go_away() || error.reason() == Some(Reason::REFUSED_STREAM))
        {
            return Some(Unanswered::Repeat);
        }
        // The request had not been given to a connection.
        if error
            .downcast_ref::<hyper::Error>()
            .is_some_and(hyper::Error::is_canceled)
        {
            return Some(Unanswered::Repeat);
        }
        // A connection that was still waiting to be accepted when the listener went is reset.
        if let Some(error) = error.downcast_ref::<std::io::Error>()
            && matches!(
                error.kind(),
                ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset
            )
        {
            return None;
        }
        cause = error.source();
    }
    Some(Unanswered::Failed(format!("{status:?}")))
}
