//! Relay mode: frames pass as they are until an intercept needs single requests.

pub(crate) mod frame_relay;
pub(super) mod goaway;
