//! What traffic is like in the wild: other protocols, upgrades, readers that stall, peers that die
//! at the worst moment. The real agent, and where an intercept is needed the real manager and
//! client, each a process of its own.

#![allow(clippy::unwrap_used)] // A test that meets what it does not expect may say so by panicking.

mod bounds;
mod databases;
mod descriptors;
mod expired;
mod failures;
mod heads;
mod lines;
mod lost;
mod rig;
mod udp;
mod websocket;
