//! Copies in HTTP/2: all of one caller's connection share a connection to the workstation, a stream
//! each.

use std::future::poll_fn;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, SendStream};
use http::Request;
use tokio::time::{sleep, timeout};

use crate::proxy::wiretap::copy::CopyReader;
use crate::proxy::wiretap::lane::{ANSWER_TIMEOUT, LANE_IDLE_TIMEOUT, LaneTask, STALL_TIMEOUT};
use crate::proxy::wiretap::speech::{CopiedHead, Speech};
use crate::telemetry::metrics::CopyEnd;
use crate::upstream::copy_memory::CopiedBytes;

/// Streams of one lane at a time; further copies wait.
const MAX_STREAMS: usize = 64;
/// Bytes that h2 keeps for one stream.
const MAX_SEND_BUFFER: usize = 64 * 1024;
/// Time for the workstation's end to greet.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection to the workstation, driven by whoever polls the second part.
type Link = (SendRequest<Bytes>, BoxFuture<'static, ()>);

/// Carries the copies of a lane until its caller's connection is over, or none has come for a while.
pub(super) async fn run(mut lane: LaneTask) {
    let mut streams = FuturesUnordered::new();
    let mut link: Option<Link> = None;
    let mut open = true;
    while open || !streams.is_empty() {
        tokio::select! {
            copy = lane.waiting.recv(), if open && streams.len() < MAX_STREAMS => match copy {
                Some(copy) => {
                    if link.is_none() {
                        link = greet(&mut lane).await;
                    }
                    match &link {
                        Some((sender, _)) => streams.push(deliver(sender.clone(), copy)),
                        None => copy.end(CopyEnd::Unreachable),
                    }
                }
                None => open = false,
            },
            Some(()) = streams.next() => {}
            () = driven(&mut link) => link = None,
            () = lane.context.port.drain.draining(), if !open => return,
            // What came just now is still taken.
            () = sleep(LANE_IDLE_TIMEOUT), if open && streams.is_empty() => lane.waiting.close(),
        }
    }
    // Told in order that there is no more.
    drop(streams);
    if let Some((sender, mut driver)) = link {
        drop(sender);
        let _ = timeout(GREETING_TIMEOUT, &mut driver).await;
    }
}

async fn greet(lane: &mut LaneTask) -> Option<Link> {
    let conn = lane.connect().await?;
    let mut builder = h2::client::Builder::new();
    builder
        .enable_push(false)
        .max_send_buffer_size(MAX_SEND_BUFFER);
    let greeted = timeout(GREETING_TIMEOUT, builder.handshake::<_, Bytes>(conn)).await;
    let (sender, connection) = greeted.ok()?.ok()?;
    let driver = async move {
        let _ = connection.await;
    };
    Some((sender, Box::pin(driver)))
}

/// Drives a connection to its end.
async fn driven(link: &mut Option<Link>) {
    match link {
        Some((_, driver)) => driver.await,
        None => std::future::pending().await,
    }
}

/// Carries one copy and reads its answer, or resets it.
async fn deliver(sender: SendRequest<Bytes>, mut copy: CopyReader) {
    let Speech::Http2(head) = copy.speech.clone() else {
        return copy.end(CopyEnd::Lost);
    };
    let given_up = copy.given_up();
    let begun = timeout(STALL_TIMEOUT, begin(sender, &head));
    let (answer, mut stream) = match begun.await {
        Ok(Ok(begun)) => begun,
        Ok(Err(_)) => return copy.end(CopyEnd::Lost),
        Err(_) => return copy.end(CopyEnd::Slow),
    };
    let mut answer = pin!(read_out(answer));
    let mut answered = None;
    let end = {
        let mut given_up = pin!(given_up);
        let mut writing = pin!(write(&mut stream, &mut copy));
        loop {
            tokio::select! {
                biased;
                end = &mut writing => break end,
                () = &mut given_up => break CopyEnd::Broken,
                read = &mut answer, if answered.is_none() => answered = Some(read.is_ok()),
            }
            if answered == Some(false) {
                break CopyEnd::Lost;
            }
        }
    };
    match (end, answered) {
        (CopyEnd::Sent, None) => {
            copy.end(CopyEnd::Sent);
            let _ = timeout(ANSWER_TIMEOUT, answer).await;
        }
        // It has said what it thinks of the request, and takes no more of it.
        (CopyEnd::Sent | CopyEnd::Lost, Some(true)) => copy.end(CopyEnd::Sent),
        _ => {
            copy.end(end);
            stream.send_reset(Reason::CANCEL);
        }
    }
}

async fn begin(
    sender: SendRequest<Bytes>,
    head: &CopiedHead,
) -> Result<(ResponseFuture, SendStream<Bytes>), h2::Error> {
    let mut request = Request::new(());
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = head.uri.clone();
    *request.headers_mut() = head.headers.clone();
    *request.version_mut() = http::Version::HTTP_2;
    sender.ready().await?.send_request(request, false)
}

async fn write(stream: &mut SendStream<Bytes>, copy: &mut CopyReader) -> CopyEnd {
    while let Some(piece) = copy.pieces.recv().await {
        let length = piece.as_ref().len();
        copy.took(length);
        match timeout(STALL_TIMEOUT, write_piece(stream, piece)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return CopyEnd::Lost,
            Err(_) => return CopyEnd::Slow,
        }
    }
    if !copy.is_complete() {
        return CopyEnd::Broken;
    }
    let ended = match copy.trailers() {
        Some(trailers) => stream.send_trailers(trailers.clone()),
        None => stream.send_data(Bytes::new(), true),
    };
    ended.map_or(CopyEnd::Lost, |()| CopyEnd::Sent)
}

/// Writes as the workstation's windows allow.
async fn write_piece(stream: &mut SendStream<Bytes>, piece: CopiedBytes) -> Result<(), h2::Error> {
    let mut rest = Bytes::from_owner(piece);
    while !rest.is_empty() {
        stream.reserve_capacity(rest.len());
        let room = poll_fn(|cx| stream.poll_capacity(cx)).await;
        let room = room.ok_or(Reason::CANCEL)??;
        let part = rest.split_to(room.min(rest.len()));
        stream.send_data(part, false)?;
    }
    Ok(())
}

/// Reads an answer and drops it.
async fn read_out(answer: ResponseFuture) -> Result<(), h2::Error> {
    let mut body = answer.await?.into_body();
    while let Some(data) = body.data().await {
        let length = data?.len();
        body.flow_control().release_capacity(length)?;
    }
    body.trailers().await.map(drop)
}
