//! The sidecar: one listening port stands for one container port, and every connection is carried
//! to the app as if nobody stood between, unless an intercept sends a request through a tunnel to
//! a workstation.
//!
//! ```text
//! data     caller -> proxy::listener -> tls -> detect -> http1 | http2 | opaque -> routing -+-> app
//!                    START HERE: proxy/connection.rs                                        +-> tunnel -> workstation
//!                                                                          ^
//! control  manager -> control::session -> control::intercepts -> RouteTable
//!          (routes.rs: one swapped pointer, nothing else crosses)
//! ```
//!
//! Folders are the layers, lowest first; a folder imports only folders above it in this list.
//! `proxy` and `control` stand side by side and do not see each other. What decides without I/O is
//! the crate `traffic-core`.

#![cfg_attr(not(test), warn(clippy::disallowed_methods, clippy::disallowed_types))]

/// The agent's version as reported to peers.
pub const VERSION: &str = concat!("v", env!("CARGO_PKG_VERSION"));

// Words that every layer uses.
pub mod addr;
pub mod drain;
pub mod limits;
pub mod outcome;
pub mod ready;
pub mod routes;

// Counters and logs, byte movers, certificates, ways to the app and to workstations.
pub mod telemetry;

pub mod io;

pub mod tls;

pub mod upstream;

// The data path and the control path, which do not see each other.
pub mod proxy;

pub mod control;

pub mod files;

// Read-only views of both, and the composition root.
pub mod admin;

pub mod rest_api;

pub mod app;
