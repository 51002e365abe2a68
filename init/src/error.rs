//! Why the program ends without rules in force, and the exit code that says so.

/// The exit code of a panic, which is a fault of ours.
pub const BUG: u8 = 70;

/// What went wrong, with the remedy in its text.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line.
    #[error("{0}\nTry agent-init --help")]
    Usage(String),
    /// The configuration or the environment.
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
    /// The exit code: of `sysexits.h`, so that 64 to 77 never clash with a shell's own.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::Config(_) => 64,
            Self::Backend(_) => 69,
            Self::NotPermitted(_) => 77,
        }
    }
}
