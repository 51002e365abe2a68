//! HTTP/2 through the agent's data path, with real sockets, real clients and real servers on both
//! ends: relayed, followed from rule to rule, upgraded from HTTP/1.

#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod app;
mod floods;
mod grpc;
mod leaving;
mod limits;
mod programs;
mod relayed;
mod rig;
mod streams;
mod switching;
mod transparent;
mod upgraded;
mod wiretap;
