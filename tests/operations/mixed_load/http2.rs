//! A caller with many streams on one HTTP/2 connection, which it leaves when it is told to.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::future::join_all;
use h2::Reason;
use h2::client::SendRequest;
use http::Request;
use tokio::net::TcpStream;

use super::{Call, DEV, Unanswered};

/// Streams at a time.
const STREAMS: usize = 16;

pub(super) async fn call(call: &Call<'_>, port: usize) -> Result<(), String> {
    while !call.should_stop() {
        let socket = match TcpStream::connect(call.testbed.address(port)).await {
            Ok(socket) => socket,
            Err(error) => return call.gone(&error),
        };
        socket.set_nodelay(true).unwrap();
        let (send, connection) = match h2::client::handshake(socket).await {
            Ok(pair) => pair,
            Err(error) => return call.gone(&error),
        };
        let connection = tokio::spawn(connection);
        let ends = join_all((0..STREAMS).map(|_| streams(call, send.clone()))).await;
        drop(send);
        let ended = connection.await.unwrap();
        let first = ends.into_iter().collect::<Result<Vec<_>, _>>()?;
        if first.iter().all(|answered| *answered == 0) && !call.should_stop() {
            return call.gone(&format!("{ended:?} before any answer"));
        }
    }
    Ok(())
}

/// Runs streams one after the other until the connection is closing; returns the number answered.
async fn streams(call: &Call<'_>, send: SendRequest<Bytes>) -> Result<u64, String> {
    let mut answered = 0;
    while !call.should_stop() {
        // Not a word was sent where the connection does not take another stream.
        let Ok(mut ready) = send.clone().ready().await else {
            break;
        };
        match one(call, &mut ready).await {
            Ok(by) => {
                call.answered(&by)?;
                answered += 1;
            }
            Err(Unanswered::Repeat) => {
                call.repeated();
                break;
            }
            Err(Unanswered::Failed(problem)) => return Err(problem),
        }
    }
    Ok(answered)
}

/// A gRPC call by hand; says who answered.
async fn one(call: &Call<'_>, send: &mut SendRequest<Bytes>) -> Result<String, Unanswered> {
    let mut request = Request::post("http://app.example/test.Crowd/Unary")
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    if call.dev {
        request = request.header(DEV.0, DEV.1);
    }
    let failed = |what: &str| Unanswered::Failed(what.to_owned());
    let (answer, mut body) = send
        .send_request(request.body(()).unwrap(), false)
        .map_err(|e| sorted(&e))?;
    let mut message = BytesMut::new();
    message.put_u8(0);
    message.put_u32(100);
    message.put_bytes(b'x', 100);
    body.send_data(message.freeze(), true)
        .map_err(|e| sorted(&e))?;
    let answer = answer.await.map_err(|e| sorted(&e))?;
    let by = answer
        .headers()
        .get("x-answered-by")
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default()
        .to_owned();
    let mut body = answer.into_body();
    let mut got = BytesMut::new();
    while let Some(data) = body.data().await {
        let data = data.map_err(|e| Unanswered::Failed(format!("cut within an answer: {e}")))?;
        let _ = body.flow_control().release_capacity(data.len());
        got.extend_from_slice(&data);
    }
    let trailers = body
        .trailers()
        .await
        .map_err(|e| Unanswered::Failed(format!("no trailers: {e}")))?;
    if trailers
        .and_then(|t| t.get("grpc-status").cloned())
        .is_none_or(|status| status != "0")
    {
        return Err(failed("not OK"));
    }
    got.advance(5.min(got.len()));
    if got != [b'x'; 100][..] {
        Err(failed("another answer"))
    } else {
        Ok(by)
    }
}

/// Classifies a request's error: a stream above the one a GOAWAY names, or a refused one, was not
/// processed (RFC 9113 section 8.7).
fn sorted(error: &h2::Error) -> Unanswered {
    if error.is_go_away() || (error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM)) {
        Unanswered::Repeat
    } else {
        Unanswered::Failed(format!("{error:?}"))
    }
}
