//! Reasons why the program ends without rules in force, and the exit code of each.

/// Exit code of a panic, which is a fault of ours.
pub const BUG: u8 = 70;

/// Remedies for those whose nodes cannot redirect.
pub const REMEDIES: &str = "there are two ways out: give the Service a named target port, which \
                            needs no redirect, or inject the agent without the init container";

/// Fault that ends the run, with the remedy in its text.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Mistake on the command line.
    #[error("{0}\nTry agent-init --help")]
    Usage(String),
    /// Mistake in the configuration, the environment or the pod's manifest.
    #[error("{0}")]
    Config(String),
    /// The kernel (or the image) has no way to program the rules, or refused one of them.
    #[error("{0}")]
    Backend(String),
    /// The kernel did not answer a question: the rules in force are unknown.
    #[error("{0}")]
    Unanswered(String),
    /// The process may not program rules.
    #[error("{0}")]
    NotPermitted(String),
    /// A signal ended the run.
    #[error("ended by signal {0}: no rule of this run is left in force")]
    Interrupted(i32),
}

impl Error {
    /// Exit code: of `sysexits.h`, so that 64 to 77 never clash with a shell's own; a signal's is
    /// 128 and its number, as a shell reports it.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::Config(_) => 64,
            Self::Backend(_) => 69,
            Self::Unanswered(_) => 74,
            Self::NotPermitted(_) => 77,
            Self::Interrupted(signal) => 128 + u8::try_from(*signal).unwrap_or(0),
        }
    }

    /// Adds a sentence to the message.
    #[must_use]
    pub fn and(self, more: &str) -> Self {
        match self {
            Self::Usage(text) => Self::Usage(format!("{text}. {more}")),
            Self::Config(text) => Self::Config(format!("{text}. {more}")),
            Self::Backend(text) => Self::Backend(format!("{text}. {more}")),
            Self::Unanswered(text) => Self::Unanswered(format!("{text}. {more}")),
            Self::NotPermitted(text) => Self::NotPermitted(format!("{text}. {more}")),
            Self::Interrupted(signal) => Self::Interrupted(signal),
        }
    }
}
