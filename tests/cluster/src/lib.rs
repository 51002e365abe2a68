//! A real Kubernetes as a test fixture: API server, controllers and a node, started by
//! `tests/cluster/rig` in namespaces of their own.
//!
//! `Cluster::shared()` is the one that `make test-cluster` started. Each test takes a `Namespace` of
//! it, applies objects there, waits for what it expects by watching, and asks through a `Caller`,
//! which is a pod. `Load` is a steady stream of requests from a pod, `Manager` is ours, installed by
//! its chart, `Workstation` is a developer's machine with our client, `audit` reads who asked the API server for what.
//!
//! Everything here blocks and panics with a reason, as in the harness; what the kube crate can do
//! beyond it is reached with `Cluster::client` and `Cluster::wait_for`.

#![allow(clippy::unwrap_used)]

pub mod audit;
mod caller;
mod cluster;
mod load;
mod manager;
mod namespace;
mod readiness;
mod rig;
mod workload;
mod workstation;

pub use caller::{Answer, Caller};
pub use cluster::{Cluster, Facts, User};
pub use load::{Load, Tally};
pub use manager::Manager;
pub use namespace::{Namespace, Output};
pub use readiness::Readiness;
pub use rig::Kind;
pub use workload::Workload;
pub use workstation::{HEADER, Said, Served, Workstation};
