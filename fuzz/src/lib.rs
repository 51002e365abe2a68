//! The agent's parsers by themselves. The files are links to the agent's own: its pure modules need
//! neither TLS nor a runtime, so a target builds in seconds and no C library has to be built for
//! the sanitizer.
#![allow(dead_code, unreachable_pub)]

pub mod detect {
    //! First bytes.
    pub mod prefix;
}
pub mod http1 {
    //! HTTP/1 heads and bodies.
    pub mod body;
    pub mod head;
}
pub mod http2 {
    //! HTTP/2 frames.
    pub mod frames;
}
pub mod route;
