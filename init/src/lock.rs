//! Lock that allows one run at a time in each network namespace, without a file.
//!
//! The lock is the name of an abstract socket: the kernel keeps those per network namespace, which
//! is what the rules belong to, and frees it when its holder dies, however it dies. Programs we
//! start inherit it, so that one that outlives a killed run still holds the next run back.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::failure::Failure;
use crate::log::Log;
use crate::signals;

const NAME: &[u8] = b"agent-init.rules";
const LOCK_TIMEOUT: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Lock, held until dropped.
#[derive(Debug)]
pub struct Lock {
    _name: Option<OwnedFd>,
}

/// Waits for other runs in this namespace to end. A sandbox without such sockets has no lock to
/// give: the kernel's transactions must do there.
///
/// Errors: the other run does not end in time, or a signal came.
pub fn take(log: &Log<'_>) -> Result<Lock, Failure> {
    let Ok(address) = SocketAddrUnix::new_abstract_name(NAME) else {
        return Ok(Lock { _name: None });
    };
    let start = Instant::now();
    let mut said = false;
    loop {
        if let Some(lock) = attempt(&address) {
            return Ok(lock);
        }
        if let Some(signal) = signals::received() {
            return Err(Failure::Interrupted(signal));
        }
        if start.elapsed() >= LOCK_TIMEOUT {
            return Err(Failure::Busy(format!(
                "another agent-init has been programming rules in this pod for {} s; see what it \
                 waits for, or end it",
                LOCK_TIMEOUT.as_secs()
            )));
        }
        if !said && start.elapsed() > Duration::from_millis(500) {
            said = true;
            log.info(&format!(
                "another agent-init is programming rules in this pod: waiting at most {} s for it",
                LOCK_TIMEOUT.as_secs()
            ));
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Lock, or none while another run holds it.
fn attempt(address: &SocketAddrUnix) -> Option<Lock> {
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::DGRAM,
        SocketFlags::empty(),
        None,
    );
    let Ok(socket) = socket else {
        return Some(Lock { _name: None });
    };
    match rustix::net::bind(&socket, address) {
        Err(Errno::ADDRINUSE) => None,
        Err(_) => Some(Lock { _name: None }),
        Ok(()) => Some(Lock {
            _name: Some(socket),
        }),
    }
}
