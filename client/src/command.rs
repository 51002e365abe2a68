//! The command that `create … -- COMMAND` runs beside an intercept, with the container's environment.

mod parent_death;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;
use std::{fs, io};

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::{Failure, local};

/// Time for the command to end after it was asked to.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// Checks that a command can be started, before anything is created.
///
/// # Errors
/// There is no such program, or it may not be executed; the text has the remedy.
pub(crate) fn check(command: &[OsString]) -> Result<(), Failure> {
    let Some(program) = command.first() else {
        return Ok(());
    };
    let name = program.to_string_lossy();
    let failed = |why: &str| Err(Failure::Failed(format!("-- {name}: {why}")));
    if program.is_empty() {
        return failed("nothing is named; write a command behind --");
    }
    if !program.as_bytes().contains(&b'/') {
        return match local::is_in_path(program) {
            true => Ok(()),
            false => failed(
                "not in PATH; write its path, such as ./run, or sh -c 'COMMAND' for what only a \
                 shell knows",
            ),
        };
    }
    match fs::metadata(program) {
        Err(error) => failed(&format!("{error}; name a program that is there")),
        Ok(found) if found.is_dir() => failed("that is a folder; name a program in it"),
        Ok(_) if !local::is_executable(Path::new(program)) => {
            failed(&format!("not executable; chmod +x {name} makes it so"))
        }
        Ok(_) => Ok(()),
    }
}

/// A command that is started when the intercept is active, and ends with it.
#[derive(Debug)]
pub(crate) struct Running {
    name: String,
    child: Child,
}

impl Running {
    /// Starts a command.
    ///
    /// # Errors
    /// It cannot be started; the text names it.
    pub(crate) fn start(
        command: &[OsString],
        environment: &BTreeMap<String, String>,
    ) -> Result<Self, Failure> {
        let Some((program, arguments)) = command.split_first() else {
            return Err(Failure::Usage("nothing follows --; write a command".into()));
        };
        let name = program.to_string_lossy().into_owned();
        let mut command = Command::new(program);
        command
            .args(arguments)
            .envs(environment)
            // An intercept that ends by a failure must not leave it behind.
            .kill_on_drop(true);
        // Nor one that is killed.
        parent_death::tie(&mut command);
        let child = command.spawn().map_err(|error| {
            let hint = match error.kind() {
                io::ErrorKind::NotFound => {
                    "; is the interpreter of its first line there, and PATH no variable of the \
                     container?"
                }
                _ => "",
            };
            Failure::Failed(format!("{name}: cannot be started: {error}{hint}"))
        })?;
        Ok(Self { name, child })
    }

    /// Waits for its end, and returns its exit code as shells do: 128 and the signal's number if a
    /// signal ended it.
    pub(crate) async fn ended(&mut self) -> Failure {
        use std::os::unix::process::ExitStatusExt as _;
        match self.child.wait().await {
            Ok(status) => {
                let code = status.code().or(status.signal().map(|number| 128 + number));
                Failure::Command(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
            }
            Err(error) => Failure::Failed(format!("{}: {error}", self.name)),
        }
    }

    /// Asks it to end by SIGTERM, and kills it if it does not.
    pub(crate) async fn end(&mut self) {
        if let Some(pid) = self
            .child
            .id()
            .and_then(|id| Pid::from_raw(id.cast_signed()))
        {
            let _ = kill_process(pid, Signal::TERM);
        }
        if timeout(END_TIMEOUT, self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
    }
}
