//! HTTP/2: frame boundaries, the state of a connection's streams, and header compression.

pub mod frames;
pub mod hpack;
