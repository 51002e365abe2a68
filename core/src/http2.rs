//! HTTP/2: frames, header sections and their compression, and the router that carries a
//! connection's streams to where they belong.

pub mod authority;
pub mod flood;
pub mod frames;
pub mod hpack;
pub mod request;
pub mod router;
pub mod section;
pub mod settings;
pub mod streams;
