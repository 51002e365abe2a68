//! Completions and manual pages, made from the command line's own description.

use std::io;
use std::path::Path;

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::Failure;
use crate::flags::Flags;

/// Prints the completions of a shell.
pub fn completions(shell: Shell) {
    let mut command = Flags::command();
    clap_complete::generate(shell, &mut command, "intercept", &mut io::stdout().lock());
}

/// Writes a manual page for the program and for each command.
///
/// # Errors
/// The folder cannot be made or written; the text names it.
pub fn man(folder: &Path) -> Result<(), Failure> {
    let written = std::fs::create_dir_all(folder)
        .and_then(|()| clap_mangen::generate_to(Flags::command(), folder));
    written.map_err(|error| Failure::Failed(format!("{}: {error}", folder.display())))
}
