//! The manager over real gRPC, with agents and clients that are nothing but calls.

mod door;
mod intercepts;
mod names;
mod rig;
mod sessions;
mod tunnels;
mod watches;
