//! The loop of exchanges on one connection.

use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::task::Poll;

use tokio::time::Instant;

use crate::io::buffers::Buf;
use crate::io::close;
use crate::io::conn::Conn;
use crate::io::relay;
use crate::io::relay::PendingBytes;
use crate::outcome::Ended;
use crate::proxy::context::ConnContext;
use crate::proxy::http1::exchange::{Exchange, Outcome};
use crate::proxy::http1::idle::{Idle, NextHead};
use crate::proxy::http1::pipe::Pipe;
use crate::proxy::http1::tunnels::TunnelPool;
use crate::proxy::opaque;
use crate::telemetry::metrics::{OpaqueReason, Protocol, Route};
use crate::upstream::app::AppLeg;
use traffic_core::http1::body::Body;
use traffic_core::http1::h2c::Offer;
use traffic_core::http1::head::Head;
use traffic_core::routing::{Decision, Intercept};

use crate::proxy::http1::connection::{Connection, Upstream};

/// Carries a connection whose first bytes are a request line; `first` holds what has been read of
/// it.
pub fn exchanges(
    down: Conn,
    first: Buf,
    app: AppLeg,
    context: ConnContext,
) -> impl Future<Output = Ended> + Send {
    context.port.metrics.carried.at(Protocol::Http1).inc();
    let mut connection = Connection {
        context,
        down,
        app,
        stale_app: false,
        workstations: TunnelPool::default(),
        lanes: None,
        copies: None,
        request: Pipe::starting_with(first),
        answer: Pipe::empty(),
        caller_done: false,
        end_passed: false,
        is_last: false,
        previous_intercept: None,
        previous_was_app: false,
        record: None,
    };
    // Built outside, because an async function reserves room for its arguments a second time.
    async move {
        let ended = match connection.run().await {
            Over::Ended(ended) => ended,
            Over::Http2(offer) => return Box::pin(connection.into_http2(offer)).await,
        };
        if let Some(record) = connection.record.take() {
            record.end(ended);
        }
        if ended.resets_caller() {
            Box::pin(close::reset_when_delivered(&mut connection.down)).await;
        }
        ended
    }
}

/// End of the exchanges.
enum Over {
    /// The connection is over.
    Ended(Ended),
    /// It goes on in HTTP/2, as was offered.
    Http2(Option<Box<Offer>>),
}

impl From<Ended> for Over {
    fn from(ended: Ended) -> Self {
        Self::Ended(ended)
    }
}

impl Connection {
    /// Runs exchanges until the connection ends. Rare branches are boxed, so that idle connections
    /// do not hold room for them.
    async fn run(&mut self) -> Over {
        let port = Arc::clone(&self.context.port);
        let mut idle = Idle::new(&port.drain);
        loop {
            let head = match poll_fn(|cx| idle.poll_next(self, cx)).await {
                NextHead::Request(head) => head,
                NextHead::Unclear(reason) => {
                    return Box::pin(self.relay_to_app(reason)).await.into();
                }
                NextHead::End(ended) => return ended.into(),
                NextHead::AppEnded => return self.end_as_app().await.into(),
            };
            let started = Instant::now();
            let Some(mut head) = self.set_identity_header(head) else {
                return Ended::Limit.into();
            };
            let mut body = Body::of_request(&head);
            if self
                .request
                .mark_head_sendable(head.len, &mut body)
                .is_err()
            {
                let reason = OpaqueReason::Ambiguous;
                return Box::pin(self.relay_to_app(reason)).await.into();
            }
            let upstream = match self.route(&head, &body) {
                None => Upstream::App,
                Some((intercept, Route::Expired)) => {
                    self.count(Route::Expired);
                    match Box::pin(self.expired(intercept, head, body)).await {
                        None => {
                            self.record = None;
                            self.previous_intercept = None;
                            self.previous_was_app = false;
                            continue;
                        }
                        Some(ended) => return ended.into(),
                    }
                }
                Some((intercept, _)) => Box::pin(self.workstation(intercept)).await,
            };
            let route = if upstream == Upstream::App {
                Route::App
            } else {
                Route::Client
            };
            self.count(route);
            // Only requests to the app need its connection to be usable.
            if upstream == Upstream::App {
                self.ready_app().await;
            }
            let offer = self.take_offer(upstream, &mut head, &mut body);
            let relays = self.context.identity().is_none();
            let mut exchange = Exchange::new(&head, body, upstream, relays, offer, started);
            match poll_fn(|cx| exchange.poll(self, cx)).await {
                Outcome::Next => self.end_exchange(upstream, exchange.persists()),
                Outcome::Http2 => return Over::Http2(exchange.into_offer()),
                Outcome::End(ended) => return ended.into(),
                Outcome::Close => return Box::pin(self.linger()).await.into(),
                Outcome::Cut => {
                    Box::pin(close::cut_when_delivered(&mut self.down)).await;
                    return Ended::AppCut.into();
                }
                Outcome::Relay(reason) => {
                    return Box::pin(self.relay(upstream, reason)).await.into();
                }
            }
        }
    }

    fn count(&self, route: Route) {
        self.context.port.metrics.http1_requests.at(route).inc();
    }

    /// Remembers of an exchange what matters to the next one, and ends its record.
    fn end_exchange(&mut self, upstream: Upstream, persists: bool) {
        // Servers close idle connections: the app's may be gone once a workstation has answered.
        self.stale_app = upstream != Upstream::App;
        self.is_last = !persists;
        self.previous_was_app = upstream == Upstream::App;
        self.previous_intercept = match upstream {
            Upstream::App => None,
            Upstream::Tunnel(at) => Some(self.workstations.intercept(at)),
        };
        self.copies = None;
        if let Some(record) = self.record.take() {
            record.end(Ended::Clean);
        }
    }

    /// Sets the caller's identity header if the port has one; `None` if the head becomes too large.
    fn set_identity_header(&mut self, head: Head) -> Option<Head> {
        match self.context.identity() {
            None => Some(head),
            Some((name, caller)) => {
                super::identity_header::replace(&mut self.request.buf, &head, name, caller)
            }
        }
    }

    /// Decides the route of one request; `None` is the app. The table is read once, for this
    /// decision only.
    fn route(&mut self, head: &Head, body: &Body) -> Option<(Arc<Intercept>, Route)> {
        let table = self.context.port.routes.load();
        // The common case pays one pointer read and no parsing of the target.
        if table.is_empty() && self.context.port.access.log.is_none() {
            return None;
        }
        let request = head.request(self.request.buf.unread());
        let verdict = table.route_explained(&request);
        let version = if head.minor == 0 {
            "HTTP/1.0"
        } else {
            "HTTP/1.1"
        };
        self.record =
            self.context
                .access_record(&verdict, &table, &request, request.method, version);
        let target = match verdict.decision {
            Decision::App => None,
            Decision::Client(intercept) => Some((Arc::clone(intercept), Route::Client)),
            // The agent answers by itself, so there is nothing to watch.
            Decision::Expired(intercept) => return Some((Arc::clone(intercept), Route::Expired)),
        };
        if !verdict.wiretaps.is_empty() {
            let wiretaps: Vec<_> = verdict.wiretaps.into_iter().cloned().collect();
            self.copy_to(&wiretaps, head, body);
        }
        target
    }

    /// Returns true if a request goes where the one before it went, or if there was none; empty
    /// lines between the two travel with it then.
    pub(crate) fn follows_previous(&self, head: &Head) -> bool {
        let table = self.context.port.routes.load();
        let request = head.request(self.request.buf.unread());
        let decision = table.route_explained(&request).decision;
        match (&self.previous_intercept, decision) {
            (Some(previous), Decision::Client(intercept)) => previous.same_target(intercept),
            (Some(_), _) => false,
            (None, decision) => !self.previous_was_app || matches!(decision, Decision::App),
        }
    }

    /// Replaces the app connection if the app closed it while a workstation served the caller, or
    /// if it was refused for an earlier request.
    async fn ready_app(&mut self) {
        if self.stale_app {
            poll_fn(|cx| {
                super::idle::drop_closed_app(self, cx);
                Poll::Ready(())
            })
            .await;
        }
        if self.app.has_failed() {
            self.app.begin();
        }
    }

    /// Relays the rest of the connection opaquely to the app, unless the port has an identity
    /// header that the caller could forge.
    async fn relay_to_app(&mut self, reason: OpaqueReason) -> Ended {
        if self.context.identity().is_some() {
            self.context.port.metrics.opaque.at(reason).inc();
            self.app.abort();
            return Ended::Malformed;
        }
        self.relay(Upstream::App, Some(reason)).await
    }

    /// Relays the rest of the connection opaquely, including the bytes already read.
    async fn relay(&mut self, upstream: Upstream, reason: Option<OpaqueReason>) -> Ended {
        // What follows is no part of a request.
        self.copies = None;
        let metrics = &self.context.port.metrics;
        if let Some(reason) = reason {
            metrics.opaque.at(reason).inc();
            if self.record.is_none() {
                self.record = self.context.opaque_record(reason, None);
            }
        }
        let up = match upstream {
            Upstream::App => match poll_fn(|cx| self.app.poll_conn(cx).map_ok(|_| ())).await {
                Ok(()) => self.app.up(),
                Err(ended) => return ended,
            },
            Upstream::Tunnel(at) => Some(self.workstations.at(at)),
        };
        // Unreachable: `poll_conn` has just returned a connection.
        let Some(up) = up else { return Ended::Bug };
        let ((from_down, inward), (from_up, outward)) = (self.request.take(), self.answer.take());
        let first = PendingBytes { from_down, from_up };
        let relayed = Box::pin(relay::resume(
            &mut self.down,
            up,
            first,
            [inward, outward],
            metrics,
        ))
        .await;
        if let Some(record) = &mut self.record {
            record.moved(relayed.bytes_in, relayed.bytes_out);
        }
        match upstream {
            Upstream::App => opaque::ended(&relayed, opaque::app_failed(&relayed, metrics)),
            Upstream::Tunnel(_) => opaque::ended(&relayed, Ended::TunnelLost),
        }
    }
}
