//! Operated: the admin, the metrics and the end of a real agent, while real callers and
//! workstations use it.

#![allow(clippy::unwrap_used)] // A test that meets what it does not expect may say so by panicking.

mod access;
mod admin;
mod admin_commands;
mod command_line;
mod demo;
mod exposition;
mod idle;
mod log_rate_limit;
mod metrics;
mod mixed_load;
mod pages;
mod prometheus;
mod readme;
mod shutdown;
