//! Tests on a real cluster, `make test-cluster`.
#![allow(clippy::unwrap_used)]

mod chart;
mod redirect;
mod rig;
