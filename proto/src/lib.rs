//! Shared definitions of both ends of the wire: gRPC messages, the tunnel codec, connection ids,
//! the sidecar's configuration, and their vocabulary types.
//!
//! Feature `grpc` (on by default) adds the generated messages and stubs; without it this crate uses
//! neither tonic nor tokio, which is how agent-init depends on it. Feature `dialer` adds the
//! dialling end of a tunnel, `rewrite-io` a connection whose reads are rewritten, `proof` the
//! proofs that an agent is the announced one and that a client has its session's key, `heap-trim`
//! the way to give free memory back, `system-dns` the pod's resolver.

#![cfg_attr(not(test), warn(clippy::disallowed_methods, clippy::disallowed_types))]

pub mod base64url;
pub mod build_info;
#[cfg(feature = "grpc")]
pub mod client_certificate;
pub mod clock;
pub mod conn_id;
pub mod dial_policy;
#[cfg(feature = "dialer")]
pub mod dialer;
pub mod duration;
pub mod fault;
pub mod guard_rails;
#[cfg(feature = "heap-trim")]
pub mod heap_trim;
pub mod html;
pub mod log_level;
pub mod log_queue;
pub mod manager_token;
pub mod near;
pub mod port;
pub mod port_identifier;
pub mod printable;
#[cfg(feature = "proof")]
pub mod proof;
pub mod rewrite;
#[cfg(feature = "rewrite-io")]
pub mod rewrite_io;
#[cfg(all(feature = "grpc", feature = "proof"))]
pub mod session_key;
pub mod sidecar;
pub mod suspension;
pub mod sync;
#[cfg(feature = "system-dns")]
pub mod system_dns;
pub mod token;
pub mod tunnel;
pub mod web_origin;

pub use conn_id::ConnId;
pub use fault::{Fault, Faults};
pub use log_level::LogLevel;
pub use port::{AgentPort, AppPort, ProxyPort, Transport};

/// Package `telepresence.manager`: the control plane's service and messages.
#[cfg(feature = "grpc")]
#[rustfmt::skip]
#[path = "gen/telepresence.manager.rs"]
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::unwrap_used)]
pub mod manager;

/// Package `telepresence.agent`: the sidecar's own service.
#[cfg(feature = "grpc")]
#[rustfmt::skip]
#[path = "gen/telepresence.agent.rs"]
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::unwrap_used)]
pub mod agent;

/// Package `telepresence.common`: messages of daemons and services of every kind.
#[cfg(feature = "grpc")]
#[rustfmt::skip]
#[path = "gen/telepresence.common.rs"]
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::unwrap_used)]
pub mod common;
