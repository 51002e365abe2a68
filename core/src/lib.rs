//! The decisions of the data path, without I/O: which protocol a connection speaks, where an HTTP
//! message ends, which intercept a request belongs to. Nothing here knows a socket, a runtime or a
//! clock, so every module is fuzzed and counted in instructions as the product ships it.

pub mod http1;
pub mod http2;
pub mod routing;
pub mod sniff;
