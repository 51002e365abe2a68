//! A traffic-manager in one process, without Kubernetes: it knows only what agents and workstations
//! tell it, and keeps nothing when it ends.
//!
//! `service` is the gRPC service. Behind it `registry` holds `sessions` and `intercepts` under one
//! lock, with all rules as plain functions of state and time; `watches` turn every change into
//! snapshots and deltas; `tunnels` joins the two streams of a tunnelled connection; `names` asks
//! agents to resolve.

#![cfg_attr(not(test), warn(clippy::disallowed_methods, clippy::disallowed_types))]

pub mod commands;
pub mod settings;

mod intercepts;
mod mailbox;
mod names;
mod refusal;
mod registry;
mod serve;
mod service;
mod sessions;
mod tunnels;
mod views;
mod watches;

pub use serve::{Bound, bind};
pub use settings::Settings;
