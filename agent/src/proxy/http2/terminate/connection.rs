//! Terminated mode: a connection is taken apart into its streams, and each goes where the rules of
//! the moment say.
//!
//! One task drives everything: the caller's connection, the app's connection that was opened with
//! it, and one small future for each stream. The app's side is asked first, then the streams, then
//! the caller's side, so that what a wake-up brought in leaves in the same turn and in one write.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::Request;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::io::buffers::Buf;
use crate::io::conn::Conn;
use crate::outcome::{Ended, Stage};
use crate::proxy::context::ConnContext;
use crate::proxy::http2::terminate::budget::Budget;
use crate::proxy::http2::terminate::goaway::{Farewell, Next};
use crate::proxy::http2::terminate::h2_io::{Greeting, InspectedIo, IoState, UNSAID};
use crate::proxy::http2::terminate::stream;
use crate::proxy::http2::terminate::stream::{Ending, Exchange};
use crate::proxy::http2::terminate::upstreams;
use crate::proxy::http2::terminate::upstreams::{
    CONNECTION_WINDOW, HEADER_LIST, SEND_BUFFER, STREAM_WINDOW, UpstreamConn, UpstreamPool,
};
use crate::proxy::http2::terminate::{expired, identity_header, request_view};
use crate::telemetry::metrics::{Limit, Route};
use traffic_core::routing::Decision;

/// How long the app's SETTINGS are waited for before the caller gets ours, which mirror them.
const GREETING_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the caller's preface may take to be complete.
const PREFACE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the app may take to take our farewell.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// Streams of one caller at a time where the app sets no limit.
const STREAMS: u32 = 4096;
/// Streams that may be reset before we have even looked at them.
const UNSEEN_RESETS: usize = 1024;
/// Malformed streams in a connection's life; each costs a reset of ours.
const MALFORMED: usize = 10_000;
/// Requests given up before their answer, beyond those answered, that may come at once: a rapid
/// reset attack makes nothing else.
const GIVEN_UP_MOST: u32 = 5_000;
/// And how many time makes good per second: hedging clients and expired deadlines stay far below.
const GIVEN_UP_PER_SECOND: u32 = 500;

/// Carries a connection stream by stream until the caller leaves, or the app does.
pub(crate) async fn carry(
    mut down: Conn,
    first: Buf,
    app: Conn,
    said: Buf,
    mut changes: watch::Receiver<u64>,
    lane: &ConnContext,
) -> Ended {
    let Ok((primary, driver)) = upstreams::handshake(app, said, STREAM_WINDOW).await else {
        down.abort();
        return Ended::AppReset;
    };
    let signs = primary.signs.clone();
    let mut app = App {
        driver: Some(driver),
        primary: Some(primary),
        signs,
    };
    let greeting = app.greeting().await;
    let watched = InspectedIo::caller(down, first, lane.port.metrics.clone());
    let signs = watched.signs.clone();
    let limit = u64::from(greeting.max_streams.unwrap_or(STREAMS).min(STREAMS));
    if limit != u64::from(STREAMS) {
        signs.limit.store(limit, Ordering::Relaxed);
    }
    // One that said farewell has said it to the caller, who is told in its turn.
    if app.driver.is_none() && !app.signs.parts.load(Ordering::Relaxed) {
        signs.abort.store(true, Ordering::Relaxed);
        return Ended::AppReset;
    }
    let server = match timeout(PREFACE_TIMEOUT, settings(greeting).handshake(watched)).await {
        Ok(Ok(server)) => server,
        Ok(Err(_)) => return Ended::CallerLeft,
        Err(_) => return Ended::TimedOut(Stage::Head),
    };
    let mut connection = Connection {
        server,
        signs,
        app,
        exchanges: FuturesUnordered::new(),
        away: 0,
        legs: UpstreamPool::new(lane.clone()),
        lane,
        began: false,
        begun: 0,
        limit,
        farewell: None,
        condemned: false,
        given_up: Budget::new(GIVEN_UP_MOST, GIVEN_UP_PER_SECOND),
    };
    let ended = loop {
        let staying = connection.farewell.is_none() && !connection.condemned;
        tokio::select! {
            biased;
            ended = poll_fn(|cx| connection.poll(cx)) => break ended,
            changed = changes.changed() => match changed {
                Ok(()) => connection.legs.prune(),
                // The port is gone, and with it what could change.
                Err(_) => connection.leave(),
            },
            () = lane.port.drain.draining(), if staying => connection.leave(),
        }
    };
    connection.finish(ended).await
}

/// What the caller is told of us: what the app says where it matters to the caller, limits of ours
/// elsewhere.
fn settings(greeting: Greeting) -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(HEADER_LIST)
        .max_send_buffer_size(SEND_BUFFER)
        // The caller is told what the app says, which may change; this is what the library holds it
        // to.
        .max_concurrent_streams(STREAMS)
        .max_pending_accept_reset_streams(UNSEEN_RESETS)
        .max_local_error_reset_streams(Some(MALFORMED));
    if greeting.connect {
        builder.enable_connect_protocol();
    }
    builder
}

/// The app's connection that was opened with the caller's.
struct App {
    driver: Option<h2::client::Connection<InspectedIo, Bytes>>,
    primary: Option<UpstreamConn>,
    signs: Arc<IoState>,
}

impl App {
    /// Waits for the app's SETTINGS; an app that takes its time is taken to have said nothing
    /// special.
    async fn greeting(&mut self) -> Greeting {
        let signs = self.signs.clone();
        let said = poll_fn(|cx| {
            if self.poll(cx).is_some() {
                return Poll::Ready(Greeting::default());
            }
            signs
                .greeting
                .get()
                .map_or(Poll::Pending, |g| Poll::Ready(*g))
        });
        timeout(GREETING_TIMEOUT, said).await.unwrap_or_default()
    }

    /// The way to send a request, where it takes one at once.
    fn ready(&mut self, cx: &mut Context<'_>) -> Option<&mut UpstreamConn> {
        let primary = self.primary.as_mut().filter(|way| !way.parts())?;
        matches!(primary.send.poll_ready(cx), Poll::Ready(Ok(()))).then_some(primary)
    }

    /// Drives the connection; says once how it ended.
    fn poll(&mut self, cx: &mut Context<'_>) -> Option<Result<(), h2::Error>> {
        match Pin::new(self.driver.as_mut()?).poll(cx) {
            Poll::Ready(result) => {
                self.driver = None;
                self.primary = None;
                Some(result)
            }
            Poll::Pending => None,
        }
    }
}

struct Connection<'l> {
    server: h2::server::Connection<InspectedIo, Bytes>,
    signs: Arc<IoState>,
    app: App,
    exchanges: FuturesUnordered<Exchange>,
    /// Exchanges that were meant for a workstation.
    away: usize,
    legs: Arc<UpstreamPool>,
    lane: &'l ConnContext,
    /// Streams have been added since their futures were last polled.
    began: bool,
    /// How many streams have begun in all.
    begun: u64,
    /// The most streams at a time that the caller was told.
    limit: u64,
    /// The caller has been told to leave.
    farewell: Option<Farewell>,
    /// The caller floods us and is being thrown out.
    condemned: bool,
    /// Requests that may be given up early.
    given_up: Budget,
}

impl Connection<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        loop {
            self.began = false;
            let ended = self.poll_once(cx);
            // A stream that began has not been asked yet whether it can go on, and nobody else
            // would ask it.
            if ended.is_ready() || !(self.began | self.poll_farewell(cx)) {
                return ended;
            }
        }
    }

    fn poll_once(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        if let Some(result) = self.app.poll(cx) {
            // Whoever spoke with the app alone sees what it would see without the agent.
            if result.is_err() && self.away == 0 && !self.app.signs.parts.load(Ordering::Relaxed) {
                self.signs.abort.store(true, Ordering::Relaxed);
                return Poll::Ready(Ended::AppReset);
            }
            self.leave();
        } else if self.app.signs.parts.load(Ordering::Relaxed) {
            self.leave();
        }
        self.poll_exchanges(cx);
        self.follow_limit();
        self.poll_caller(cx)
    }

    /// Tells the caller when the app changes its mind about how many streams it serves at a time.
    fn follow_limit(&mut self) {
        let said = self
            .app
            .signs
            .streams
            .load(Ordering::Relaxed)
            .min(u64::from(STREAMS));
        // The library says one thing at a time; a later turn finds what is still to be said.
        if said != self.limit
            && self.signs.limit.load(Ordering::Relaxed) == UNSAID
            && self.server.set_initial_window_size(STREAM_WINDOW).is_ok()
        {
            self.limit = said;
            self.signs.limit.store(said, Ordering::Relaxed);
        }
    }

    /// Nothing more is read from a caller whose requests the app does not even read.
    fn hold_back(&self) {
        let stuffed = self
            .app
            .primary
            .as_ref()
            .is_some_and(UpstreamConn::is_stuffed);
        self.signs.paused.store(stuffed, Ordering::Relaxed);
    }

    /// Goes on telling the caller to leave; says whether there is something to write.
    fn poll_farewell(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(farewell) = &mut self.farewell else {
            return false;
        };
        match farewell.poll(cx, &self.signs, self.begun, self.exchanges.is_empty()) {
            Next::Wait => false,
            Next::Write => true,
            Next::End => {
                self.server.graceful_shutdown();
                true
            }
        }
    }

    fn poll_exchanges(&mut self, cx: &mut Context<'_>) {
        while let Poll::Ready(Some((ending, away))) = self.exchanges.poll_next_unpin(cx) {
            self.away -= usize::from(away);
            match ending {
                Ending::Answered => self.given_up.earn(1),
                Ending::GivenUp if self.given_up.spend() => {}
                Ending::GivenUp => self.condemn(),
            }
        }
    }

    /// New streams, and everything that is due to the caller.
    fn poll_caller(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        loop {
            self.hold_back();
            match self.server.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => self.begin(request, respond, cx),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(self.caller_failed(&error)),
                Poll::Ready(None) => {
                    return Poll::Ready(if self.condemned {
                        Ended::Limit
                    } else {
                        Ended::Clean
                    });
                }
                Poll::Pending if self.signs.flooded.load(Ordering::Relaxed) && !self.condemned => {
                    self.condemn()
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Decides where a stream goes, and sends it there.
    fn begin(
        &mut self,
        mut request: Request<RecvStream>,
        respond: SendResponse<Bytes>,
        cx: &mut Context<'_>,
    ) {
        self.begun += 1;
        if let Some((name, caller)) = self.lane.identity() {
            identity_header::replace(&mut request, name, caller);
        }
        let metrics = &self.lane.port.metrics;
        let table = self.lane.port.routes.load();
        let view = request_view::View(&request);
        let verdict = table.route_explained(&view);
        let mut notes = self.lane.access_record(
            &verdict,
            &table,
            &view,
            request.method().as_str().as_bytes(),
            "HTTP/2",
        );
        let mut exchange = match verdict.decision {
            Decision::App => match self.app.ready(cx) {
                Some(primary) => {
                    metrics.http2_requests.at(Route::App).inc();
                    match stream::send(primary, request, self.lane, Instant::now()) {
                        Ok(sent) => Exchange::asked(respond, sent, self.legs.clone()),
                        Err(reason) => return reset(respond, reason),
                    }
                }
                None => match self.legs.hold(upstreams::head_size(&request)) {
                    Some(held) => Exchange::to_app(
                        respond,
                        request,
                        self.app.primary.clone(),
                        self.legs.clone(),
                        held,
                    ),
                    None => return self.refuse(respond),
                },
            },
            Decision::Client(intercept) => {
                let Some(held) = self.legs.hold(upstreams::head_size(&request)) else {
                    return self.refuse(respond);
                };
                intercept.stats.hit(now_unix());
                self.away += 1;
                let primary = self.app.primary.clone();
                Exchange::to_workstation(
                    respond,
                    request,
                    intercept.clone(),
                    primary,
                    self.legs.clone(),
                    held,
                )
            }
            Decision::Expired(intercept) => {
                metrics.http2_requests.at(Route::Expired).inc();
                let explained = notes.as_ref().and_then(|n| n.explained());
                let status = expired::expired(respond, &request, intercept, explained);
                if let Some(notes) = &mut notes {
                    notes.answered(status, None);
                }
                metrics
                    .responses
                    .at(crate::telemetry::metrics::Class::of(status))
                    .inc();
                return;
            }
        };
        self.began = true;
        exchange.notes = notes;
        self.exchanges.push(exchange);
    }

    /// Too many requests of this caller wait already. It may try this one again.
    fn refuse(&self, respond: SendResponse<Bytes>) {
        self.lane.port.metrics.limits.at(Limit::Http2Flood).inc();
        reset(respond, Reason::REFUSED_STREAM);
    }

    /// Asks the caller to go elsewhere with new streams (RFC 9113 section 6.8); those under way go
    /// on.
    fn leave(&mut self) {
        if self.farewell.is_none() && !self.condemned {
            self.signs.lingers.store(true, Ordering::Relaxed);
            self.farewell = Some(Farewell::begin(self.server.ping_pong(), &self.signs));
            self.began = true;
        }
    }

    fn condemn(&mut self) {
        if !self.condemned {
            self.condemned = true;
            self.farewell = None;
            self.signs.lingers.store(false, Ordering::Relaxed);
            self.lane.port.metrics.limits.at(Limit::Http2Flood).inc();
            tracing::info!(caller = %self.lane.caller, "HTTP/2 flood: connection closed with ENHANCE_YOUR_CALM");
            self.server.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
        }
    }

    fn caller_failed(&mut self, error: &h2::Error) -> Ended {
        tracing::debug!(caller = %self.lane.caller, %error, "HTTP/2 connection ended");
        if self.condemned {
            return Ended::Limit;
        }
        if error.is_library() && error.reason() == Some(Reason::ENHANCE_YOUR_CALM) {
            self.lane.port.metrics.limits.at(Limit::Http2Flood).inc();
            return Ended::Limit;
        }
        if error.is_io() {
            Ended::CallerReset
        } else {
            Ended::CallerLeft
        }
    }

    /// Says farewell to the app, which sees its connection end as it would end without us.
    async fn finish(self, ended: Ended) -> Ended {
        let Self {
            server,
            mut app,
            exchanges,
            legs,
            ..
        } = self;
        drop((exchanges, legs, server));
        app.primary = None;
        if matches!(ended, Ended::CallerReset) {
            app.signs.abort.store(true, Ordering::Relaxed);
        } else if let Some(driver) = app.driver.take() {
            // An app that does not take it is not waited for.
            let _ = timeout(CLOSE_TIMEOUT, driver).await;
        }
        ended
    }
}

fn reset(mut respond: SendResponse<Bytes>, reason: Reason) {
    respond.send_reset(reason);
}

fn now_unix() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs())
}
