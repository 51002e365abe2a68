//! The manager over real gRPC, with agents and clients that are nothing but calls.

#![allow(clippy::unwrap_used)] // A test that meets what it does not expect may say so by panicking.

mod bounds;
mod commands;
mod fixture;
mod grpc_only;
mod intercepts;
mod keys;
mod names;
mod presence;
mod sessions;
mod tunnels;
mod watches;
