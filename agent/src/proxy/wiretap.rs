//! Copies of requests and connections for wiretaps. The data path only appends to bounded queues:
//! it never waits for a copy, and a copy that cannot keep up is dropped and counted.
//!
//! A *lane* is a task that carries the copies of one caller's connection to one wiretap's
//! workstation, one after the other, so that they arrive in the caller's order. What the workstation
//! answers is read and dropped.

mod answer;
pub mod copy;
mod http2;
mod lane;
pub(crate) mod lanes;
pub mod slots;
pub(crate) mod speech;
pub(crate) mod tee;
