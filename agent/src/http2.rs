//! HTTP/2: frames relayed until an intercept needs streams.

pub mod frames;
pub mod streams;
