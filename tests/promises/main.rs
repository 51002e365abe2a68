//! Promises to users, kept by the whole system: real processes, real sockets.

#![allow(clippy::unwrap_used)] // A test that meets what it does not expect may say so by panicking.

mod main_job;
mod manager_away;
mod replicas;
mod several_ports;
mod structured;
mod to_pod;
mod volumes;
mod whole_ports;
mod wiretap;
