//! Listeners: ports are bound, connections accepted, and worker threads run them.

pub mod accept;
pub mod bind;
pub mod socket;
pub mod workers;
