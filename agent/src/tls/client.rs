//! TLS towards the app: the client configuration and the verification of the app's certificate.

pub mod config;
pub mod verify;
