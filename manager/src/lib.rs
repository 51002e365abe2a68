//! A traffic-manager for one process, without Kubernetes: everything it knows, agents and
//! workstations have told it, and it forgets it when it ends.
//!
//! `service` is the gRPC face. Behind it `registry` holds `sessions` and `intercepts` under one
//! lock, all rules in it plain functions of state and time; `watches` turn every change of it into
//! snapshots and deltas; `tunnels` joins the two streams of a tunnelled connection; `names` asks
//! agents to resolve.

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
