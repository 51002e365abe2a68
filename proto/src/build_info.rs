//! What a program is made of, for `--version` and the metrics.

/// Version of all programs.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Commit; `unknown` where the build did not see one.
pub const COMMIT: &str = env!("BUILD_COMMIT");
/// Date of the commit, or of `SOURCE_DATE_EPOCH`; `unknown` without either.
pub const DATE: &str = env!("BUILD_DATE");
/// All of it, as `--version` prints it behind the program's name.
pub const LONG: &str = env!("BUILD_LONG");
