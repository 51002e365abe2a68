//! Listeners: binding ports, accepting connections, and the worker threads that run them.

pub mod accept;
pub mod bind;
pub mod workers;
