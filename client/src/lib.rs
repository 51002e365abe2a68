//! The workstation's end of an intercept: creates it, answers its tunnels, leaves cleanly.
//!
//! `flags` is the command line. `intercept` runs one intercept from arrival to departure; `tunnels`
//! answers connections announced by the manager or by an agent, to which `direct` attaches if one
//! can be reached; `report` prints events for people and for programs.

#![cfg_attr(not(test), warn(clippy::disallowed_methods, clippy::disallowed_types))]

#[cfg_attr(not(feature = "kubernetes"), path = "no_cluster.rs")]
pub mod cluster;
pub mod flags;
#[cfg(feature = "kubernetes")]
pub mod genyaml;
#[cfg(feature = "kubernetes")]
pub mod helm;
pub mod uninstall;

mod command;
mod container;
mod credentials;
pub mod dashboard;
mod deliveries;
mod direct;
pub mod environment;
mod explain;
mod filters;
pub mod generate;
mod ingest;
mod intercept;
mod listing;
mod live;
mod local;
mod manage;
pub mod matchers;
pub mod mount;
mod pod_tunnel;
mod report;
mod rest_api;
mod session;
pub mod status;
mod terminal;
pub mod to_pod;
mod tunnels;
mod warnings;
mod watches;

pub use explain::explain;
pub use ingest::ingest;
pub use intercept::{Stop, create};
pub use manage::{leave, list};

/// Reason the program cannot do what was asked; the text is for its user.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The flags contradict each other.
    #[error("{0}")]
    Usage(String),
    /// Other failures.
    #[error("{0}")]
    Failed(String),
    /// The manager broke off amid a call, as one that restarts does.
    #[error("{0}")]
    Away(String),
    /// The command that ran beside the intercept ended with this exit code.
    #[error("the command ended with exit code {0}")]
    Command(u8),
    /// The user interrupted the program before it had done what was asked.
    #[error("interrupted")]
    Interrupted,
}
