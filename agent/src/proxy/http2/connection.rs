//! Moves bytes for a router: between the caller, the app and tunnels, in one task. The app's side
//! is asked first, then the tunnels, then the caller, so that what a wake-up brought in leaves in
//! the same turn.

use std::future::{Future as _, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::{Sleep, sleep, sleep_until, timeout};

use crate::io::buffers::Buf;
use crate::io::conn::Conn;
use crate::outcome::Ended;
use crate::proxy::http2::flow::FrameFlow;
use crate::proxy::http2::streams::Streams;
use crate::proxy::http2::tunnel_io::poll_tunnels;
use crate::telemetry::metrics::{Limit, PortMetrics};
use traffic_core::http2::router::{Fatal, Host as _, Router};

/// Time for an app to greet before the caller is greeted in its place, so that workstations
/// can answer.
const GREETING_TIMEOUT: Duration = Duration::from_secs(1);

/// Time for the caller to close once all is said, so that closing does not turn into a
/// reset that destroys what it has not read yet.
const LINGER_TIMEOUT: Duration = Duration::from_secs(2);

/// Time for a caller that is thrown out to hear why.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);

/// First and longest time between two writes to a caller that has ended its side.
const PROBE_INTERVAL: Duration = Duration::from_millis(50);
const MAX_PROBE_INTERVAL: Duration = Duration::from_secs(15);

/// Outcome of a connection.
enum Done {
    /// Both sides have closed.
    Closed,
    /// The caller knows that it has to leave, and nothing is under way.
    Left,
    /// The caller's socket failed.
    CallerBroke,
    /// The app's socket failed.
    AppBroke,
    /// The router can't go on.
    Fatal(Fatal),
}

/// A caller's connection, the app's, and what is between them.
pub(super) struct Connection {
    down: Conn,
    /// `None` once it is gone while workstations still answer.
    app: Option<Conn>,
    /// Caller to app.
    up: FrameFlow,
    /// App to caller.
    back: FrameFlow,
    router: Router,
    streams: Streams,
    /// The app takes no more bytes.
    app_deaf: bool,
    greeting: Option<Pin<Box<Sleep>>>,
    deadline: Option<(Instant, Pin<Box<Sleep>>)>,
    /// Next look if a caller that has ended its side is still there.
    probe: Option<(Duration, Pin<Box<Sleep>>)>,
}

impl Connection {
    /// A connection whose first bytes, `first` of the caller and `said` of the app, have been read.
    pub(super) fn new(
        down: Conn,
        first: Buf,
        app: Option<Conn>,
        said: Buf,
        mut router: Router,
        streams: Streams,
    ) -> Self {
        let metrics = &streams.context.port.metrics;
        metrics.bytes_in.add(first.len() as u64);
        if app.is_none() {
            router.app_absent();
        }
        let mut connection = Self {
            down,
            app,
            up: FrameFlow::new(first),
            back: FrameFlow::new(said),
            router,
            streams,
            app_deaf: false,
            greeting: None,
            deadline: None,
            probe: None,
        };
        connection.rules_changed();
        connection
    }

    /// Carries the connection to its end. `changes` wakes at every change of rules.
    pub(super) async fn carry(mut self: Box<Self>, mut changes: watch::Receiver<u64>) -> Ended {
        let drain = self.streams.context.port.drain.clone();
        loop {
            let staying = !self.router.is_leaving();
            tokio::select! {
                biased;
                done = poll_fn(|cx| self.poll(cx)) => return self.finish(done).await,
                changed = changes.changed() => match changed {
                    Ok(()) => self.rules_changed(),
                    // The port is gone, and with it all changes.
                    Err(_) => return self.until_done().await,
                },
                () = drain.draining(), if staying => self.router.leave(),
            }
        }
    }

    /// Takes note of other rules. What they mean for the next stream is asked then.
    fn rules_changed(&mut self) {
        self.streams.tunnels.prune(&self.streams.context);
        if self.streams.reads_requests() {
            self.router.guard();
        }
    }

    async fn until_done(mut self: Box<Self>) -> Ended {
        self.router.leave();
        let done = poll_fn(|cx| self.poll(cx)).await;
        self.finish(done).await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Done> {
        loop {
            let now = Instant::now();
            self.router.set_now(now);
            self.streams.read_at = now;
            let mut moved = match self.poll_back(cx) {
                Ok(moved) => moved,
                Err(done) => return Poll::Ready(done),
            };
            // A caller that does not read must not have tunnels fill memory for it.
            self.router.set_caller_stalls(!self.back.out.is_empty());
            moved |= poll_tunnels(&mut self.router, &mut self.streams, cx);
            match self.poll_up(cx) {
                Ok(more) => moved |= more,
                Err(done) => return Poll::Ready(done),
            }
            moved |= self.poll_router(cx);
            if let Some(done) = self.done() {
                return Poll::Ready(done);
            }
            if !moved {
                return Poll::Pending;
            }
        }
    }

    fn metrics(&self) -> &PortMetrics {
        &self.streams.context.port.metrics
    }

    /// App to caller; returns true if something was moved.
    fn poll_back(&mut self, cx: &mut Context<'_>) -> Result<bool, Done> {
        let mut moved = false;
        loop {
            if self.back.unsorted {
                let bytes = self.back.buf.unread();
                let sorted = self
                    .router
                    .app_sent(bytes, &mut self.back.out, &mut self.streams);
                self.back.sorted(sorted);
            }
            self.router.put_to_caller(&mut self.back.out);
            // Nothing may follow the end that the caller has seen.
            if self.back.shut {
                return Ok(moved);
            }
            match self.back.poll_write(&mut self.down, cx) {
                Poll::Pending => return Ok(moved),
                Poll::Ready(Ok(n)) => {
                    moved |= n > 0;
                    self.metrics().bytes_out.add(n);
                }
                Poll::Ready(Err(_)) => return Err(Done::CallerBroke),
            }
            if self.back.ended {
                return self.pass_app_end(cx).map(|ended| ended | moved);
            }
            if self
                .back
                .poll_flush(&mut self.down, cx)
                .map_err(|_| Done::CallerBroke)?
                .is_pending()
                || !self.router.reads_app()
            {
                return Ok(moved);
            }
            let Some(app) = &mut self.app else {
                return Ok(moved);
            };
            match self.back.poll_read(app, cx) {
                Poll::Pending => return Ok(moved),
                Poll::Ready(Ok(_)) => moved = true,
                Poll::Ready(Err(_)) => return self.app_gone(Done::AppBroke).map(|()| true),
            }
        }
    }

    /// The app has ended its side, and all that it said has been passed on.
    fn pass_app_end(&mut self, cx: &mut Context<'_>) -> Result<bool, Done> {
        // It took no more bytes before, so its end is no orderly one.
        if self.app_deaf {
            return self.app_gone(Done::AppBroke).map(|()| true);
        }
        if self.app.is_some() && self.router.has_diverted() && self.app_gone(Done::Closed).is_ok() {
            return Ok(true);
        }
        if self.app.is_none() {
            return Ok(false);
        }
        // From here on the caller can only speak to the app.
        self.streams.closed = true;
        match self.back.poll_shut(&mut self.down, cx) {
            Poll::Pending => Ok(false),
            Poll::Ready(Ok(())) => Ok(true),
            Poll::Ready(Err(_)) => Err(Done::CallerBroke),
        }
    }

    /// The app is gone. Workstations that are asked may still answer.
    fn app_gone(&mut self, done: Done) -> Result<(), Done> {
        if !self.router.has_diverted() || !self.router.app_ended(&mut self.streams) {
            return Err(done);
        }
        self.app = None;
        self.back.ended = false;
        self.up.discard();
        Ok(())
    }

    /// Caller to app; returns true if something was moved.
    fn poll_up(&mut self, cx: &mut Context<'_>) -> Result<bool, Done> {
        let mut moved = false;
        loop {
            if self.up.unsorted {
                let bytes = self.up.buf.unread();
                let sorted = self
                    .router
                    .caller_sent(bytes, &mut self.up.out, &mut self.streams);
                self.up.sorted(sorted);
            }
            self.router.put_to_app(&mut self.up.out);
            match self.poll_write_app(cx) {
                Poll::Pending => return Ok(moved),
                Poll::Ready(n) => moved |= n > 0,
            }
            if self.up.ended {
                return Ok(self.pass_caller_end(cx) | moved);
            }
            if self.app_deaf || !self.router.reads_caller() {
                return Ok(moved);
            }
            match self.up.poll_read(&mut self.down, cx) {
                Poll::Pending => return Ok(moved),
                Poll::Ready(Ok(n)) => {
                    moved = true;
                    self.metrics().bytes_in.add(n as u64);
                }
                Poll::Ready(Err(_)) => return Err(Done::CallerBroke),
            }
        }
    }

    /// Writes and flushes to the app; says how many bytes went. What the app said before it took no
    /// more still belongs to the caller.
    fn poll_write_app(&mut self, cx: &mut Context<'_>) -> Poll<u64> {
        let Some(app) = self.app.as_mut().filter(|_| !self.app_deaf) else {
            self.up.discard();
            return Poll::Ready(0);
        };
        let written = match self.up.poll_write(app, cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(n)) => match self.up.poll_flush(app, cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(flushed) => flushed.map(|()| n),
            },
            Poll::Ready(Err(error)) => Err(error),
        };
        Poll::Ready(written.unwrap_or_else(|_| {
            // Its last words may still be unread, so its socket is not given up.
            self.app_deaf = true;
            self.up.discard();
            0
        }))
    }

    /// The caller has ended its side.
    fn pass_caller_end(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(app) = self.app.as_mut().filter(|_| !self.up.shut) else {
            return false;
        };
        match self.up.poll_shut(app, cx) {
            Poll::Pending => false,
            Poll::Ready(shut) => {
                self.app_deaf |= shut.is_err();
                self.up.shut = true;
                true
            }
        }
    }

    /// Lets the router do what time decides; returns true if there is something to be written.
    fn poll_router(&mut self, cx: &mut Context<'_>) -> bool {
        if self.router.is_out_of_step()
            && !self.router.is_leaving()
            && self.streams.reads_requests()
        {
            self.metrics().http2_goaways.inc();
            self.router.leave();
        }
        self.poll_greeting(cx);
        self.router.advance();
        self.poll_deadline(cx);
        self.poll_probe(cx);
        let before = self.up.out.len() + self.back.out.len();
        self.router.put_to_caller(&mut self.back.out);
        self.router.put_to_app(&mut self.up.out);
        self.up.out.len() + self.back.out.len() > before
    }

    fn poll_greeting(&mut self, cx: &mut Context<'_>) {
        if self.router.is_greeted() {
            self.greeting = None;
            return;
        }
        if !self.streams.reads_requests() {
            return;
        }
        let greeting = self
            .greeting
            .get_or_insert_with(|| Box::pin(sleep(GREETING_TIMEOUT)));
        if greeting.as_mut().poll(cx).is_ready() {
            self.router.greet();
        }
    }

    fn poll_deadline(&mut self, cx: &mut Context<'_>) {
        let Some(at) = self.router.deadline() else {
            self.deadline = None;
            return;
        };
        if self.deadline.as_ref().is_none_or(|(set, _)| *set != at) {
            self.deadline = Some((at, Box::pin(sleep_until(at.into()))));
        }
        if let Some((_, sleep)) = &mut self.deadline
            && sleep.as_mut().poll(cx).is_ready()
        {
            self.router.set_now(Instant::now());
            self.router.advance();
        }
    }

    /// A caller that has ended its side may wait for its answers, or be gone: that shows when it is
    /// written to.
    fn poll_probe(&mut self, cx: &mut Context<'_>) {
        if !self.up.ended || !self.router.has_diverted() {
            return;
        }
        let (wait, sleep) = self
            .probe
            .get_or_insert_with(|| (PROBE_INTERVAL, Box::pin(sleep(Duration::ZERO))));
        if sleep.as_mut().poll(cx).is_ready() {
            sleep.as_mut().reset((Instant::now() + *wait).into());
            *wait = (*wait * 4).min(MAX_PROBE_INTERVAL);
            self.router.probe_caller();
            // The new time has to be waited for.
            let _ = sleep.as_mut().poll(cx);
        }
    }

    /// The end, where it has come.
    fn done(&self) -> Option<Done> {
        if let Some(fatal) = self.router.fatal() {
            return Some(Done::Fatal(fatal));
        }
        // An end that is seen before all is written would cut what is left.
        let quiet = self.up.is_written() && self.back.is_written();
        if quiet && self.router.is_over() {
            return Some(Done::Left);
        }
        if self.app_deaf && self.back.shut {
            return Some(Done::AppBroke);
        }
        let caller_ended = self.up.ended && !self.router.has_diverted();
        let app_ended = self.back.shut || self.app.is_none();
        (caller_ended && app_ended && quiet && (self.up.shut || self.app.is_none()))
            .then_some(Done::Closed)
    }

    async fn finish(mut self: Box<Self>, done: Done) -> Ended {
        self.streams.tunnels.end(&self.router);
        match done {
            Done::Closed => Ended::Clean,
            Done::Left => {
                self.part().await;
                Ended::Clean
            }
            Done::CallerBroke => {
                if let Some(app) = &mut self.app {
                    app.abort();
                }
                Ended::CallerReset
            }
            Done::AppBroke => {
                self.down.abort();
                Ended::AppReset
            }
            Done::Fatal(fatal) => {
                let _ = timeout(FAREWELL_TIMEOUT, poll_fn(|cx| self.poll_farewell(cx))).await;
                self.fatal(fatal)
            }
        }
    }

    /// Closes both sides in order, and waits for the caller to close as well.
    async fn part(&mut self) {
        if let Some(app) = &mut self.app {
            // A side that fails here has left already.
            let _ = poll_fn(|cx| self.up.poll_shut(app, cx)).await;
        }
        let _ = poll_fn(|cx| self.back.poll_shut(&mut self.down, cx)).await;
        let _ = timeout(LINGER_TIMEOUT, poll_fn(|cx| self.poll_until_left(cx))).await;
    }

    /// Reads and forgets what the caller still sends, until it closes.
    fn poll_until_left(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            self.up.buf.consume(usize::MAX);
            match std::task::ready!(self.up.buf.poll_fill(&mut self.down, cx)) {
                Ok(1..) => {}
                _ => return Poll::Ready(()),
            }
        }
    }

    /// Tells a caller that is thrown out why.
    fn poll_farewell(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.router.put_to_caller(&mut self.back.out);
        if std::task::ready!(self.back.poll_write(&mut self.down, cx)).is_err()
            || std::task::ready!(self.back.poll_flush(&mut self.down, cx)).is_err()
        {
            return Poll::Ready(());
        }
        // How that goes is no longer of interest.
        self.back.poll_shut(&mut self.down, cx).map(drop)
    }

    fn fatal(&self, fatal: Fatal) -> Ended {
        let caller = self.streams.context.caller;
        match fatal {
            Fatal::Flood => {
                self.metrics().limits.at(Limit::Http2Flood).inc();
                tracing::info!(%caller, "HTTP/2 flood: connection closed with ENHANCE_YOUR_CALM");
                Ended::Limit
            }
            Fatal::Unclear => {
                tracing::debug!(%caller, "HTTP/2 connection can no longer be understood");
                Ended::Malformed
            }
        }
    }
}
