//! The exchange loop of one HTTP/1 connection: a head is looked at for its route and for where its
//! message ends; the bytes that go on are the bytes that came.
//!
//! One caller's connection is pinned to one connection to the app, so whatever is bound to a
//! connection stays so. Tunnels are opened on the first match and kept. Exchanges run in order;
//! within one both directions flow at once. Whatever is ambiguous, from a malformed head to an
//! answer nobody asked for, makes the rest of the connection a plain relay to the app, which judges
//! it as it would without an agent.

pub mod connection;
mod exchange;
pub mod exchanges;
mod expired;
mod identity_header;
mod idle;
mod pipe;
mod tunnels;
mod workstation;
