//! HTTP/2, gRPC and old connections through the whole system: real processes, real sockets.

#![allow(clippy::unwrap_used)] // A test that meets what it does not expect may say so by panicking.

mod app;
mod churn;
mod go;
mod load;
mod memory;
mod rules;
mod stalled;
mod workstation;

/// Seconds for tests that have a short form and a long one.
fn seconds(variable: &str, default: u64) -> std::time::Duration {
    let told = std::env::var(variable)
        .ok()
        .and_then(|seconds| seconds.parse().ok());
    std::time::Duration::from_secs(told.unwrap_or(default))
}
