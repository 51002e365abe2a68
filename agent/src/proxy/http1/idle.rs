//! Waits between two exchanges for the next head while watching the app connection and the tunnels,
//! so that their closing acts as it would without an agent.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::io::AsyncWrite;
use tokio::time::Sleep;
use tokio_util::sync::WaitForCancellationFuture;

use crate::drain::Drain;
use crate::outcome::Ended;
use crate::proxy::http1::connection::{Connection, HEAD_TIMEOUT};
use crate::telemetry::metrics::{Limit, OpaqueReason};
use crate::upstream::app::ended_by_app;
use traffic_core::http1::head::{Head, Kind, MAX_HEAD, Parser, Step};

/// Time for an app to end its side after the last exchange, before it is given what came behind it.
const CLOSING_TIMEOUT: Duration = Duration::from_millis(500);
/// Time an idle connection stays open after the drain began.
const IDLE_DRAIN_GRACE: Duration = Duration::from_secs(1);

/// Next event on an idle connection.
#[derive(Debug)]
pub(crate) enum NextHead {
    /// A request, whose head is at the front of the buffer.
    Request(Head),
    /// Bytes only the app can judge.
    Unclear(OpaqueReason),
    /// The connection is over.
    End(Ended),
    /// The app has ended its side, so the caller's is to end alike.
    AppEnded,
}

/// Timers and registrations of one wait.
pub(crate) struct Idle<'d> {
    parser: Parser,
    /// Runs while a head is incomplete.
    deadline: Option<Pin<Box<Sleep>>>,
    /// Runs while bytes behind the last exchange are held back.
    closing: Option<Pin<Box<Sleep>>>,
    drain: &'d Drain,
    draining: Option<Pin<Box<WaitForCancellationFuture<'d>>>>,
    /// The task whose waker is registered for the start of the drain.
    drain_waker: Option<Waker>,
    /// Runs once the drain began: a request already on its way is still answered.
    drain_delay: Option<Pin<Box<Sleep>>>,
}

impl<'d> Idle<'d> {
    pub(crate) fn new(drain: &'d Drain) -> Self {
        let parser = Parser::new(Kind::Request);
        Self {
            parser,
            deadline: None,
            closing: None,
            drain,
            draining: None,
            drain_waker: None,
            drain_delay: None,
        }
    }

    pub(crate) fn poll_next(&mut self, c: &mut Connection, cx: &mut Context<'_>) -> Poll<NextHead> {
        // The app has ended after its last response, so no further request is read.
        if c.answer.has_ended()
            && c.request.buf.is_empty()
            && let Some(next) = watch_app(c, cx)
        {
            return Poll::Ready(next);
        }
        if let Some(next) = self.read_head(c, cx) {
            self.parser = Parser::of_next_request();
            self.deadline = None;
            return Poll::Ready(next);
        }
        if let Some(next) = watch_app(c, cx) {
            return Poll::Ready(next);
        }
        c.workstations.drop_ended(cx);
        if c.request.buf.is_empty() {
            return self.poll_draining(cx).map(|()| NextHead::End(Ended::Clean));
        }
        let deadline = self
            .deadline
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(HEAD_TIMEOUT)));
        ready!(deadline.as_mut().poll(cx));
        ready!(self.poll_pass_empty_lines(c, cx));
        c.context.port.metrics.limits.at(Limit::HeadTime).inc();
        Poll::Ready(NextHead::Unclear(OpaqueReason::Undecided))
    }

    fn read_head(&mut self, c: &mut Connection, cx: &mut Context<'_>) -> Option<NextHead> {
        loop {
            if c.is_last && !c.request.buf.is_empty() {
                // An app that closes just then would answer them with a reset.
                if c.previous_was_app && self.poll_closing(cx).is_pending() {
                    return watch_app(c, cx);
                }
                return Some(NextHead::Unclear(OpaqueReason::Closing));
            }
            match self.poll_buffered(c, cx) {
                Poll::Ready(None) => {}
                Poll::Ready(next) => return next,
                Poll::Pending => return None,
            }
            // Nothing more can be read; only the app's end is awaited.
            if c.caller_done {
                return pass_end(c, cx);
            }
            match c.request.poll_read(&mut c.down, 0, cx) {
                Poll::Ready(Ok(0)) => c.caller_done = true,
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(_)) => {
                    c.app.abort();
                    return Some(NextHead::End(Ended::CallerReset));
                }
                Poll::Pending => return None,
            }
        }
    }

    /// Looks at what has been read; `None` if it is no whole head yet, pending while empty lines
    /// wait for room.
    fn poll_buffered(
        &mut self,
        c: &mut Connection,
        cx: &mut Context<'_>,
    ) -> Poll<Option<NextHead>> {
        // Those with a request behind them wait for it: where both go to the same server, one
        // packet has to stay one.
        if !c.request.is_written() || empty_lines(c) == c.request.buf.len() {
            ready!(self.poll_pass_empty_lines(c, cx));
        }
        if c.request.buf.is_empty() {
            return Poll::Ready(None);
        }
        match self.parser.parse(c.request.buf.unread()) {
            Ok(Step::Complete(head)) if head.empty_lines() > 0 && !c.follows_previous(&head) => {
                ready!(self.poll_pass_empty_lines(c, cx));
                self.poll_buffered(c, cx)
            }
            Ok(Step::Complete(head)) => Poll::Ready(Some(NextHead::Request(head))),
            Ok(Step::More) => {
                if c.request.buf.is_full() {
                    c.request.buf.grow(MAX_HEAD);
                }
                Poll::Ready(None)
            }
            Err(why) => {
                ready!(self.poll_pass_empty_lines(c, cx));
                let reason = OpaqueReason::from(why);
                if reason == OpaqueReason::OversizedHead {
                    c.context.port.metrics.limits.at(Limit::HeadBytes).inc();
                }
                Poll::Ready(Some(NextHead::Unclear(reason)))
            }
        }
    }

    fn poll_closing(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let closing = self
            .closing
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(CLOSING_TIMEOUT)));
        closing.as_mut().poll(cx)
    }

    /// Passes empty lines behind a message to where that message went, as they would go without the
    /// agent; who has gone meanwhile misses nothing. The first request's own go with it.
    fn poll_pass_empty_lines(&mut self, c: &mut Connection, cx: &mut Context<'_>) -> Poll<()> {
        if c.request.is_written() {
            c.request.mark_len_sendable(empty_lines(c));
        }
        if c.request.is_written() {
            return Poll::Ready(());
        }
        let up = match &c.previous_intercept {
            Some(intercept) => {
                let at = c.workstations.find(intercept);
                at.map(|at| c.workstations.at(at))
            }
            None if c.previous_was_app => c.app.up(),
            None => {
                c.request.unmark_sendable();
                return Poll::Ready(());
            }
        };
        match up.map(|up| c.request.poll_write(up, cx)) {
            Some(Poll::Pending) => return Poll::Pending,
            Some(Poll::Ready(Ok(()))) => {}
            Some(Poll::Ready(Err(_))) | None => c.request.discard_sendable(),
        }
        self.parser = Parser::of_next_request();
        Poll::Ready(())
    }

    /// Ready once the drain began and no request came for a while; such a request would have been
    /// told that its response is the last one. Registration takes locks, so it happens once for
    /// each task.
    fn poll_draining(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.drain.is_draining() {
            let drain_delay = self
                .drain_delay
                .get_or_insert_with(|| Box::pin(tokio::time::sleep(IDLE_DRAIN_GRACE)));
            return drain_delay.as_mut().poll(cx);
        }
        if self
            .drain_waker
            .as_ref()
            .is_some_and(|waker| waker.will_wake(cx.waker()))
        {
            return Poll::Pending;
        }
        self.drain_waker = Some(cx.waker().clone());
        let drain = self.drain;
        match self
            .draining
            .get_or_insert_with(|| Box::pin(drain.draining()))
            .as_mut()
            .poll(cx)
        {
            Poll::Ready(()) => self.poll_draining(cx),
            Poll::Pending => Poll::Pending,
        }
    }
}

/// Length of the empty lines at the front of what the caller sent.
fn empty_lines(c: &Connection) -> usize {
    let lines = c.request.buf.unread().chunks_exact(2);
    2 * lines.take_while(|line| line == b"\r\n").count()
}

/// Handles a caller that ended its side: the app is told once, and the connection is over once the
/// app ends its own.
fn pass_end(c: &mut Connection, cx: &mut Context<'_>) -> Option<NextHead> {
    if !c.request.buf.is_empty() {
        return Some(NextHead::Unclear(OpaqueReason::Ambiguous));
    }
    if c.end_passed {
        return None;
    }
    c.end_passed = true;
    match c.app.up() {
        Some(app) if !c.stale_app => {
            // Where TLS has to wait for room, its closing alert is given up; the socket's end
            // follows anyway.
            let _ = Pin::new(app).poll_shutdown(cx);
            None
        }
        _ => Some(NextHead::End(Ended::Clean)),
    }
}

/// Watches the app while no request to it is under way.
fn watch_app(c: &mut Connection, cx: &mut Context<'_>) -> Option<NextHead> {
    if c.stale_app {
        drop_closed_app(c, cx);
        return c.caller_done.then_some(NextHead::End(Ended::Clean));
    }
    if c.app.is_idle() || c.app.has_failed() {
        return c.caller_done.then_some(NextHead::End(Ended::Clean));
    }
    let failure = match c.app.poll_conn(cx) {
        Poll::Pending => return None,
        Poll::Ready(Err(ended)) => ended,
        // Bytes beyond the response were read together with it.
        Poll::Ready(Ok(_)) if !c.answer.buf.is_empty() => {
            return Some(NextHead::Unclear(OpaqueReason::Ambiguous));
        }
        Poll::Ready(Ok(conn)) => {
            let read = match c.answer.take_end() {
                Some(end) => Poll::Ready(end.map(|()| 0)),
                None => c.answer.poll_read(conn, 0, cx),
            };
            match read {
                Poll::Pending => return None,
                Poll::Ready(Ok(0)) => return Some(NextHead::AppEnded),
                // An unsolicited response, such as the 408 of a timeout.
                Poll::Ready(Ok(_)) => return Some(NextHead::Unclear(OpaqueReason::Ambiguous)),
                Poll::Ready(Err(e)) => ended_by_app(&e),
            }
        }
    };
    // A reset reaches the caller at once, as it would without an agent.
    if failure == Ended::AppReset {
        return Some(NextHead::End(failure));
    }
    c.app.fail(failure);
    // With rules in force, the next request may still be a workstation's.
    c.context
        .port
        .routes
        .load()
        .is_empty()
        .then_some(NextHead::End(failure))
}

/// Drops an app connection that ended, or sends unsolicited bytes, while a workstation served the
/// caller.
pub(crate) fn drop_closed_app(c: &mut Connection, cx: &mut Context<'_>) {
    let Some(conn) = c.app.up() else { return };
    if c.answer.poll_read(conn, 0, cx).is_ready() {
        // Unsolicited bytes of a stale connection must not become part of the next response.
        c.answer.buf.consume(usize::MAX);
        c.app.give_up();
    }
}
