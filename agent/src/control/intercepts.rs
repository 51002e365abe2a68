//! Intercepts: a snapshot from the manager becomes the ports' route tables and reviews to send
//! back. `translate`, `spec` and `conflict` are pure; `publisher` puts tables in force.

pub mod bounds;
mod conflict;
pub mod guard_rails;
pub(crate) mod publisher;
mod refusal;
pub mod shown;
pub(crate) mod spec;
pub mod translate;
