//! TLS on both sides of the agent: secrets named by pod annotations, the handshake with callers,
//! and the client configuration towards the app.

pub mod alpn;
pub mod client;
pub mod failure;
pub mod identity;
pub mod secrets;
pub mod server;
pub mod stream;
