//! The surroundings of a router: rules, counters, the access log, and the choice of a tunnel.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::outcome::Ended;
use crate::proxy::context::ConnContext;
use crate::proxy::http2::expired;
use crate::proxy::http2::tunnels::TunnelLinks;
use crate::proxy::wiretap::lanes::{Copies, Lanes};
use crate::proxy::wiretap::speech::{CopiedHead, Speech, regular};
use crate::telemetry::access_log::record::AccessRecord;
use crate::telemetry::explain_header::HEADER;
use crate::telemetry::metrics::{Class, FailOpen, Limit, Route};
use crate::upstream::workstation;
use traffic_core::http2::hpack::FieldList;
use traffic_core::http2::request::RequestHead;
use traffic_core::http2::router::{Explained, Host, StreamEnd, StreamRoute, Way};
use traffic_core::http2::streams::Side;
use traffic_core::routing;
use traffic_core::routing::{Decision, Intercept};

/// The streams of one connection, as far as somebody wants to know of them.
pub(super) struct Streams {
    pub(super) context: ConnContext,
    pub(super) tunnels: TunnelLinks,
    /// Records of streams that are in the access log, or have to be explained.
    records: HashMap<u32, Box<AccessRecord>>,
    /// Streams whose tunnel is being opened.
    waiting: HashMap<u32, Arc<Intercept>>,
    /// Lanes for wiretaps; none before the first copy.
    lanes: Option<Box<Lanes>>,
    /// Copies of requests that have not ended.
    copies: HashMap<u32, Copies>,
    /// Reason of the tunnel's failure that is being dealt with.
    pub(super) failure: FailOpen,
    /// The time at which the bytes at hand were read.
    pub(super) read_at: Instant,
    /// The caller hears nothing more, so rules don't matter.
    pub(super) closed: bool,
}

impl Streams {
    pub(super) fn new(context: ConnContext) -> Self {
        Self {
            context,
            tunnels: TunnelLinks::default(),
            records: HashMap::new(),
            waiting: HashMap::new(),
            lanes: None,
            copies: HashMap::new(),
            failure: FailOpen::Lost,
            read_at: Instant::now(),
            closed: false,
        }
    }

    /// Keeps the record of a stream that has begun elsewhere.
    pub(super) fn keep(&mut self, stream: u32, record: Box<AccessRecord>) {
        self.records.insert(stream, record);
    }

    fn record<R: routing::Request>(
        &mut self,
        stream: u32,
        verdict: &routing::Routed<'_>,
        table: &routing::RouteTable,
        head: &R,
        method: &[u8],
    ) {
        let context = &self.context;
        let record = context.access_record(verdict, table, head, method, "HTTP/2");
        if let Some(record) = record {
            self.records.insert(stream, record);
        }
    }

    /// Begins copies of a stream's request; false if there is none.
    fn copy(&mut self, stream: u32, head: &RequestHead<'_>, to: &[&Arc<Intercept>]) -> bool {
        if to.is_empty() {
            return false;
        }
        let Some(head) = CopiedHead::of(head.fields()) else {
            return false;
        };
        let wiretaps: Vec<_> = to.iter().map(|w| Arc::clone(w)).collect();
        let lanes = self.lanes.get_or_insert_default();
        let begun = lanes.begin(&wiretaps, &Speech::Http2(Arc::new(head)), &self.context);
        match begun {
            Some(copies) => self.copies.insert(stream, copies).is_none(),
            None => false,
        }
    }

    fn count_app(&self) {
        let metrics = &self.context.port.metrics;
        metrics.http2_requests.at(Route::App).inc();
        metrics.own_time.observe(self.read_at.elapsed());
    }

    fn expired(&mut self, stream: u32, head: &RequestHead<'_>, intercept: &Intercept) -> Way {
        let mut record = self.records.remove(&stream);
        let explained = record.as_ref().and_then(|record| record.explained());
        let (status, answer) = expired::answer(head, intercept, explained.as_deref());
        let metrics = &self.context.port.metrics;
        metrics.http2_requests.at(Route::Expired).inc();
        metrics.responses.at(Class::of(status)).inc();
        if let Some(record) = &mut record {
            record.answered(status, None);
            record.moved(0, answer.body.len() as u64);
        }
        Way::Answer(answer)
    }
}

impl Host for Streams {
    fn reads_requests(&mut self) -> bool {
        let port = &self.context.port;
        !self.closed
            && (port.routes.load().needs_requests()
                || port.access.log.is_some()
                || self.context.identity().is_some())
    }

    fn relayed(&mut self) {
        self.context.port.metrics.http2_relayed.inc();
    }

    fn route(&mut self, stream: u32, head: &RequestHead<'_>, sound: bool) -> StreamRoute {
        let port = Arc::clone(&self.context.port);
        let table = port.routes.load();
        // A malformed request goes to the app as it is: a workstation must not get what nobody can
        // read in one way only.
        let verdict = if sound {
            table.route_explained(head)
        } else {
            routing::Routed {
                decision: Decision::App,
                wiretaps: Vec::new(),
                asks_why: false,
            }
        };
        self.record(stream, &verdict, &table, head, head.method());
        let explains = verdict.asks_why;
        // The agent answers what has expired by itself, so there is nothing to watch.
        let copied = !matches!(verdict.decision, Decision::Expired(_))
            && self.copy(stream, head, &verdict.wiretaps);
        let way = match verdict.decision {
            Decision::App => {
                self.count_app();
                Way::App
            }
            Decision::Client(intercept) => {
                workstation::hit(intercept);
                self.waiting.insert(stream, Arc::clone(intercept));
                Way::Tunnel(self.tunnels.to(intercept, &self.context))
            }
            Decision::Expired(intercept) => self.expired(stream, head, intercept),
        };
        StreamRoute {
            way,
            explains,
            copied,
        }
    }

    fn forwarded(&mut self, stream: u32, after: Duration) {
        self.waiting.remove(&stream);
        let metrics = &self.context.port.metrics;
        metrics.http2_requests.at(Route::Client).inc();
        metrics.own_time.observe(after);
    }

    fn failed_open(&mut self, stream: u32) {
        let port = &self.context.port;
        if let Some(intercept) = self.waiting.remove(&stream) {
            port.workstations().fell_back(&intercept, self.failure);
        }
        if let Some(record) = self.records.get_mut(&stream) {
            record.failed_open(self.failure, &self.context.app_address());
        }
        self.count_app();
    }

    fn answered(&mut self, stream: u32, status: u16, after: Duration) -> Option<Explained> {
        let metrics = &self.context.port.metrics;
        metrics.responses.at(Class::of(status)).inc();
        metrics.upstream_time.observe(after);
        let record = self.records.get_mut(&stream)?;
        record.answered(status, Some(after));
        let value = record.explained()?;
        Some(Explained {
            name: HEADER,
            value,
        })
    }

    fn moved(&mut self, stream: u32, from: Side, bytes: usize) {
        // Called for each piece of each stream, nearly always without an access log.
        if self.records.is_empty() {
            return;
        }
        if let Some(record) = self.records.get_mut(&stream) {
            match from {
                Side::Caller => record.moved(bytes as u64, 0),
                Side::App => record.moved(0, bytes as u64),
            }
        }
    }

    fn copied(&mut self, stream: u32, body: &[u8], ends: bool) {
        let Some(copies) = self.copies.get_mut(&stream) else {
            return;
        };
        let goes_on = copies.push(body);
        if !goes_on || ends {
            let copies = self.copies.remove(&stream);
            copies.into_iter().for_each(Copies::finish);
        }
    }

    fn copied_trailers(&mut self, stream: u32, trailers: &FieldList) {
        if let Some(copies) = self.copies.remove(&stream) {
            copies.finish_with(&regular(trailers));
        }
    }

    fn ended(&mut self, stream: u32, end: StreamEnd) {
        // A copy that ends too early is dropped without an end, as a request that was cut.
        if end != StreamEnd::Complete {
            self.copies.remove(&stream);
        }
        self.waiting.remove(&stream);
        if let Some(record) = self.records.remove(&stream) {
            record.end(match end {
                StreamEnd::Complete | StreamEnd::ServerReset => Ended::Clean,
                StreamEnd::CallerReset => Ended::CallerLeft,
                StreamEnd::Lost => Ended::AppReset,
                StreamEnd::Refused => Ended::Limit,
            });
        }
    }

    fn limited(&mut self) {
        let metrics = &self.context.port.metrics;
        metrics.limits.at(Limit::Http2Flood).inc();
    }
}
