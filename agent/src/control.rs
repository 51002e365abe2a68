//! The control path: the manager session, intercepts that become route tables, tunnels to
//! workstations, and environment and mounts for workstations.

pub mod api;
pub mod config;
pub mod container_env;
mod context;
mod dialer;
pub mod dns;
pub mod intercepts;
mod keyed_lock;
mod known_sessions;
mod log_once;
mod session;
pub mod supervisor;
pub mod tunnels;
