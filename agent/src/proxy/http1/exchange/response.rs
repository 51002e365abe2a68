//! The response of an exchange: reads, parses and passes it on, and tells how the exchange ends.

use std::io;
use std::task::{Context, Poll, ready};

use crate::io::conn::Io as _;
use crate::outcome::Ended;
use crate::proxy::http1::connection::Upstream;
use crate::proxy::http1::exchange::{Ends, Exchange, Outcome, ResponseSide};
use crate::telemetry::metrics::{Class, OpaqueReason};
use crate::upstream::app::ended_by_app;
use traffic_core::http1::body::Body;
use traffic_core::http1::h2c;
use traffic_core::http1::head::{Head, Kind, MAX_HEAD, Method, Parser, Step};

/// Result of parsing response bytes.
enum Parsed {
    /// Some bytes can be written.
    Sendable,
    /// More bytes have to be read first.
    More,
    /// The exchange is over.
    Over(Outcome),
}

impl Exchange {
    /// Advances the response and decides when the exchange is over.
    pub(super) fn poll_answer(
        &mut self,
        ends: &mut Ends<'_, '_>,
        cx: &mut Context<'_>,
    ) -> Poll<Outcome> {
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
            if matches!(self.answer, ResponseSide::Http2) {
                return self.poll_switch(ends);
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
                ResponseSide::Head(_) | ResponseSide::Http2 | ResponseSide::Unclear => {
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
            ResponseSide::Http2 => Parsed::More,
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
        if self.offer.is_some() && h2c::is_accepted(head, ends.answer.buf.unread()) {
            self.heads.1 = self.heads.1.saturating_add(head.len as u32);
            self.answer = ResponseSide::Http2;
            ends.answer.mark_len_sendable(head.len);
            return Parsed::Sendable;
        }
        // RFC 9110 section 9.3.6: a 2xx response to CONNECT turns the connection into a tunnel.
        let tunnel = self.method == Method::Connect && status / 100 == 2;
        // Interim responses pass unchanged; only the final head may get lines inserted.
        let len = if status / 100 == 1 && status != 101 {
            head.len
        } else {
            self.finish_head(head, ends, tunnel)
        };
        self.heads.1 = self.heads.1.saturating_add(len as u32);
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

    /// Hands the connection on to HTTP/2 once the request is complete.
    fn poll_switch(&mut self, ends: &Ends<'_, '_>) -> Poll<Outcome> {
        if self.refused.is_some() {
            return Poll::Ready(Outcome::Close);
        }
        if !self.request.is_done() || !ends.request.is_written() {
            // It wakes the task by itself.
            return Poll::Pending;
        }
        Poll::Ready(Outcome::Http2)
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

    fn upstream_failed(&self, error: &io::Error) -> Outcome {
        Outcome::End(match self.upstream {
            Upstream::App => ended_by_app(error),
            Upstream::Tunnel(_) => Ended::TunnelLost,
        })
    }
}
