//! TLS of one port: real secrets on disk, real handshakes, real programs on both sides.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

mod annotations;
mod certs;
mod handshakes;
mod listener;
mod logs;
mod no_key_leaks;
mod programs;
mod rotation;
mod secrets;
