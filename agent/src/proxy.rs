//! The data path. Start with `connection.rs`: one connection from accept to its end. `listener/`
//! binds ports and accepts, `detect.rs` classifies the first bytes, and a protocol carries the
//! connection: `http1/`, `http2/`, `opaque.rs`, `udp/`.

pub mod connection;
pub mod context;
pub mod detect;
pub mod http1;
pub mod http2;
pub mod listener;
pub mod opaque;
pub mod protocol_probe;
pub mod udp;
pub mod wiretap;
