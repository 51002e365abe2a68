//! Record of one request beyond the counters: its access log line and the explanation it asked for.
//! Most requests have none; a record lives from the routing decision to the end of the response.

use std::sync::Arc;
use std::time::Duration;

use crate::outcome::Ended;
use crate::telemetry::access_log::{AccessLog, LogEntry, flag};
use crate::telemetry::explain_header::Explanation;
use crate::telemetry::metrics::{FailOpen, Label as _};
use traffic_core::routing::{Decision, Intercept, RouteTable};

/// Record of one request. Dropping it writes the line; without an outcome the request counts as
/// cut.
#[derive(Debug, Default)]
pub struct AccessRecord {
    line: Option<(Arc<AccessLog>, Box<LogEntry>)>,
    explanation: Option<Explanation>,
    failed_open: Option<FailOpen>,
}

impl AccessRecord {
    /// Creates a record for the access log (if enabled) and an explanation (if the request asked
    /// for one).
    #[must_use]
    pub fn new(
        line: Option<(Arc<AccessLog>, Box<LogEntry>)>,
        explanation: Option<Explanation>,
    ) -> Box<Self> {
        let mut record = Box::new(Self {
            line,
            explanation,
            failed_open: None,
        });
        record.entry(|e| e.flags = flag(Ended::Drained));
        record
    }

    /// Records the routing decision and its reason.
    pub fn decided(&mut self, decision: &Decision<'_>, table: &RouteTable, app: &str) {
        self.entry(|e| match decision {
            Decision::App => {
                e.route = "app";
                e.reason = if table.entries().is_empty() {
                    "nothing intercepted"
                } else {
                    "no match"
                }
                .to_owned();
                e.upstream = app.to_owned();
            }
            Decision::Client(i) => {
                (e.route, e.intercept, e.upstream) =
                    ("client", Some(i.id.clone()), "tunnel".to_owned());
                e.reason = format!("matched {}", i.name);
            }
            Decision::Expired(i) => {
                (e.route, e.intercept, e.flags) = ("expired", Some(i.id.clone()), "NR");
                e.reason = format!("{} has expired", i.name);
            }
        });
    }

    /// Records the wiretaps that are to get a copy.
    pub fn copied<'i>(&mut self, wiretaps: impl Iterator<Item = &'i Intercept>) {
        self.entry(|e| e.copies = wiretaps.map(|i| i.id.clone()).collect());
    }

    /// Records an opaque connection to the app or to a workstation.
    pub fn unread(&mut self, why: &str, intercept: Option<&Intercept>, app: &str) {
        self.entry(|e| match intercept {
            None => (e.reason, e.upstream) = (format!("opaque: {why}"), app.to_owned()),
            Some(i) => {
                (e.route, e.intercept, e.upstream) =
                    ("client", Some(i.id.clone()), "tunnel".to_owned());
                e.reason = format!("matched {}", i.name);
            }
        });
    }

    /// Records that the workstation could not be reached and the app answers.
    pub fn failed_open(&mut self, why: FailOpen, app: &str) {
        self.failed_open = Some(why);
        self.entry(|e| {
            e.route = "app";
            e.reason = format!("{}, {}", e.reason, why.label());
            e.upstream = app.to_owned();
        });
    }

    /// Records the final status and the upstream's time to its first byte.
    pub fn answered(&mut self, status: u16, after: Option<Duration>) {
        self.entry(|e| {
            e.status = status;
            // The request may have been read some microseconds before its record began.
            e.upstream_time = after.map(|after| after.min(e.clock.elapsed()));
        });
    }

    /// Adds body bytes of both directions.
    pub fn moved(&mut self, received: u64, sent: u64) {
        self.entry(|e| {
            e.received += received;
            e.sent += sent;
        });
    }

    /// Returns the explanation header's value if one was asked for.
    #[must_use]
    pub fn explained(&self) -> Option<String> {
        self.explanation.as_ref().map(|e| e.value(self.failed_open))
    }

    /// Returns the explanation as a whole HTTP/1 header line.
    #[must_use]
    pub fn explained_line(&self) -> Option<String> {
        self.explanation.as_ref().map(|e| e.line(self.failed_open))
    }

    /// Ends the record with an outcome.
    pub fn end(mut self, ended: Ended) {
        self.entry(|e| {
            if e.flags != "NR" {
                e.flags = flag(ended);
            }
        });
    }

    fn entry(&mut self, note: impl FnOnce(&mut LogEntry)) {
        if let Some((_, entry)) = &mut self.line {
            note(entry);
        }
    }
}

impl Drop for AccessRecord {
    fn drop(&mut self) {
        if let Some((log, entry)) = self.line.take() {
            log.end(&entry);
        }
    }
}
