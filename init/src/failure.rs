//! Failure of a backend.

use crate::error::Error;
use crate::permission::Denied;

/// Reason why a backend did not do its work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The process lacks a right.
    NotPermitted(Denied),
    /// The kernel or the image does not have the backend, so that no rule of ours is in it.
    Absent(String),
    /// The kernel or the program has it and refused.
    Refused(String),
    /// Another program holds what is needed, for longer than we wait.
    Busy(String),
    /// A question to the kernel was not answered: the rules in force are unknown.
    Unanswered(String),
    /// A signal ended the run.
    Interrupted(i32),
}

impl Failure {
    /// Answer of the kernel or of the program.
    pub fn text(&self) -> String {
        match self {
            Self::NotPermitted(denied) => denied.to_string(),
            Self::Absent(text)
            | Self::Refused(text)
            | Self::Busy(text)
            | Self::Unanswered(text) => text.clone(),
            Self::Interrupted(signal) => format!("signal {signal}"),
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::NotPermitted(denied) => Self::NotPermitted(denied.to_string()),
            Failure::Absent(text) | Failure::Refused(text) | Failure::Busy(text) => {
                Self::Backend(text)
            }
            Failure::Unanswered(text) => Self::Unanswered(text),
            Failure::Interrupted(signal) => Self::Interrupted(signal),
        }
    }
}
