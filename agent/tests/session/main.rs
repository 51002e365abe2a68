//! The agent's control side against a manager that misbehaves in ways ours never does, and against
//! clients that talk to it directly. The agent is the real program; the manager is a fake, because
//! these failures cannot be provoked with a real one.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

mod fake;
mod guard_rails;
mod pod;

mod abuse;
mod arrival;
mod dials;
mod direct;
mod hostile_intercepts;
mod keys;
mod manager_faults;
mod memory;
mod rest_api;
mod stalled_logs;
mod steady;

use std::time::Duration;

/// Time any event may take on a slow machine.
pub const WAIT_TIMEOUT: Duration = Duration::from_secs(30);
