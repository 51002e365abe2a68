//! The exchange loop of one HTTP/1 connection: heads are parsed for their route and message end;
//! the bytes are forwarded unchanged.
//!
//! One downstream connection is pinned to one app connection, so connection-bound state (such as
//! NTLM) keeps working. Tunnels are opened on the first match and kept. Exchanges run in order;
//! within one, both directions flow at once. Anything ambiguous, from a malformed head to an
//! unsolicited response, turns the rest of the connection into an opaque relay to the app, which
//! judges it as it would without an agent. One that the app upgrades to HTTP/2 goes on there.

pub mod connection;
mod copies;
mod exchange;
pub mod exchanges;
mod expired;
mod h2c;
mod identity_header;
mod idle;
mod pipe;
mod tunnels;
mod workstation;
