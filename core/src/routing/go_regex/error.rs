//! Errors of Go patterns, and the limits that some of them name.

/// Maximum length of a pattern in bytes.
pub const MAX_PATTERN: usize = 8 * 1024;
/// Maximum compiled size of a pattern in bytes.
pub const MAX_COMPILED: usize = 256 * 1024;
/// Maximum nesting of groups.
pub(crate) const MAX_DEPTH: u32 = 100;

/// A pattern that is not usable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// A syntax error; the text is Go's.
    #[error("error parsing regexp: {reason}: `{at}`")]
    Syntax {
        /// Go's error text.
        reason: &'static str,
        /// Affected part of the pattern.
        at: String,
    },
    /// Longer than [`MAX_PATTERN`].
    #[error(
        "a pattern of {0} bytes is too long; the limit is {MAX_PATTERN} bytes, use a shorter one"
    )]
    TooLong(usize),
    /// The automaton is larger than [`MAX_COMPILED`], or groups nest too deeply.
    #[error(
        "the pattern needs more than {MAX_COMPILED} bytes compiled, or nests deeper than \
        {MAX_DEPTH}; simplify it"
    )]
    TooLarge,
}

pub(crate) fn syntax(reason: &'static str, at: &str) -> PatternError {
    PatternError::Syntax {
        reason,
        at: at.to_owned(),
    }
}
