//! Joins the two gRPC streams of a tunnelled connection, or dials if no agent is to do it.
//!
//! An agent opens a stream for a workstation, or a workstation one for the cluster; the other side
//! is told by a dial request and opens the second stream with the same connection id. From then on
//! messages are passed on unchanged. Both ends are gRPC clients of the manager, so the end of one
//! direction is sent as a message, as a server signals it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};
use tonic::{Status, Streaming};
use traffic_proto::ConnId;
use traffic_proto::dialer::Outgoing;
use traffic_proto::manager::{DialRequest, TunnelMessage};
use traffic_proto::tunnel::{Message, STREAM_VERSION, StreamInfo, nanos_from_duration};

use crate::callers::Caller;
use crate::error::RequestError;
use crate::mailbox::Mailbox;
use crate::own_dials::OwnDials;
use crate::registry::Shared;
use crate::sessions::Party;
use traffic_proto::sync::lock;

/// Messages held for one direction. They can be a megabyte each, and the transport's window holds
/// more.
pub(crate) const QUEUE_CAPACITY: usize = 8;
/// Time until the first message of a new stream has to arrive.
const FIRST_MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// Default wait for the second stream, if the first names no times.
const DEFAULT_JOIN_TIMEOUT: Duration = Duration::from_secs(7);
/// Maximum wait for the second stream, whatever the first one asks for.
const MAX_JOIN_TIMEOUT: Duration = Duration::from_secs(60);

/// A peer's stream.
pub(crate) struct End {
    pub(crate) incoming: Streaming<TunnelMessage>,
    pub(crate) outgoing: mpsc::Sender<Result<TunnelMessage, Status>>,
}

/// First streams waiting for their second, by the session expected to open it and the connection
/// id.
pub(crate) struct Tunnels {
    own_dials: OwnDials,
    waiting: Mutex<HashMap<(String, ConnId), Waiter>>,
}

struct Waiter {
    serial: Instant,
    second_tx: oneshot::Sender<End>,
}

impl Tunnels {
    pub(crate) fn new(own_dials: OwnDials) -> Self {
        Self {
            own_dials,
            waiting: Mutex::default(),
        }
    }

    /// Serves one stream from its first message to its end. An error becomes the status of the
    /// call.
    pub(crate) async fn serve(
        &self,
        shared: &Shared,
        mut end: End,
        caller: &Caller,
    ) -> Result<(), Status> {
        let info = opening(&mut end.incoming).await?;
        let Message::StreamInfo(info) = info else {
            return Err(Status::failed_precondition(
                "the first message of a tunnel must be a stream info",
            ));
        };
        let party = caller.owned(shared, &info.session_id, |session| session.party.clone())?;
        if !end.send(Message::StreamOk(STREAM_VERSION)).await {
            return Ok(());
        }
        // A stream that was asked for by a dial request is the second one of a pair.
        if let Some(waiter) = self
            .waiting()
            .remove(&(info.session_id.clone(), info.conn_id))
        {
            // If the first stream has just given up, the second is dropped, which tells its peer.
            let _ = waiter.second_tx.send(end);
            return Ok(());
        }
        match party {
            Party::Agent(_) => {
                let Message::Session(client) = opening(&mut end.incoming).await? else {
                    return Err(Status::failed_precondition(
                        "the second message of an agent's tunnel must be a session",
                    ));
                };
                // Checked before waiting, so that an unknown session fails at once.
                shared.read(|registry| registry.sessions.client(&client).map(|_| ()))?;
                self.join(shared, end, &info, &client).await
            }
            Party::Client(_) => {
                let destination = info.conn_id.destination().ip();
                match shared.read(|registry| registry.dialler(&info.session_id, destination)) {
                    Some(agent) => self.join(shared, end, &info, &agent).await,
                    None => {
                        let outgoing = Outgoing::server(end.outgoing);
                        self.own_dials.serve(&info, end.incoming, outgoing).await;
                        Ok(())
                    }
                }
            }
        }
    }

    /// Asks `other` for the second stream, waits for it and passes messages between the two.
    async fn join(
        &self,
        shared: &Shared,
        first: End,
        info: &StreamInfo,
        other: &str,
    ) -> Result<(), Status> {
        let (dials, gone) = shared.read(|registry| {
            let session = registry.sessions.get(other)?;
            // Nobody would answer; the agent lets the app serve at once.
            if registry.sessions.is_absent(other) {
                return Err(RequestError::Absent(other.to_owned()));
            }
            Ok::<(Arc<Mailbox<DialRequest>>, _), RequestError>((
                session.dials.clone(),
                session.end.clone(),
            ))
        })?;
        let wait = match info.dial_timeout.saturating_add(info.roundtrip_latency) {
            // Some clients leave both times unset.
            Duration::ZERO => DEFAULT_JOIN_TIMEOUT,
            wait => wait.min(MAX_JOIN_TIMEOUT),
        };
        let deadline = Instant::now() + wait;
        // Registered before the request is posted, because the second stream may arrive at once.
        let mut waiting = self.wait_for(other, info.conn_id);
        let request = DialRequest {
            conn_id: info.conn_id.to_bytes(),
            roundtrip_latency: nanos_from_duration(info.roundtrip_latency),
            dial_timeout: nanos_from_duration(info.dial_timeout),
            ..DialRequest::default()
        };
        if !dials.post(request, deadline) {
            return Err(Status::resource_exhausted(format!(
                "session {other:?} has too many dial requests to answer"
            )));
        }
        let second = tokio::select! {
            second = &mut waiting.second_rx => second,
            () = tokio::time::sleep_until(deadline) => {
                return Err(Status::deadline_exceeded(format!("session {other:?} did not dial \
                    within {wait:?}")));
            }
            () = gone.cancelled() => return Err(RequestError::no_session(other).into()),
            // Its network or its program is gone: nobody will dial, so callers need not wait.
            () = dials.left() => {
                first.send(Message::DialReject).await;
                return Ok(());
            }
            // The first peer has given up.
            () = first.outgoing.closed() => return Ok(()),
        };
        // Removes the entry before the long life of the pipe begins.
        drop(waiting);
        match second {
            Ok(second) => pipe(first, second).await,
            Err(_) => return Err(Status::aborted("a newer tunnel has the same connection id")),
        }
        Ok(())
    }

    fn wait_for(&self, session: &str, conn_id: ConnId) -> Waiting<'_> {
        let key = (session.to_owned(), conn_id);
        let (second_tx, second_rx) = oneshot::channel();
        let serial = Instant::now();
        self.waiting()
            .insert(key.clone(), Waiter { serial, second_tx });
        Waiting {
            tunnels: self,
            key,
            serial,
            second_rx,
        }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<(String, ConnId), Waiter>> {
        lock(&self.waiting)
    }
}

/// A place in the waiting list, removed when dropped: a later connection may have the same
/// addresses.
struct Waiting<'a> {
    tunnels: &'a Tunnels,
    key: (String, ConnId),
    serial: Instant,
    second_rx: oneshot::Receiver<End>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut waiting = self.tunnels.waiting();
        if waiting
            .get(&self.key)
            .is_some_and(|waiter| waiter.serial == self.serial)
        {
            waiting.remove(&self.key);
        }
    }
}

impl End {
    /// Sends a message; false if the peer is gone.
    async fn send(&self, message: Message) -> bool {
        self.outgoing
            .send(Ok(TunnelMessage {
                payload: message.encode(),
            }))
            .await
            .is_ok()
    }
}

/// End of one direction of a pipe.
enum Half {
    /// The sender has no more data; the other direction continues.
    Done,
    /// The sender ended the stream, and the receiver has been told.
    Over,
    /// The receiver is gone; the sender still has to be told.
    Lost,
}

/// Passes messages in both directions until both are done or the tunnel is over.
async fn pipe(first: End, second: End) {
    let End {
        incoming: mut from_first,
        outgoing: to_first,
    } = first;
    let End {
        incoming: mut from_second,
        outgoing: to_second,
    } = second;
    let forth = pass(&mut from_first, &to_second);
    let back = pass(&mut from_second, &to_first);
    tokio::pin!(forth, back);
    // A finished direction leaves the other one running; a broken one ends both.
    let (forth_is_last, half) = tokio::select! {
        half = &mut forth => match half {
            Half::Done => (false, back.await),
            half => (true, half),
        },
        half = &mut back => match half {
            Half::Done => (true, forth.await),
            half => (false, half),
        },
    };
    if matches!(half, Half::Lost) {
        let sender = if forth_is_last { &to_first } else { &to_second };
        let disconnect = TunnelMessage {
            payload: Message::Disconnect.encode(),
        };
        // Bounded: a peer that does not read must not keep the task.
        let _ = timeout(FIRST_MESSAGE_TIMEOUT, sender.send(Ok(disconnect))).await;
    }
}

/// Passes messages unchanged until the sender is done or the tunnel is over.
async fn pass(
    from: &mut Streaming<TunnelMessage>,
    to: &mpsc::Sender<Result<TunnelMessage, Status>>,
) -> Half {
    loop {
        let message = tokio::select! {
            message = from.next() => message,
            () = to.closed() => return Half::Lost,
        };
        let (payload, end) = match message {
            None => (Message::CloseSend.encode(), Some(Half::Done)),
            // The peer broke off; the other end must not see an orderly end.
            Some(Err(_)) => (Message::Disconnect.encode(), Some(Half::Over)),
            // An empty message has no meaning, and some peers fail on it.
            Some(Ok(message)) if message.payload.is_empty() => continue,
            Some(Ok(TunnelMessage { payload })) => {
                // Only the code decides, so the body is not decoded.
                let end = match Message::decode(payload.slice(..1)) {
                    Ok(Message::CloseSend) => Some(Half::Done),
                    Ok(Message::Disconnect | Message::DialReject) => Some(Half::Over),
                    _ => None,
                };
                (payload, end)
            }
        };
        if to.send(Ok(TunnelMessage { payload })).await.is_err() {
            return Half::Lost;
        }
        if let Some(end) = end {
            return end;
        }
    }
}

async fn opening(incoming: &mut Streaming<TunnelMessage>) -> Result<Message, Status> {
    let message = timeout(FIRST_MESSAGE_TIMEOUT, incoming.message()).await;
    let message =
        message.map_err(|_| Status::deadline_exceeded("the tunnel was not opened in time"))??;
    let message = message
        .ok_or_else(|| Status::failed_precondition("the tunnel ended before it was opened"))?;
    Message::decode(message.payload).map_err(|error| Status::failed_precondition(error.to_string()))
}
