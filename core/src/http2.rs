//! HTTP/2: frames, header sections and their compression, and the state of a connection's streams.

pub mod authority;
pub mod frames;
pub mod hpack;
pub mod section;
