//! Tests on a real cluster, `make test-cluster`.
#![allow(clippy::unwrap_used)]

mod air;
mod attachments;
mod calm;
mod chart;
mod deaths;
mod enforcing;
mod families;
mod images;
mod injection;
mod install;
mod life;
mod many;
mod modes;
mod older;
mod outages;
mod page;
mod redirect;
mod rig;
mod rights;
mod seeds;
mod troubles;
mod walk;
