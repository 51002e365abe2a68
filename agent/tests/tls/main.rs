//! TLS of one port: real secrets on disk, real handshakes, real programs on both sides.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

mod annotations;
mod canary;
mod certs;
mod handshakes;
mod listener;
mod logs;
mod programs;
mod rotation;
mod secrets;
