//! The file service against a real sshfs, and against a client that tries to get out.
#![allow(clippy::unwrap_used)]

mod attacks;
mod client;
mod fixture;
mod mounted;
