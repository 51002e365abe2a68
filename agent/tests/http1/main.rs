//! HTTP/1 through a whole port: real sockets on both sides, a real tunnel to a workstation that
//! dials.

#![allow(clippy::unwrap_used)]

mod bulk;
mod early_request;
mod endings;
mod exchange;
mod explained;
mod footprint;
mod generate;
mod intercepted;
mod ports;
mod second_reader;
mod transparent;
mod vectors;
mod wiretap;
