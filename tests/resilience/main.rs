//! Resilience against real-world traffic: other protocols, upgrades, stalled readers, peers that
//! fail at the worst moment. The real agent, and if an intercept is needed the real manager and
//! client, each a separate process.

#![allow(clippy::unwrap_used)] // A test that meets what it does not expect may say so by panicking.

mod bounds;
mod databases;
mod descriptors;
mod expired;
mod failures;
mod heads;
mod impostor;
mod keys;
mod opaque_protocols;
mod rig;
mod tunnel_loss;
mod udp;
mod vanished;
mod websocket;
mod wiretap;
