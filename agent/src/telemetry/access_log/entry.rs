//! Fields of one access log line.

use std::time::{Duration, Instant, SystemTime};

use crate::addr::Caller;

/// Fields of an exchange under way.
#[derive(Debug)]
pub struct LogEntry {
    /// Time at which the head was complete.
    pub started: SystemTime,
    pub(crate) clock: Instant,
    /// Method as received; for an opaque connection empty, like the next two fields.
    pub method: String,
    /// Request target as received.
    pub target: String,
    /// Host the caller asked for.
    pub authority: String,
    /// `HTTP/1.0`, `HTTP/1.1`, `HTTP/2`, or empty.
    pub protocol: &'static str,
    /// Downstream peer.
    pub caller: Caller,
    /// Logged headers: lower-case name and value.
    pub headers: Vec<(String, String)>,
    /// Final status; 0 if none arrived.
    pub status: u16,
    /// Body bytes from the caller.
    pub received: u64,
    /// Body bytes to the caller.
    pub sent: u64,
    /// Time to the first byte of the upstream's response.
    pub upstream_time: Option<Duration>,
    /// Route: `app`, `client`, `expired`.
    pub route: &'static str,
    /// Reason: the intercept's description, `no match`, or the reason for failing open.
    pub reason: String,
    /// Id of the intercept that decided.
    pub intercept: Option<String>,
    /// Ids of the wiretaps that are to get a copy.
    pub copies: Vec<String>,
    /// Upstream: an address, or `tunnel`.
    pub upstream: String,
    /// Envoy's response flags; `-` for none.
    pub flags: &'static str,
}

impl LogEntry {
    /// Starts an entry for a connection of `caller`.
    pub(crate) fn of(caller: Caller) -> Self {
        Self {
            started: SystemTime::now(),
            clock: Instant::now(),
            method: String::new(),
            target: String::new(),
            authority: String::new(),
            protocol: "",
            caller,
            headers: Vec::new(),
            status: 0,
            received: 0,
            sent: 0,
            upstream_time: None,
            route: "app",
            reason: String::new(),
            intercept: None,
            copies: Vec::new(),
            upstream: String::new(),
            flags: "-",
        }
    }
}
