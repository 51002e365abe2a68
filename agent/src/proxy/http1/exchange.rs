//! One request and its response. Both directions flow at once, so early responses, interim
//! responses and streaming either way work; the exchange is over when both messages are complete.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::AsyncWrite;
use tokio::time::Instant;

use crate::io::conn::{Conn, Io as _};
use crate::io::late_reset::LateReset;
use crate::outcome::Ended;
use crate::proxy::context::ConnContext;
use crate::proxy::http1::connection::{Connection, Upstream};
use crate::telemetry::access_log::record::AccessRecord;
use crate::telemetry::metrics::{Class, OpaqueReason};
use crate::upstream::app::ended_by_app;
use traffic_core::http1::body::Body;
use traffic_core::http1::head::{Head, Kind, MAX_HEAD, Method, Parser, Step};

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
    answered: bool,
    /// Time of the upstream from then to the first byte of the response.
    upstream_took: Option<Duration>,
    /// Head bytes of request and response not written yet; subtracted from the body counts.
    heads: (u64, u64),
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
}

impl Exchange {
    /// Starts an exchange whose request head, and what has arrived of its `body`, is marked
    /// sendable.
    pub(crate) fn new(
        head: &Head,
        body: Body,
        upstream: Upstream,
        relays: bool,
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
            answered: false,
            upstream_took: None,
            heads: (head.len as u64, 0),
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
                continue;
            }
            match ends
                .request
                .poll_read_body(ends.down, ends.up, &mut self.request, cx)
            {
                Poll::Pending => return None,
                Poll::Ready(Ok(0)) => return Some(self.caller_left()),
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(_)) => return Some(Outcome::End(Ended::CallerReset)),
            }
        }
    }

    /// Counts body bytes for the access record: head bytes are subtracted from what was written.
    fn count_bodies(&mut self, record: &mut AccessRecord, received: u64, sent: u64) {
        let without = |head: &mut u64, n: u64| {
            let of_head = n.min(*head);
            *head -= of_head;
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

    /// Advances the response and decides when the exchange is over.
    fn poll_answer(&mut self, ends: &mut Ends<'_, '_>, cx: &mut Context<'_>) -> Poll<Outcome> {
        loop {
            if self.is_last_of(ends) {
                ends.answer.look_for_end(ends.up);
            }
            if !ends.answer.is_written() && ready!(ends.answer.poll_write(ends.down, cx)).is_err() {
                return Poll::Ready(Outcome::End(Ended::CallerReset));
            }
            // Checked after writing, so that the response has reached the caller before the
            // exchange ends.
            if matches!(&self.answer, ResponseSide::Body(body) if body.is_done()) {
                return self.poll_over(ends, cx);
            }
            if !ends.answer.buf.is_empty() {
                match self.parse_response(ends) {
                    Parsed::Sendable => continue,
                    Parsed::More => {}
                    Parsed::Over(outcome) => return Poll::Ready(outcome),
                }
            }
            if self.answer_is_stuck(ends) {
                return Poll::Ready(Outcome::Close);
            }
            let read = match &mut self.answer {
                ResponseSide::Body(body) => {
                    ends.answer.poll_read_body(ends.up, ends.down, body, cx)
                }
                ResponseSide::Head(_) | ResponseSide::Unclear => {
                    ends.answer.poll_read(ends.up, 0, cx)
                }
            };
            match ready!(read) {
                Ok(0) => return Poll::Ready(self.upstream_ended(ends.up.was_cut())),
                Ok(_) => self.record_answered(ends),
                Err(e) => return Poll::Ready(self.upstream_failed(&e)),
            }
        }
    }

    /// Returns true if the bytes about to be written complete a response after which the app
    /// closes.
    fn is_last_of(&self, ends: &Ends<'_, '_>) -> bool {
        !self.persists
            && self.may_relay
            && matches!(self.answer, ResponseSide::Body(Body::Done))
            && !ends.answer.is_written()
            && self.request.is_done()
            && ends.request.is_written()
            && ends.request.buf.is_empty()
    }

    fn record_answered(&mut self, ends: &Ends<'_, '_>) {
        if !self.answered {
            self.answered = true;
            let took = self
                .started
                .elapsed()
                .saturating_sub(self.forwarded.unwrap_or_default());
            self.upstream_took = Some(took);
            ends.context.port.metrics.upstream_time.observe(took);
        }
    }

    /// Parses the response bytes in the buffer and marks what can be sent.
    fn parse_response(&mut self, ends: &mut Ends<'_, '_>) -> Parsed {
        match &mut self.answer {
            ResponseSide::Head(parser) => match parser.parse(ends.answer.buf.unread()) {
                Ok(Step::More) => {
                    // Heads larger than one buffer are rare, so memory grows only for them.
                    if ends.answer.buf.is_full() {
                        ends.answer.buf.grow(MAX_HEAD);
                    }
                    Parsed::More
                }
                Ok(Step::Complete(head)) => self.take_head(&head, ends),
                Err(why) => self.unclear_answer(why.into(), ends),
            },
            ResponseSide::Body(body) => match ends.answer.mark_sendable(body) {
                Ok(()) => Parsed::Sendable,
                Err(_) => self.unclear_answer(OpaqueReason::Ambiguous, ends),
            },
            ResponseSide::Unclear => {
                ends.answer.mark_all_sendable();
                Parsed::Sendable
            }
        }
    }

    fn take_head(&mut self, head: &Head, ends: &mut Ends<'_, '_>) -> Parsed {
        let status = head.status();
        ends.context
            .port
            .metrics
            .responses
            .at(Class::of(status))
            .inc();
        // RFC 9110 section 9.3.6: a 2xx response to CONNECT turns the connection into a tunnel.
        let tunnel = self.method == Method::Connect && status / 100 == 2;
        // Interim responses pass unchanged; only the final head may get lines inserted.
        let len = if status / 100 == 1 && status != 101 {
            head.len
        } else {
            self.finish_head(head, ends, tunnel)
        };
        self.heads.1 += len as u64;
        if status == 101 || tunnel {
            // After the switch the bytes belong to another protocol.
            return Parsed::Over(Outcome::Relay(Some(OpaqueReason::Upgraded)));
        }
        let mut body = if status / 100 == 1 {
            Body::Done
        } else {
            Body::of_response(head, self.method)
        };
        if status / 100 == 1 {
            // The 100 arrived, so the caller sends its body.
            self.awaits_continue &= status != 100;
            self.answer = ResponseSide::Head(Parser::new(Kind::Response));
            return match ends.answer.mark_head_sendable(len, &mut body) {
                Ok(()) => Parsed::Sendable,
                Err(_) => self.unclear_answer(OpaqueReason::Ambiguous, ends),
            };
        }
        self.persists &= head.persists();
        if self.awaits_continue && !self.request.is_done() {
            // Only caller and app can know whether the announced body follows, or the next request.
            if self.may_relay {
                return Parsed::Over(Outcome::Relay(Some(OpaqueReason::Ambiguous)));
            }
            self.persists = false;
        }
        // The end of the connection ends the message, so no further request can follow.
        if body == Body::UntilClose {
            if self.may_relay {
                return Parsed::Over(Outcome::Relay(None));
            }
            self.persists = false;
        }
        if ends.answer.mark_head_sendable(len, &mut body).is_err() {
            return self.unclear_answer(OpaqueReason::Ambiguous, ends);
        }
        self.answer = ResponseSide::Body(body);
        Parsed::Sendable
    }

    /// Records the final head and inserts the explanation header if the caller asked for it. While
    /// draining, `Connection: close` asks the caller to send its next request elsewhere (RFC 9112
    /// section 9.6). All else passes unchanged. Returns the head's length.
    fn finish_head(&mut self, head: &Head, ends: &mut Ends<'_, '_>, tunnel: bool) -> usize {
        let mut lines = String::new();
        if let Some(record) = ends.record {
            record.answered(head.status(), self.upstream_took);
            lines.extend(record.explained_line());
        }
        // `Connection: close` would be wrong on a tunnel or an upgrade, and is not needed if the
        // connection ends anyway.
        if !tunnel
            && head.status() != 101
            && self.persists
            && head.persists()
            && ends.context.port.drain.is_draining()
        {
            lines.push_str("Connection: close\r\n");
            self.closing = true;
        }
        if lines.is_empty() {
            return head.len;
        }
        let first_line = ends
            .answer
            .buf
            .unread()
            .iter()
            .position(|b| *b == b'\n')
            // Inserted after the status line, where any header may stand.
            .map_or(0, |at| at + 1);
        ends.answer.buf.insert(first_line, lines.as_bytes());
        head.len + lines.len()
    }

    /// Passes an ambiguous response on; the caller judges it as it would without an agent.
    fn unclear_answer(&mut self, reason: OpaqueReason, ends: &mut Ends<'_, '_>) -> Parsed {
        if self.may_relay {
            return Parsed::Over(Outcome::Relay(Some(reason)));
        }
        self.persists = false;
        self.answer = ResponseSide::Unclear;
        ends.answer.mark_all_sendable();
        Parsed::Sendable
    }

    /// Detects the end of an ambiguous response, which has none of its own: a caller that sends
    /// another request has seen one.
    fn answer_is_stuck(&self, ends: &Ends<'_, '_>) -> bool {
        matches!(self.answer, ResponseSide::Unclear)
            && self.request.is_done()
            && !ends.request.buf.is_empty()
    }

    /// Finishes after a complete response. An incomplete request continues as long as the upstream
    /// reads.
    fn poll_over(&mut self, ends: &mut Ends<'_, '_>, cx: &mut Context<'_>) -> Poll<Outcome> {
        let complete = self.request.is_done() && ends.request.is_written();
        if self.refused.is_some() {
            return Poll::Ready(Outcome::Close);
        }
        if complete {
            // The app ends its own connection when it wants to.
            let goes_on = !self.closing && (self.persists || self.may_relay);
            return Poll::Ready(if goes_on {
                Outcome::Next
            } else {
                Outcome::Close
            });
        }
        if self.awaits_continue {
            return Poll::Ready(Outcome::Close);
        }
        let ended = ready!(ends.answer.poll_read(ends.up, 0, cx));
        Poll::Ready(match ended {
            Ok(0) if self.may_relay => Outcome::Relay(None),
            Ok(_) if self.may_relay => Outcome::Relay(Some(OpaqueReason::Ambiguous)),
            _ => Outcome::Close,
        })
    }

    /// Outcome if the upstream ended its side before the response was complete, perhaps without the
    /// closing word of TLS.
    fn upstream_ended(&self, was_cut: bool) -> Outcome {
        // Its writes have told of a reset that its reads do not show any more.
        let was_reset = self
            .refused
            .is_some_and(|kind| kind != io::ErrorKind::BrokenPipe);
        match (&self.answer, self.upstream) {
            (_, Upstream::App) if was_reset => Outcome::End(Ended::AppReset),
            _ if self.may_relay => Outcome::Relay(None),
            (_, Upstream::App) if was_cut => Outcome::Cut,
            (ResponseSide::Body(Body::UntilClose) | ResponseSide::Unclear, _) => Outcome::Close,
            (_, Upstream::App) => Outcome::End(Ended::AppReset),
            (_, Upstream::Tunnel(_)) => Outcome::End(Ended::TunnelLost),
        }
    }

    /// Returns true if both sides mean to keep the connection behind this exchange.
    pub(crate) fn persists(&self) -> bool {
        self.persists
    }

    fn upstream_failed(&self, error: &io::Error) -> Outcome {
        Outcome::End(match self.upstream {
            Upstream::App => ended_by_app(error),
            Upstream::Tunnel(_) => Ended::TunnelLost,
        })
    }
}

/// Result of parsing response bytes.
enum Parsed {
    /// Some bytes can be written.
    Sendable,
    /// More bytes have to be read first.
    More,
    /// The exchange is over.
    Over(Outcome),
}
