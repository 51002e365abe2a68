//! Secrets: pod annotations that name them, PEM files, and the store that follows their rotation.

pub mod annotations;
pub mod pem;
pub mod secret;
pub mod store;
