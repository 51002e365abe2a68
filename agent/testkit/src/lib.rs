//! One port of the agent in a test's own process: `port` is the fixture, `app` what stands on
//! either side of it, `tunnels` the workstation behind it, `intercept` the rules, `admin` the admin
//! server's view, `grpc` a tunnel over a real gRPC call.
//!
//! All functions panic with a reason.

#![allow(clippy::unwrap_used)]

pub mod admin;
pub mod app;
pub mod grpc;
pub mod intercept;
pub mod port;
pub mod tunnels;

use std::time::Duration;

use tokio::time::timeout;

/// Time any event may take before a test fails: machines are slow and noisy.
pub const WAIT_TIMEOUT: Duration = Duration::from_secs(30);

/// Waits for `event` within [`WAIT_TIMEOUT`].
pub async fn soon<T>(event: impl Future<Output = T>) -> T {
    timeout(WAIT_TIMEOUT, event)
        .await
        .expect("it did not happen in time")
}

/// Waits until `condition` holds.
pub async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let holds = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(WAIT_TIMEOUT, holds)
        .await
        .unwrap_or_else(|_| panic!("{what} did not happen in time"));
}
