//! Why a request is not fulfilled, and the gRPC status that says so.

use tonic::{Code, Status};

/// A request that cannot be fulfilled; the text is for the person at the other end.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// The request itself is wrong.
    #[error("{0}")]
    Invalid(String),
    /// What it speaks of is not there.
    #[error("{0}")]
    NotFound(String),
    /// What it would make is there already.
    #[error("{0}")]
    Exists(String),
}

impl Refusal {
    /// No session has this id.
    pub(crate) fn no_session(id: &str) -> Self {
        Self::NotFound(format!(
            "session {id:?} is not known here; it has ended or expired: arrive again"
        ))
    }

    /// The client has no intercept of this name.
    pub(crate) fn no_intercept(name: &str) -> Self {
        Self::NotFound(format!("intercept {name:?} not found"))
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let code = match &refusal {
            Refusal::Invalid(_) => Code::InvalidArgument,
            Refusal::NotFound(_) => Code::NotFound,
            Refusal::Exists(_) => Code::AlreadyExists,
        };
        Status::new(code, refusal.to_string())
    }
}
