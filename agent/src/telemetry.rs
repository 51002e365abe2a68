//! Telemetry: counters, the access log, the explanation header, and logging with rate limits.

pub mod access_log;
pub mod explain_header;
pub mod logging;
pub mod metrics;
pub mod rate_limit;
