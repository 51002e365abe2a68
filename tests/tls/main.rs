//! TLS of the whole system: real agents, real managers, nginx as app and as local server, curl as
//! caller.

#![allow(clippy::unwrap_used)] // A test that meets what it does not expect may say so by panicking.

mod fixture;
mod grpc;
mod idle;
mod nginx;
mod secrets;
mod traffic;
