//! A traffic-manager: sessions, intercepts and tunnels in one process.
//!
//! On its own it knows only what agents and workstations tell it, and keeps nothing when it ends. In
//! a cluster `cluster` adds the injector, roll-outs and the cluster's facts.
//!
//! `service` is the gRPC service. Behind it `registry` holds `sessions` and `intercepts` under one
//! lock, with all rules as plain functions of state and time; `watches` turn every change into
//! snapshots and deltas; `tunnels` joins the two streams of a tunnelled connection; `dns` asks
//! agents to resolve. `web` answers browsers, scrapers and probes; `page` is what people see.

#![cfg_attr(not(test), warn(clippy::disallowed_methods, clippy::disallowed_types))]
// What only a cluster makes or asks for is there without one as well.
#![cfg_attr(not(feature = "kubernetes"), allow(dead_code))]

pub mod commands;
pub mod log_levels;
pub mod settings;

mod callers;
#[cfg_attr(not(feature = "kubernetes"), path = "no_cluster.rs")]
mod cluster;
mod connection;
mod connections;
mod datagrams;
mod dns;
mod error;
mod excluded;
mod gate;
mod identity;
mod intercepts;
mod limits;
mod listen;
mod mailbox;
mod metrics;
mod open_watches;
mod own_dials;
mod page;
mod pending;
mod presence;
mod registry;
mod rights;
mod serve;
mod served_body;
mod service;
mod sessions;
mod snapshots;
mod tunnels;
mod viewed;
mod watch_body;
mod watches;
mod web;

pub use cluster::{ClusterCommand, ClusterError, ClusterSettings};
pub use log_levels::{LogLevels, level};
pub use serve::{Bound, Ended, ServeError, bind};
pub use settings::Settings;
