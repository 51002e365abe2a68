//! Errors of requests and their gRPC status.

use tonic::{Code, Status};

/// A request that is refused; the text is for the user at the other end.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RequestError {
    /// The request itself is wrong.
    #[error("{0}")]
    Invalid(String),
    /// The requested object does not exist.
    #[error("{0}")]
    NotFound(String),
    /// The object to be created exists already.
    #[error("{0}")]
    Exists(String),
    /// The client of the session is away.
    #[error("the client of session {0:?} is away")]
    Absent(String),
    /// A limit is reached.
    #[error("{0}")]
    TooMany(String),
    /// Conditions in the cluster are not met.
    #[error("{0}")]
    Failed(String),
}

impl RequestError {
    /// Creates the error for an unknown session id.
    pub(crate) fn no_session(id: &str) -> Self {
        Self::NotFound(format!(
            "session {id:?} is not known here; it has ended or expired: arrive again"
        ))
    }

    /// Creates the error for an unknown intercept name of the client.
    pub(crate) fn no_intercept(name: &str) -> Self {
        Self::NotFound(format!("intercept {name:?} not found"))
    }
}

impl From<RequestError> for Status {
    fn from(refusal: RequestError) -> Self {
        let code = match &refusal {
            RequestError::Invalid(_) => Code::InvalidArgument,
            RequestError::NotFound(_) => Code::NotFound,
            RequestError::Exists(_) => Code::AlreadyExists,
            RequestError::Absent(_) => Code::Unavailable,
            RequestError::TooMany(_) => Code::ResourceExhausted,
            RequestError::Failed(_) => Code::FailedPrecondition,
        };
        Status::new(code, refusal.to_string())
    }
}
