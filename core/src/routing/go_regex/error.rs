//! Errors of Go patterns, and the limits that some of them name.

/// The longest pattern that is looked at, in bytes.
pub const MAX_PATTERN: usize = 8 * 1024;
/// The largest compiled size of one pattern, in bytes.
pub const MAX_COMPILED: usize = 256 * 1024;
/// How deep groups may nest.
pub(crate) const MAX_DEPTH: u32 = 100;

/// A pattern that is not usable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Not a regular expression; the text is the one Go gives.
    #[error("error parsing regexp: {reason}: `{at}`")]
    Syntax {
        /// Go's words for it.
        reason: &'static str,
        /// The part of the pattern that is meant.
        at: String,
    },
    /// Longer than [`MAX_PATTERN`].
    #[error(
        "a pattern of {0} bytes is too long; the limit is {MAX_PATTERN} bytes, use a shorter one"
    )]
    TooLong(usize),
    /// Its automaton is larger than [`MAX_COMPILED`], or its groups nest too deeply.
    #[error(
        "the pattern needs more than {MAX_COMPILED} bytes compiled, or nests deeper than {MAX_DEPTH}; simplify it"
    )]
    TooLarge,
}

pub(crate) fn syntax(reason: &'static str, at: &str) -> PatternError {
    PatternError::Syntax {
        reason,
        at: at.to_owned(),
    }
}
