//! Failure of a backend, in words for the operator.

/// Reason why the rules could not be programmed by a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The process may not.
    NotPermitted(String),
    /// The image or the kernel cannot.
    Unusable(String),
}
