//! Certificates by port, and their rotation.
