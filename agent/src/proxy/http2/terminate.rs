//! Terminated mode: the caller's connection ends here and is carried stream by stream.

mod body;
mod budget;
pub mod connection;
mod expired;
mod frame_patch;
mod goaway;
mod h2_io;
mod identity_header;
mod request_view;
mod stream;
mod upstreams;
