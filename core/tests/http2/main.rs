//! The HTTP/2 router between scripted peers: a caller, an app and workstations that keep to every
//! rule of the protocol, say what they like, and object to whatever they must not get.

#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod copied;
mod generated;
mod peer;
mod rig;
mod scripted;
