//! The fields of one line of the access log.

use std::time::{Duration, Instant, SystemTime};

use crate::addr::Caller;

/// One exchange under way: the fields of its line.
#[derive(Debug)]
pub struct Entry {
    /// When the head was complete.
    pub started: SystemTime,
    pub(crate) clock: Instant,
    /// The method, as received; empty, like the two that follow, for a connection that nobody looks
    /// into.
    pub method: String,
    /// The request target, as received.
    pub target: String,
    /// The host the caller asked for.
    pub authority: String,
    /// `HTTP/1.0`, `HTTP/1.1`, `HTTP/2`, or empty.
    pub protocol: &'static str,
    /// Who called.
    pub caller: Caller,
    /// Listed headers: lower-case name and value.
    pub headers: Vec<(String, String)>,
    /// The final status; 0 when none came.
    pub status: u16,
    /// Body bytes from the caller.
    pub received: u64,
    /// Body bytes to the caller.
    pub sent: u64,
    /// Until the first byte of the upstream's answer.
    pub upstream_time: Option<Duration>,
    /// Where it went: `app`, `client`, `expired`.
    pub route: &'static str,
    /// Why: the intercept's description, `no match`, a fail-open's reason.
    pub reason: String,
    /// The intercept that decided.
    pub intercept: Option<String>,
    /// Where it was carried: an address, or `tunnel`.
    pub upstream: String,
    /// Envoy's response flags; `-` for none.
    pub flags: &'static str,
}

impl Entry {
    /// A connection of `caller`, of which nothing is known yet.
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
            upstream: String::new(),
            flags: "-",
        }
    }
}
