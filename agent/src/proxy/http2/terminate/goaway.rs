//! How a terminated connection's caller is asked to go elsewhere without losing a request that
//! crosses the asking (RFC 9113 section 6.8), in the same steps as in [`super::parting`]: GOAWAY
//! with the largest stream id; then, when no stream is open, PINGs, until two in a row were
//! answered without a stream in between; and only then the library's own shutdown, which takes a
//! single answered PING as proof that no more streams come. It is none: common clients (those built
//! on the `h2` library) answer PINGs ahead of requests that they have queued.

use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use h2::{Ping, PingPong};
use tokio::time::{Sleep, sleep};

use crate::proxy::http2::relay::goaway::GOAWAY_TIMEOUT;
use crate::proxy::http2::terminate::h2_io::IoState;

/// PINGs answered in a row without a stream in between after which no more streams are expected.
const CALM: u32 = 2;

/// A caller's connection that has been asked to end.
pub(crate) struct Farewell {
    pings: Option<PingPong>,
    patience: Pin<Box<Sleep>>,
    /// How many streams there had been when the PING under way was sent.
    asked_at: Option<u64>,
    calm: u32,
    over: bool,
}

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Nothing, before something happens.
    Wait,
    /// A PING was begun; the connection has to send it.
    Write,
    /// The library may end the connection.
    End,
}

impl Farewell {
    /// Has the first GOAWAY said.
    pub(crate) fn begin(pings: Option<PingPong>, signs: &IoState) -> Self {
        signs.farewell.store(true, Ordering::Relaxed);
        Self {
            pings,
            patience: Box::pin(sleep(GOAWAY_TIMEOUT)),
            asked_at: None,
            calm: 0,
            over: false,
        }
    }

    /// Takes the next step where it is due. `begun` streams have begun in this connection's life,
    /// and `idle` says that none is open.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        signs: &IoState,
        begun: u64,
        idle: bool,
    ) -> Next {
        if self.over {
            return Next::Wait;
        }
        if self.patience.as_mut().poll(cx).is_ready() || self.is_quiet(cx, begun, idle) {
            self.over = true;
            return Next::End;
        }
        if !idle || self.asked_at.is_some() || signs.farewell.load(Ordering::Relaxed) {
            return Next::Wait;
        }
        match self
            .pings
            .as_mut()
            .map(|pings| pings.send_ping(Ping::opaque()))
        {
            Some(Ok(())) => {
                self.asked_at = Some(begun);
                Next::Write
            }
            _ => {
                self.over = true;
                Next::End
            }
        }
    }

    fn is_quiet(&mut self, cx: &mut Context<'_>, begun: u64, idle: bool) -> bool {
        if let (Some(at), Some(pings)) = (self.asked_at, &mut self.pings)
            && let Poll::Ready(answer) = pings.poll_pong(cx)
        {
            self.asked_at = None;
            self.calm = if answer.is_ok() && at == begun {
                self.calm + 1
            } else {
                0
            };
        }
        idle && self.calm >= CALM
    }
}
