//! The manager session's supervisor: connect, arrive, live, depart, back off, again.

pub mod live;
pub mod serve;
pub mod streams;
pub mod translate;
