//! Lock that allows one run at a time in each network namespace, without a file.
//!
//! The lock is the name of an abstract socket: the kernel keeps those per network namespace, which
//! is what the rules belong to, and frees it when its holder dies, however it dies. Programs we
//! start inherit it, so that one that outlives a killed run still holds the next run back.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

const NAME: &[u8] = b"agent-init.rules";
const LOCK_TIMEOUT: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Lock, held until dropped.
#[derive(Debug)]
pub struct Lock {
    _name: Option<OwnedFd>,
}

/// Error: another run holds the lock and does not come to its end.
#[derive(Debug)]
pub struct Busy;

/// Waits for other runs in this namespace to end. A sandbox without such sockets has no lock to
/// give, and nobody to share it with: the kernel's transactions must do there.
pub fn take() -> Result<Lock, Busy> {
    let Ok(address) = SocketAddrUnix::new_abstract_name(NAME) else {
        return Ok(Lock { _name: None });
    };
    let deadline = Instant::now() + LOCK_TIMEOUT;
    loop {
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::DGRAM,
            SocketFlags::empty(),
            None,
        );
        let Ok(socket) = socket else {
            return Ok(Lock { _name: None });
        };
        match rustix::net::bind(&socket, &address) {
            Err(Errno::ADDRINUSE) if Instant::now() < deadline => std::thread::sleep(POLL_INTERVAL),
            Err(Errno::ADDRINUSE) => return Err(Busy),
            Err(_) => return Ok(Lock { _name: None }),
            Ok(()) => {
                return Ok(Lock {
                    _name: Some(socket),
                });
            }
        }
    }
}
