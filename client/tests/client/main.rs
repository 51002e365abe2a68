//! The client as its users run it, against a real manager, with an agent that is nothing but calls.

#![allow(clippy::unwrap_used)] // A test that meets what it does not expect may say so by panicking.

mod fixture;
mod keys;
mod life;
mod mistakes;
mod seen;
mod tunnels;
