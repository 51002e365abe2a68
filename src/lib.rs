//! Harness of the whole-system tests, the benches and the demo: real programs as separate
//! processes, real sockets, real network namespaces.
//!
//! `system` combines the usual parts: a manager, an agent in front of an app, workstations. The
//! parts by themselves: `programs` finds and builds ours, `process` runs and watches any, `ports`
//! finds free ones, `sidecar` writes an agent's configuration, `apps` answer, `caller` asks, `pod`
//! is a network namespace, `certs` makes certificates, `pace` is a steady caller beside abuse,
//! `random` makes repeatable numbers, `wait` waits for events, never for time.
//!
//! All functions block, and panic with a reason.

#![allow(clippy::unwrap_used)]

pub mod apps;
pub mod caller;
pub mod certs;
pub mod pace;
pub mod pod;
pub mod ports;
pub mod process;
pub mod programs;
pub mod random;
pub mod sidecar;
pub mod system;
pub mod wait;
