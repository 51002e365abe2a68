//! One request and its response. Both directions flow at once, so early responses, interim
//! responses and streaming either way work; the exchange is over when both messages are complete.

mod response;

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::AsyncWrite;
use tokio::time::Instant;

use crate::io::conn::Conn;
use crate::io::late_reset::LateReset;
use crate::outcome::Ended;
use crate::proxy::context::ConnContext;
use crate::proxy::http1::connection::{Connection, Upstream};
use crate::proxy::http1::copies;
use crate::proxy::wiretap::lanes::Copies;
use crate::telemetry::access_log::record::AccessRecord;
use crate::telemetry::metrics::OpaqueReason;
use crate::upstream::app::ended_by_app;
use traffic_core::http1::body::Body;
use traffic_core::http1::h2c::Offer;
use traffic_core::http1::head::{Head, Kind, Method, Parser};

/// State of the connection after an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The next request may come.
    Next,
    /// The connection is over.
    End(Ended),
    /// The response was the last one; close gently.
    Close,
    /// The app has ended its TLS amid its response; so is the caller's.
    Cut,
    /// The rest is relayed opaquely to this exchange's upstream.
    Relay(Option<OpaqueReason>),
    /// The app has agreed to go on in HTTP/2.
    Http2,
}

/// The exchange under way.
pub(crate) struct Exchange {
    upstream: Upstream,
    /// The rest of the connection may be relayed opaquely if it becomes ambiguous: the upstream is
    /// the app, and the port has no identity header that a caller could forge.
    may_relay: bool,
    method: Method,
    started: Instant,
    request: Body,
    /// The upstream takes no more of the request: how its writes failed. What it has to say is in
    /// its response.
    refused: Option<io::ErrorKind>,
    /// Time the agent itself took until the request's first bytes were written.
    forwarded: Option<Duration>,
    /// The request waits for `100 Continue`: after a final response now, it is unknown whether the
    /// announced body follows.
    awaits_continue: bool,
    /// Both sides keep the connection open.
    persists: bool,
    answer: ResponseSide,
    /// The offer to go on in HTTP/2 that the app has got.
    offer: Option<Box<Offer>>,
    answered: bool,
    /// Time of the upstream from then to the first byte of the response.
    upstream_took: Option<Duration>,
    /// Head bytes of request and response not written yet; subtracted from the body counts.
    heads: (u32, u32),
    /// `Connection: close` was sent to the caller in this response.
    closing: bool,
    /// Watches for a reset behind more pipelined bytes than are read.
    caller_reset: Option<Box<LateReset>>,
}

enum ResponseSide {
    /// Waiting for a response head.
    Head(Parser),
    /// The final head has passed.
    Body(Body),
    /// The app has agreed to go on in HTTP/2, which begins behind the request.
    Http2,
    /// An ambiguous response of a workstation: everything is forwarded and no other exchange
    /// follows.
    Unclear,
}

/// The two ends and buffers of an exchange.
struct Ends<'c, 'l> {
    context: &'l ConnContext,
    down: &'c mut Conn,
    up: &'c mut Conn,
    request: &'c mut super::pipe::Pipe,
    answer: &'c mut super::pipe::Pipe,
    caller_done: &'c mut bool,
    end_passed: &'c mut bool,
    record: &'c mut Option<Box<AccessRecord>>,
    copies: &'c mut Option<Box<Copies>>,
}

impl Exchange {
    /// Starts an exchange whose request head, and what has arrived of its `body`, is marked
    /// sendable.
    pub(crate) fn new(
        head: &Head,
        body: Body,
        upstream: Upstream,
        relays: bool,
        offer: Option<Box<Offer>>,
        started: Instant,
    ) -> Self {
        Self {
            upstream,
            may_relay: relays && upstream == Upstream::App,
            method: head.method(),
            started,
            request: body,
            refused: None,
            forwarded: None,
            awaits_continue: head.expects_continue,
            persists: head.persists(),
            answer: ResponseSide::Head(Parser::new(Kind::Response)),
            offer,
            answered: false,
            upstream_took: None,
            heads: (head.len as u32, 0),
            closing: false,
            caller_reset: None,
        }
    }

    pub(crate) fn poll(&mut self, c: &mut Connection, cx: &mut Context<'_>) -> Poll<Outcome> {
        let Connection {
            context,
            down,
            app,
            workstations,
            request,
            answer,
            caller_done,
            end_passed,
            record,
            copies,
            ..
        } = c;
        let up = match self.upstream {
            Upstream::App => match ready!(app.poll_conn(cx)) {
                Ok(conn) => conn,
                Err(ended) => return Poll::Ready(Outcome::End(ended)),
            },
            Upstream::Tunnel(at) => workstations.at(at),
        };
        let mut ends = Ends {
            context,
            down,
            up,
            request,
            answer,
            caller_done,
            end_passed,
            record,
            copies,
        };
        let outcome = match self.poll_request(&mut ends, cx) {
            Some(outcome) => Poll::Ready(outcome),
            None => self.poll_answer(&mut ends, cx),
        };
        let metrics = &context.port.metrics;
        let received = ends.request.take_written(metrics);
        let sent = ends.answer.take_written(metrics);
        if received > 0 {
            metrics.bytes_in.add(received);
        }
        if sent > 0 {
            metrics.bytes_out.add(sent);
        }
        if let Some(record) = ends.record {
            self.count_bodies(record, received, sent);
        }
        if let Poll::Ready(Outcome::End(ended)) = outcome {
            match ended {
                Ended::CallerReset | Ended::CallerLeft | Ended::Malformed => ends.up.abort(),
                Ended::TunnelLost => context.port.metrics.tunnel_failures.inc(),
                Ended::AppRefused | Ended::TimedOut(_) => {
                    context.port.metrics.app_connect_failures.inc()
                }
                _ => {}
            }
        }
        outcome
    }

    /// Advances the request; returns an outcome only if it ends the exchange.
    fn poll_request(&mut self, ends: &mut Ends<'_, '_>, cx: &mut Context<'_>) -> Option<Outcome> {
        loop {
            if self.refused.is_none() && !ends.request.is_written() {
                match ends.request.poll_write(ends.up, cx) {
                    Poll::Pending => return None,
                    Poll::Ready(Ok(())) => self.record_forwarded(ends),
                    Poll::Ready(Err(e)) => {
                        let ended = ended_by_app(&e);
                        // The connect was refused or timed out, so no response can come.
                        if self.upstream == Upstream::App && ended != Ended::AppReset {
                            return Some(Outcome::End(ended));
                        }
                        // The peer may have answered before it stopped reading, such as with 413:
                        // its response still counts.
                        self.refused = Some(e.kind());
                    }
                }
            }
            if self.refused.is_some() || self.request.is_done() {
                // Everything of the request is sent; from here on only a leaving caller matters.
                return self.watch_caller(ends, cx);
            }
            if !ends.request.buf.is_empty() {
                if ends.request.mark_sendable(&mut self.request).is_err() {
                    return Some(self.unclear_request());
                }
                copies::follow(ends.copies, ends.request, &self.request);
                continue;
            }
            let read = if ends.copies.is_none() {
                let (from, to) = (&mut *ends.down, &*ends.up);
                ends.request.poll_read_body(from, to, &mut self.request, cx)
            } else {
                // What is spliced cannot be copied.
                let ahead = self.request.plain_ahead();
                ends.request.poll_read(ends.down, ahead, cx)
            };
            match read {
                Poll::Pending => return None,
                Poll::Ready(Ok(0)) => return Some(self.caller_left()),
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(_)) => return Some(Outcome::End(Ended::CallerReset)),
            }
        }
    }

    /// Counts body bytes for the access record: head bytes are subtracted from what was written.
    fn count_bodies(&mut self, record: &mut AccessRecord, received: u64, sent: u64) {
        let without = |head: &mut u32, n: u64| {
            let of_head = n.min((*head).into());
            // Not more than there was.
            *head -= of_head as u32;
            n - of_head
        };
        let received = without(&mut self.heads.0, received);
        let sent = without(&mut self.heads.1, sent);
        record.moved(received, sent);
    }

    fn record_forwarded(&mut self, ends: &Ends<'_, '_>) {
        if self.forwarded.is_none() {
            let took = self.started.elapsed();
            self.forwarded = Some(took);
            ends.context.port.metrics.own_time.observe(took);
        }
    }

    /// Watches the caller while the response is awaited. A half-close is passed on to the app, but
    /// not to a workstation, because stock ones close their whole connection on it and the response
    /// would be lost. Pipelined bytes wait, as many as a buffer holds, and do not hide what is
    /// behind them.
    fn watch_caller(&mut self, ends: &mut Ends<'_, '_>, cx: &mut Context<'_>) -> Option<Outcome> {
        if *ends.caller_done || self.refused.is_some() {
            return None;
        }
        while !ends.request.buf.is_full() {
            match ends.request.poll_read(ends.down, 0, cx) {
                Poll::Ready(Ok(0)) => {
                    *ends.caller_done = true;
                    if self.upstream == Upstream::App && ends.request.buf.is_empty() {
                        *ends.end_passed = true;
                        let _ = Pin::new(&mut *ends.up).poll_shutdown(cx);
                    }
                    return None;
                }
                Poll::Ready(Err(_)) => return Some(Outcome::End(Ended::CallerReset)),
                Poll::Ready(Ok(_)) => {}
                Poll::Pending => return None,
            }
        }
        let reset = match ends.down.as_tcp() {
            Some(socket) => {
                let watch = self.caller_reset.get_or_insert_default();
                watch.poll_broken(socket, cx)
            }
            None => Poll::Pending,
        };
        reset.is_ready().then_some(Outcome::End(Ended::CallerReset))
    }

    /// Handles a request body whose framing breaks: the app judges the rest; a workstation must not
    /// see it.
    fn unclear_request(&self) -> Outcome {
        if self.may_relay {
            Outcome::Relay(Some(OpaqueReason::Ambiguous))
        } else {
            Outcome::End(Ended::Malformed)
        }
    }

    fn caller_left(&self) -> Outcome {
        if self.may_relay {
            Outcome::Relay(None)
        } else {
            Outcome::End(Ended::CallerLeft)
        }
    }

    /// The offer that the app has agreed to.
    pub(crate) fn into_offer(self) -> Option<Box<Offer>> {
        self.offer
    }

    /// Returns true if both sides mean to keep the connection behind this exchange.
    pub(crate) fn persists(&self) -> bool {
        self.persists
    }
}
