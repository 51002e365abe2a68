//! The only copy loop: two independent directions with half-close, reset and counters.

pub mod splice;
