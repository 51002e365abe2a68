//! Ends a command with this program, however that ends: the kernel sends it SIGTERM when its parent
//! is gone, by `kill -9` or for lack of memory, when nobody is left to ask it.
//!
//! The kernel watches the thread that forks, not its process. The main thread ends with the
//! process; a worker of the runtime may end before, and take the command along. So only commands of
//! the main thread are tied.
// A hook between fork and exec, which is unsafe since most of a program must not run there.
#![allow(unsafe_code)]

use tokio::process::Command;

/// Ties a command that the calling thread is to start.
#[cfg(target_os = "linux")]
pub(super) fn tie(command: &mut Command) {
    use rustix::process::{Signal, getpid, getppid, set_parent_process_death_signal};

    let parent = getpid();
    if rustix::thread::gettid() != parent {
        tracing::debug!(
            "not started by the main thread: a command would outlive a killed intercept"
        );
        return;
    }
    let hook = move || {
        set_parent_process_death_signal(Some(Signal::TERM))?;
        // Gone before the kernel was asked, which then tells nothing.
        if getppid() != Some(parent) {
            return Err(rustix::io::Errno::SRCH.into());
        }
        Ok(())
    };
    // SAFETY: between fork and exec of a program with threads only what is async-signal-safe may
    // run. The hook makes two system calls, takes no lock and allocates nothing: its errors hold a
    // number each.
    unsafe { command.pre_exec(hook) };
}

/// Other systems do not tell a child.
#[cfg(not(target_os = "linux"))]
pub(super) fn tie(_: &mut Command) {}
