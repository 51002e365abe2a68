//! Lock file of the legacy programs of iptables, which every program that changes x_tables holds
//! meanwhile.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use crate::failure::Failure;
use crate::log::Log;
use crate::signals;

const USUAL_FILE: &str = "/run/xtables.lock";
/// Variable that names another file, for us as for the programs.
pub(crate) const VARIABLE: &str = "XTABLES_LOCKFILE";
/// Time that another program may hold the lock.
pub(crate) const LOCK_TIMEOUT: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Path of the lock file.
fn path() -> OsString {
    std::env::var_os(VARIABLE)
        .filter(|path| !path.is_empty())
        .unwrap_or_else(|| USUAL_FILE.into())
}

/// Opens the lock file; none where the file system has no place for it, so that no other program
/// can hold it either.
pub(crate) fn open() -> Option<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .open(path())
        .ok()
}

/// Waits until nobody else holds the lock, and gives it; none where there is no lock file.
///
/// Errors: the other program does not release it in time, or a signal came.
pub(crate) fn take(log: &Log<'_>) -> Result<Option<File>, Failure> {
    let Some(file) = open() else {
        return Ok(None);
    };
    let start = Instant::now();
    let mut said = false;
    while flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        if let Some(signal) = signals::received() {
            return Err(Failure::Interrupted(signal));
        }
        let name = path();
        if start.elapsed() >= LOCK_TIMEOUT {
            return Err(Failure::Busy(format!(
                "another program has held {} for {} s; end it, or set {VARIABLE} to another file",
                name.display(),
                LOCK_TIMEOUT.as_secs()
            )));
        }
        if !said {
            said = true;
            log.info(&format!(
                "another program holds {}: waiting at most {} s for it",
                name.display(),
                LOCK_TIMEOUT.as_secs()
            ));
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    Ok(Some(file))
}
