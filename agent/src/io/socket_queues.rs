//! State of a connection in the kernel: bytes that wait for its peer or for us, and its state.

// `rustix` wraps one of these questions; the others write one integer, or one structure.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::os::fd::{AsFd, AsRawFd as _};

use rustix::ioctl::{Getter, Opcode, ioctl};

/// `SIOCOUTQ`: bytes that the peer has not acknowledged.
const UNACKNOWLEDGED: Opcode = libc::TIOCOUTQ as Opcode;

/// Returns how many written bytes the peer has not acknowledged; 0 where the kernel does not say.
#[must_use]
pub(super) fn unacknowledged(socket: impl AsFd) -> usize {
    // SAFETY: this request writes one `int`.
    let asked = unsafe { ioctl(socket, Getter::<UNACKNOWLEDGED, c_int>::new()) };
    usize::try_from(asked.unwrap_or(0)).unwrap_or(0)
}

/// Returns how many bytes of the peer's are there to be read.
#[must_use]
pub(super) fn unread(socket: impl AsFd) -> usize {
    let waiting = rustix::io::ioctl_fionread(socket).unwrap_or(0);
    usize::try_from(waiting).unwrap_or(0)
}

/// Returns true if the connection is gone altogether, as it is behind a reset: an end alone leaves it
/// half open.
#[must_use]
pub(super) fn is_reset(socket: impl AsFd) -> bool {
    /// `TCP_CLOSE`, the state of a connection that is no more.
    const CLOSED: u8 = 7;
    let mut state = 0u8;
    let mut len: libc::socklen_t = 1;
    // SAFETY: at most `len` bytes are written, and the state is the structure's first one.
    let asked = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut state).cast(),
            &mut len,
        )
    };
    asked == 0 && len == 1 && state == CLOSED
}
