//! One request and its answer. Both directions flow at once, so early answers, interim answers and
//! streaming in either direction work; the exchange is over when both messages are complete.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::AsyncWrite;
use tokio::time::{Instant, Sleep};

use crate::io::conn::Conn;
use crate::outcome::Ended;
use crate::proxy::context::ConnContext;
use crate::proxy::http1::connection::{Connection, Upstream};
use crate::telemetry::access_log::record::AccessRecord;
use crate::telemetry::metrics::{Class, OpaqueReason};
use crate::upstream::app::ended_by_app;
use traffic_core::http1::body::Body;
use traffic_core::http1::head::{Head, Kind, MAX_HEAD, Method, Parser, Step};

/// How long an answer may take until the runtime is told of a new caller's socket, so that a caller
/// that leaves meanwhile is noticed. Most answers come sooner.
const UNWATCHED_TIMEOUT: Duration = Duration::from_millis(10);

/// What becomes of the connection after an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The next request may come.
    Next,
    /// The connection is over.
    End(Ended),
    /// The answer was the last one; the caller is to be closed gently.
    Close,
    /// The rest is relayed to this exchange's upstream, unread.
    Relay(Option<OpaqueReason>),
}

/// The exchange under way.
pub(crate) struct Exchange {
    upstream: Upstream,
    /// The rest of the connection may be relayed unread where it becomes unclear: it is the app's,
    /// and no caller could tell the app anything that the port has to keep from it.
    may_relay: bool,
    method: Method,
    started: Instant,
    request: Body,
    /// The upstream takes no more of the request; what it has to say is in its answer.
    refused: bool,
    /// The agent's own time, until the request's first bytes had been written.
    forwarded: Option<Duration>,
    /// A final answer now leaves it open whether the announced body will follow.
    awaits_continue: bool,
    /// Both sides mean to keep the connection.
    persists: bool,
    answer: ResponseSide,
    answered: bool,
    /// From then on until the first byte of the answer.
    upstream_took: Option<Duration>,
    /// Bytes of the request's and of the answer's heads that have not been written yet.
    heads: (u64, u64),
    /// The caller has been told that this answer is the last one.
    closing: bool,
    /// Runs while nobody watches the caller.
    unwatched: Option<Pin<Box<Sleep>>>,
}

enum ResponseSide {
    /// A head is awaited.
    Head(Parser),
    /// The final head has passed.
    Body(Body),
    /// Of a workstation, and unclear: everything is passed on, and no other exchange follows.
    Unclear,
}

/// The ends and buffers that an exchange works on.
struct Ends<'c, 'l> {
    lane: &'l ConnContext,
    down: &'c mut Conn,
    up: &'c mut Conn,
    request: &'c mut super::pipe::Pipe,
    answer: &'c mut super::pipe::Pipe,
    caller_done: &'c mut bool,
    notes: &'c mut Option<Box<AccessRecord>>,
}

impl Exchange {
    /// An exchange whose request head, and what was there of its `body`, has been cleared.
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
            refused: false,
            forwarded: None,
            awaits_continue: head.expects_continue,
            persists: head.persists(),
            answer: ResponseSide::Head(Parser::new(Kind::Response)),
            answered: false,
            upstream_took: None,
            heads: (head.len as u64, 0),
            closing: false,
            unwatched: None,
        }
    }

    pub(crate) fn poll(&mut self, c: &mut Connection, cx: &mut Context<'_>) -> Poll<Outcome> {
        let Connection {
            lane,
            down,
            app,
            workstations,
            request,
            answer,
            caller_done,
            notes,
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
            lane,
            down,
            up,
            request,
            answer,
            caller_done,
            notes,
        };
        let outcome = match self.poll_request(&mut ends, cx) {
            Some(outcome) => Poll::Ready(outcome),
            None => self.poll_answer(&mut ends, cx),
        };
        let metrics = &lane.port.metrics;
        let received = ends.request.take_written(metrics);
        let sent = ends.answer.take_written(metrics);
        if received > 0 {
            metrics.bytes_in.add(received);
        }
        if sent > 0 {
            metrics.bytes_out.add(sent);
        }
        if let Some(notes) = ends.notes {
            self.note_bodies(notes, received, sent);
        }
        if let Poll::Ready(Outcome::End(ended)) = outcome {
            match ended {
                Ended::CallerReset | Ended::CallerLeft | Ended::Malformed => ends.up.abort(),
                Ended::TunnelLost => lane.port.metrics.tunnel_failures.inc(),
                Ended::AppRefused | Ended::TimedOut(_) => {
                    lane.port.metrics.app_connect_failures.inc()
                }
                _ => {}
            }
        }
        outcome
    }

    /// Moves the request on; an outcome only where it ends the exchange.
    fn poll_request(&mut self, ends: &mut Ends<'_, '_>, cx: &mut Context<'_>) -> Option<Outcome> {
        loop {
            if !self.refused && !ends.request.is_written() {
                match ends.request.poll_write(ends.up, cx) {
                    Poll::Pending => return None,
                    Poll::Ready(Ok(())) => self.note_forwarded(ends),
                    Poll::Ready(Err(e)) => {
                        let ended = ended_by_app(&e);
                        if self.upstream == Upstream::App && ended != Ended::AppReset {
                            return Some(Outcome::End(ended));
                        }
                        self.refused = true;
                    }
                }
            }
            if self.refused || self.request.is_done() {
                return self.watch_caller(ends, cx);
            }
            if !ends.request.buf.is_empty() {
                if ends.request.clear(&mut self.request).is_err() {
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

    /// Heads are no bodies: what is left of them is taken off what was written.
    fn note_bodies(&mut self, notes: &mut AccessRecord, received: u64, sent: u64) {
        let without = |head: &mut u64, n: u64| {
            let of_head = n.min(*head);
            *head -= of_head;
            n - of_head
        };
        let received = without(&mut self.heads.0, received);
        let sent = without(&mut self.heads.1, sent);
        notes.moved(received, sent);
    }

    fn note_forwarded(&mut self, ends: &Ends<'_, '_>) {
        if self.forwarded.is_none() {
            let took = self.started.elapsed();
            self.forwarded = Some(took);
            ends.lane.port.metrics.own_time.observe(took);
        }
    }

    /// While the answer is awaited: a caller that ends its side is passed on to the app. A
    /// workstation is not told, because stock ones close their whole connection on it and the
    /// answer would be lost. Pipelined bytes wait.
    fn watch_caller(&mut self, ends: &mut Ends<'_, '_>, cx: &mut Context<'_>) -> Option<Outcome> {
        if *ends.caller_done || !ends.request.buf.is_empty() {
            return None;
        }
        if ends.down.is_new() {
            let unwatched = self
                .unwatched
                .get_or_insert_with(|| Box::pin(tokio::time::sleep(UNWATCHED_TIMEOUT)));
            if unwatched.as_mut().poll(cx).is_pending() {
                return None;
            }
        }
        match ends.request.poll_read(ends.down, 0, cx) {
            Poll::Ready(Ok(0)) => {
                *ends.caller_done = true;
                if self.upstream == Upstream::App && !self.refused {
                    let _ = Pin::new(&mut *ends.up).poll_shutdown(cx);
                }
                None
            }
            Poll::Ready(Err(_)) => Some(Outcome::End(Ended::CallerReset)),
            Poll::Ready(Ok(_)) | Poll::Pending => None,
        }
    }

    /// A body whose framing breaks off: the app is the judge of the rest; a workstation must not
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

    /// Moves the answer on, and decides when the exchange is over.
    fn poll_answer(&mut self, ends: &mut Ends<'_, '_>, cx: &mut Context<'_>) -> Poll<Outcome> {
        loop {
            if self.is_last_of(ends) {
                ends.answer.look_for_end(ends.up);
            }
            if !ends.answer.is_written() && ready!(ends.answer.poll_write(ends.down, cx)).is_err() {
                return Poll::Ready(Outcome::End(Ended::CallerReset));
            }
            if matches!(&self.answer, ResponseSide::Body(body) if body.is_done()) {
                return self.poll_over(ends, cx);
            }
            if !ends.answer.buf.is_empty() {
                match self.follow_answer(ends) {
                    Follow::Cleared => continue,
                    Follow::More => {}
                    Follow::Over(outcome) => return Poll::Ready(outcome),
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
                Ok(0) => return Poll::Ready(self.upstream_ended()),
                Ok(_) => self.note_answered(ends),
                Err(e) => return Poll::Ready(self.upstream_failed(&e)),
            }
        }
    }

    /// Whether the rest of an answer is about to be written after which the app closes.
    fn is_last_of(&self, ends: &Ends<'_, '_>) -> bool {
        !self.persists
            && self.may_relay
            && matches!(self.answer, ResponseSide::Body(Body::Done))
            && !ends.answer.is_written()
            && self.request.is_done()
            && ends.request.is_written()
            && ends.request.buf.is_empty()
    }

    fn note_answered(&mut self, ends: &Ends<'_, '_>) {
        if !self.answered {
            self.answered = true;
            let took = self
                .started
                .elapsed()
                .saturating_sub(self.forwarded.unwrap_or_default());
            self.upstream_took = Some(took);
            ends.lane.port.metrics.upstream_time.observe(took);
        }
    }

    /// Clears what can be cleared of the bytes that are there.
    fn follow_answer(&mut self, ends: &mut Ends<'_, '_>) -> Follow {
        match &mut self.answer {
            ResponseSide::Head(parser) => match parser.parse(ends.answer.buf.unread()) {
                Ok(Step::More) => {
                    if ends.answer.buf.is_full() {
                        ends.answer.buf.grow(MAX_HEAD);
                    }
                    Follow::More
                }
                Ok(Step::Complete(head)) => self.take_head(&head, ends),
                Err(why) => self.unclear_answer(why.into(), ends),
            },
            ResponseSide::Body(body) => match ends.answer.clear(body) {
                Ok(()) => Follow::Cleared,
                Err(_) => self.unclear_answer(OpaqueReason::Ambiguous, ends),
            },
            ResponseSide::Unclear => {
                ends.answer.clear_all();
                Follow::Cleared
            }
        }
    }

    fn take_head(&mut self, head: &Head, ends: &mut Ends<'_, '_>) -> Follow {
        let status = head.status();
        ends.lane.port.metrics.responses.at(Class::of(status)).inc();
        let tunnel = self.method == Method::Connect && status / 100 == 2;
        let len = if status / 100 == 1 && status != 101 {
            head.len
        } else {
            self.note_head(head, ends, tunnel)
        };
        self.heads.1 += len as u64;
        if status == 101 || tunnel {
            return Follow::Over(Outcome::Relay(Some(OpaqueReason::Upgraded)));
        }
        let mut body = if status / 100 == 1 {
            Body::Done
        } else {
            Body::of_response(head, self.method)
        };
        if status / 100 == 1 {
            self.awaits_continue &= status != 100;
            self.answer = ResponseSide::Head(Parser::new(Kind::Response));
            return match ends.answer.clear_head(len, &mut body) {
                Ok(()) => Follow::Cleared,
                Err(_) => self.unclear_answer(OpaqueReason::Ambiguous, ends),
            };
        }
        self.persists &= head.persists();
        if self.awaits_continue && !self.request.is_done() {
            // Whether the announced body follows, or the next request, is between the caller and
            // the app.
            if self.may_relay {
                return Follow::Over(Outcome::Relay(Some(OpaqueReason::Ambiguous)));
            }
            self.persists = false;
        }
        if body == Body::UntilClose {
            if self.may_relay {
                return Follow::Over(Outcome::Relay(None));
            }
            self.persists = false;
        }
        if ends.answer.clear_head(len, &mut body).is_err() {
            return self.unclear_answer(OpaqueReason::Ambiguous, ends);
        }
        self.answer = ResponseSide::Body(body);
        Follow::Cleared
    }

    /// AccessRecord the final head, and puts in what the caller asked for: why the request went where it
    /// went. While the agent drains, `Connection: close` asks the caller to take its next request
    /// elsewhere (RFC 9112 section 9.6). Everything else passes as it came. Answers the head's
    /// length.
    fn note_head(&mut self, head: &Head, ends: &mut Ends<'_, '_>, tunnel: bool) -> usize {
        let mut lines = String::new();
        if let Some(notes) = ends.notes {
            notes.answered(head.status(), self.upstream_took);
            lines.extend(notes.explained_line());
        }
        if !tunnel
            && head.status() != 101
            && self.persists
            && head.persists()
            && ends.lane.port.drain.is_draining()
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
            .map_or(0, |at| at + 1);
        ends.answer.buf.insert(first_line, lines.as_bytes());
        head.len + lines.len()
    }

    /// The caller is the judge of an unclear answer, as it would be without an agent.
    fn unclear_answer(&mut self, reason: OpaqueReason, ends: &mut Ends<'_, '_>) -> Follow {
        if self.may_relay {
            return Follow::Over(Outcome::Relay(Some(reason)));
        }
        self.persists = false;
        self.answer = ResponseSide::Unclear;
        ends.answer.clear_all();
        Follow::Cleared
    }

    /// An unclear answer has no end of its own. A caller that asks again has seen one.
    fn answer_is_stuck(&self, ends: &Ends<'_, '_>) -> bool {
        matches!(self.answer, ResponseSide::Unclear)
            && self.request.is_done()
            && !ends.request.buf.is_empty()
    }

    /// The answer is complete. The request may not be: then it goes on, as long as the upstream
    /// listens.
    fn poll_over(&mut self, ends: &mut Ends<'_, '_>, cx: &mut Context<'_>) -> Poll<Outcome> {
        let complete = self.request.is_done() && ends.request.is_written();
        if self.refused {
            return Poll::Ready(Outcome::Close);
        }
        if complete {
            // The app ends its own connection where it means to.
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

    /// The upstream ended its side before the answer was complete.
    fn upstream_ended(&self) -> Outcome {
        match (&self.answer, self.upstream) {
            _ if self.may_relay => Outcome::Relay(None),
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

/// What following the answer came to.
enum Follow {
    /// Something can be written.
    Cleared,
    /// More has to be read first.
    More,
    /// The exchange is over.
    Over(Outcome),
}
