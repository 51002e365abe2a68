//! HTTP/2: frame boundaries and the state of a connection's streams.

pub mod frames;
