//! The manager session's supervisor: connect, arrive, live, depart, back off, again.

mod conflict;
pub mod live;
pub mod serve;
mod spec;
pub mod streams;
pub mod translate;
