//! TLS towards callers: the ClientHello, the server configuration, limits on handshakes, and the
//! self-test of configured secrets.

pub mod accept;
pub(crate) mod client_hello;
pub mod config;
pub mod handshake_limit;
pub mod refusal;
pub(crate) mod self_test;
