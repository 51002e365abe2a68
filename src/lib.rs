//! What the whole-system tests, the benches and the demo are made of: real programs as processes of
//! their own, real sockets, real network namespaces.
//!
//! `system` puts together what most tests need: a manager, an agent in front of an app,
//! workstations. Its parts can be had one by one: `programs` finds and builds ours, `process` runs
//! and watches any, `ports` hands out free ones, `sidecar` writes an agent's configuration, `apps`
//! answer, `caller` asks, `pod` is a namespace to do that in, `certs` makes certificates, `wait`
//! waits for events, never for time.
//!
//! Everything here blocks and panics with a reason: it is for tests, which have nothing better to
//! do.

#![allow(clippy::unwrap_used)]

pub mod apps;
pub mod caller;
pub mod certs;
pub mod pod;
pub mod ports;
pub mod process;
pub mod programs;
pub mod sidecar;
pub mod system;
pub mod wait;
