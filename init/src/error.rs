//! Reasons why the program ends without rules in force, and the exit code of each.

/// Exit code of a panic, which is a fault of ours.
pub const BUG: u8 = 70;

/// Remedies for those whose nodes cannot redirect.
pub const REMEDIES: &str = "there are two ways out: give the Service a named target port, which needs no redirect, or \
                            inject the agent without the init container";

/// Fault that ends the run, with the remedy in its text.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Mistake on the command line.
    #[error("{0}\nTry agent-init --help")]
    Usage(String),
    /// Mistake in the configuration or the environment.
    #[error("{0}")]
    Config(String),
    /// The kernel (or the image) has no way to program the rules, or refused one of them.
    #[error("{0}")]
    Backend(String),
    /// The process may not program rules.
    #[error("{0}")]
    NotPermitted(String),
}

impl Error {
    /// Exit code: of `sysexits.h`, so that 64 to 77 never clash with a shell's own.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::Config(_) => 64,
            Self::Backend(_) => 69,
            Self::NotPermitted(_) => 77,
        }
    }
}
