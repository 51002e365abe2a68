//! The call of an attached workstation that carries one tunnel. Whoever uses the tunnel writes frames
//! into the HTTP/2 stream and reads its pieces himself: no queue and no task stands between, and the
//! stream's own windows are what bounds both directions.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use tonic::Status;
use tonic::codegen::http::{HeaderMap, HeaderValue};
use traffic_proto::tunnel::Message;
use traffic_proto::tunnel::frame::{Frame, FrameReader};

use crate::control::keepalive::SignsOfLife;
use crate::control::meter::Meter;
use crate::control::stream_windows::{ConnectionTunnels, CountedTunnel};
use crate::upstream::{Gone, Messages, TunnelError};

/// What a workstation sends in a call.
pub(crate) struct Incoming {
    /// The first field, because it is to be dropped before the stream.
    _open: CountedTunnel,
    stream: RecvStream,
    reader: FrameReader,
    received: Bytes,
    over: bool,
}

impl Incoming {
    pub(crate) fn new(mut stream: RecvStream, tunnels: &ConnectionTunnels) -> Self {
        Self {
            _open: tunnels.enter(&mut stream),
            stream,
            reader: FrameReader::default(),
            received: Bytes::new(),
            over: false,
        }
    }

    /// From now on each message is a datagram.
    pub(crate) fn keep_borders(&mut self) {
        self.reader.keep_borders();
    }

    pub(crate) async fn next(&mut self) -> Option<Result<Message, TunnelError>> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Message, TunnelError>>> {
        while !self.over {
            match self.reader.next(&mut self.received) {
                Ok(None) => {}
                Ok(Some(message)) => return Poll::Ready(Some(Ok(message))),
                Err(error) => {
                    self.over = true;
                    let error = TunnelError::Malformed(error.to_string());
                    return Poll::Ready(Some(Err(error)));
                }
            }
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    // Room for as much again: what is read here goes on before more is read.
                    let _ = self.stream.flow_control().release_capacity(data.len());
                    self.received = data;
                }
                end => return Poll::Ready(self.end(end.and_then(Result::err))),
            }
        }
        Poll::Ready(None)
    }

    fn end(&mut self, error: Option<h2::Error>) -> Option<Result<Message, TunnelError>> {
        self.over = true;
        // A workstation that is done with a tunnel may cancel the call.
        let done =
            |error: &h2::Error| matches!(error.reason(), Some(Reason::CANCEL | Reason::NO_ERROR));
        let text = match error.filter(|error| !done(error)) {
            Some(error) => error.to_string(),
            None if self.reader.is_between() => return None,
            None => "it ended within a message".to_owned(),
        };
        Some(Err(TunnelError::Broken(text)))
    }
}

/// A tunnel in a call that the workstation has opened.
pub(crate) struct DirectTunnel {
    incoming: Incoming,
    outgoing: SendStream<Bytes>,
    ended: bool,
    meter: Arc<Meter>,
    /// Those of its connection.
    signs: SignsOfLife,
}

impl DirectTunnel {
    pub(crate) fn new(
        incoming: Incoming,
        outgoing: SendStream<Bytes>,
        meter: Arc<Meter>,
        signs: SignsOfLife,
    ) -> Self {
        Self {
            incoming,
            outgoing,
            ended: false,
            meter,
            signs,
        }
    }
}

impl Messages for DirectTunnel {
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        if self.ended {
            return Poll::Ready(Err(Gone));
        }
        poll_room(&mut self.outgoing, cx)
    }

    fn send(&mut self, frame: Frame) -> Result<(), Gone> {
        if self.ended {
            return Err(Gone);
        }
        self.meter.sent(&frame);
        let sent = self.outgoing.send_data(frame.into_bytes(), false);
        sent.map_err(|_| Gone)
    }

    fn try_send(&mut self, frame: Frame) -> bool {
        self.outgoing.reserve_capacity(1);
        self.outgoing.capacity() > 0 && self.send(frame).is_ok()
    }

    fn ask_for_life(&mut self) {
        self.signs.doubt();
    }

    fn end(&mut self, last: Option<Frame>) {
        if self.ended {
            return;
        }
        if let Some(last) = last {
            let _ = self.send(last);
        }
        self.ended = true;
        let _ = self.outgoing.send_trailers(all_well());
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Message, TunnelError>>> {
        let next = self.incoming.poll_next(cx);
        if let Poll::Ready(Some(Ok(message))) = &next {
            self.meter.received(message);
        }
        next
    }
}

impl Drop for DirectTunnel {
    fn drop(&mut self) {
        self.end(None);
    }
}

/// Ready when some of the stream's window is left; a message may be larger than that.
pub(crate) fn poll_room(
    stream: &mut SendStream<Bytes>,
    cx: &mut Context<'_>,
) -> Poll<Result<(), Gone>> {
    while stream.capacity() == 0 {
        stream.reserve_capacity(1);
        match ready!(stream.poll_capacity(cx)) {
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return Poll::Ready(Err(Gone)),
        }
    }
    Poll::Ready(Ok(()))
}

/// The status behind the messages of a call.
pub(crate) fn all_well() -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(Status::GRPC_STATUS, HeaderValue::from_static("0"));
    trailers
}
