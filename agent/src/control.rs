//! The control path: the manager session, intercepts that become route tables, tunnels to
//! workstations, and environment and mounts for workstations.

mod answers;
pub mod api;
mod api_calls;
pub(crate) mod api_server;
mod api_socket;
pub mod config;
pub mod container_env;
mod context;
pub(crate) mod dial_queue;
pub mod dialer;
mod direct_tunnel;
pub mod dns;
pub mod intercepts;
mod keepalive;
mod keyed_lock;
mod known_sessions;
mod log_once;
pub(crate) mod manager_call;
mod manager_token;
mod meter;
pub(crate) mod reviews;
pub(crate) mod session;
pub(crate) mod stream_windows;
pub mod supervisor;
pub mod tunnels;
mod watchers;
