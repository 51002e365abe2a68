//! Reads and writes that do not ask the runtime first whether the socket is ready.
//!
//! A new connection lives for one request as a rule, and each of these spares it a system call or a
//! packet: the request is often there when the caller is accepted, a local connect is complete when
//! its call returns, and the last answer can leave together with the close. Together they brought
//! a connection of one request from 52.9 us to 43.6 us of CPU time, beside a relay in C that parses
//! nothing at 43.5 us and 47.0 us (benches/README.md, "What was tried"). Only new and ending
//! connections come here; everything between goes through tokio.

use std::io;
use std::os::fd::AsFd;

use futures_util::FutureExt as _;
use rustix::net::{RecvFlags, SendFlags};
use tokio::io::{Interest, Ready};
use tokio::net::TcpStream;

/// Reads what the kernel already holds: a caller has often sent its request before it is accepted.
///
/// # Errors
/// `WouldBlock` if nothing is there yet; else the connection is over.
pub fn read_now(socket: impl AsFd, into: &mut [u8]) -> io::Result<usize> {
    Ok(rustix::net::recv(socket, into, RecvFlags::DONTWAIT)?.0)
}

/// Writes at once: on one host a connect is complete when its call returns, so the first bytes need
/// not wait until the runtime knows.
///
/// # Errors
/// `WouldBlock` while the socket is not connected or its buffer is full; else the connection is
/// over.
pub fn write_now(socket: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    Ok(rustix::net::send(socket, bytes, flags)?)
}

/// Writes the last bytes before the socket is closed: they wait for the close, at most 200 ms, and
/// leave in one packet with it.
///
/// # Errors
/// As [`write_now`].
pub fn write_last(socket: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL | SendFlags::MORE;
    Ok(rustix::net::send(socket, bytes, flags)?)
}

/// Returns true if the peer is known to have ended its side and everything before that has been
/// read. False is no proof: the runtime may not know yet.
#[must_use]
pub fn has_ended(socket: &TcpStream) -> bool {
    // A read that did not fill its buffer has taken the mark of readable data away, unless more was
    // announced since.
    let marks = socket
        .ready(Interest::READABLE | Interest::WRITABLE)
        .now_or_never();
    let Some(Ok(marks)) = marks else {
        return false;
    };
    let unread = marks & Ready::READABLE;
    marks.is_read_closed() && !marks.is_write_closed() && unread == Ready::EMPTY
}
