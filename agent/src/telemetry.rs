//! Telemetry: counters, the access log, the explanation header, logging with rate limits, and the
//! memory budget.

pub mod access_log;
pub mod explain_header;
pub mod logging;
pub mod memory;
pub mod metrics;
pub mod rate_limit;
