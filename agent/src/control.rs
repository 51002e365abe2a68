//! The control path: the manager session, intercepts that become route tables, tunnels to
//! workstations, and environment and mounts for workstations.

mod answers;
pub mod api;
pub(crate) mod api_server;
pub mod config;
pub mod container_env;
mod context;
pub(crate) mod dial_queue;
mod dial_watches;
pub mod dialer;
pub mod dns;
pub mod intercepts;
mod keyed_lock;
mod known_sessions;
mod log_once;
mod manager_token;
pub(crate) mod reviews;
pub(crate) mod session;
pub mod supervisor;
pub mod tunnels;
