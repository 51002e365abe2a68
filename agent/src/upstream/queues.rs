//! A tunnel whose messages go through queues: towards a call to the manager, which another task
//! drives.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use tokio::sync::mpsc;
use tokio_util::sync::PollSender;
use traffic_proto::tunnel::Message;
use traffic_proto::tunnel::frame::Frame;

use crate::upstream::{Gone, Messages, Role, TunnelError, TunnelIo};

/// What was received: messages in their order. An error or the end finishes the direction.
pub type ReceivedMessages = Pin<Box<dyn Stream<Item = Result<Message, TunnelError>> + Send>>;

/// Queues between the data path and a call that the control side drives.
struct Queues {
    tx: PollSender<Frame>,
    /// A slot that is kept for the last message, so that a reset can be sent into a full queue.
    farewell: Option<mpsc::OwnedPermit<Frame>>,
    rx: ReceivedMessages,
}

impl TunnelIo {
    /// Sends one message, waits for room if there is none.
    ///
    /// # Errors
    /// The tunnel takes no more messages.
    pub async fn send(&mut self, message: &Message) -> Result<(), Gone> {
        poll_fn(|cx| self.messages.poll_room(cx)).await?;
        self.messages.send(message.into())
    }

    /// A tunnel whose messages go through a queue each way.
    pub fn queued(tx: mpsc::Sender<Frame>, rx: ReceivedMessages, role: Role) -> Self {
        // A queue of one slot has none to keep aside.
        let farewell = if tx.max_capacity() > 1 {
            tx.clone().try_reserve_owned().ok()
        } else {
            None
        };
        let tx = PollSender::new(tx);
        let messages = Box::new(Queues { tx, farewell, rx });
        Self { messages, role }
    }

    /// The same for a far end that speaks in payloads.
    pub fn of_payloads(
        tx: mpsc::Sender<Frame>,
        rx: impl Stream<Item = Result<Bytes, TunnelError>> + Send + 'static,
        role: Role,
    ) -> Self {
        let decoded = rx.map(|payload| {
            let message = Message::decode(payload?);
            message.map_err(|error| TunnelError::Malformed(error.to_string()))
        });
        Self::queued(tx, Box::pin(decoded), role)
    }
}

impl Messages for Queues {
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        self.tx.poll_reserve(cx).map_err(|_| Gone)
    }

    fn send(&mut self, frame: Frame) -> Result<(), Gone> {
        self.tx.send_item(frame).map_err(|_| Gone)
    }

    fn try_send(&mut self, frame: Frame) -> bool {
        let tx = self.tx.get_ref();
        tx.is_some_and(|tx| tx.try_send(frame).is_ok())
    }

    fn end(&mut self, last: Option<Frame>) {
        match (self.farewell.take(), last) {
            (Some(slot), Some(last)) => drop(slot.send(last)),
            (None, Some(last)) => {
                self.try_send(last);
            }
            (_, None) => {}
        }
        self.tx.close();
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Message, TunnelError>>> {
        self.rx.poll_next_unpin(cx)
    }
}
