//! The workstation's end of an intercept: creates it, answers its tunnels, leaves cleanly.
//!
//! `flags` is what the user asks for. `intercept` lives through one intercept from arrival to
//! departure; `dials` answers connections wherever they are announced, through the manager or by an
//! agent, to which `direct` attaches where one can be reached; `report` says what happens, for
//! people and for programs.

pub mod flags;

mod dials;
mod direct;
mod intercept;
mod manage;
mod report;
mod session;

pub use intercept::create;
pub use manage::{leave, list};

/// Why the program cannot do what it was asked for; the text is for its user.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The flags contradict each other.
    #[error("{0}")]
    Usage(String),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}
