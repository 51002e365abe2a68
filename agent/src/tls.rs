//! The handshake a port's secret asks for; ALPN as the app would offer it.

pub mod store;
