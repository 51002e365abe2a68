//! The injector from the outside: pods, templates and Services as a cluster has them, and what
//! becomes of them. The tables have a row for each row of the documented behaviour.

#![allow(clippy::unwrap_used)]

mod annotations;
mod containers;
mod decisions;
mod guard_rails;
mod ports;
mod properties;
mod rig;
mod security;
mod volumes;
