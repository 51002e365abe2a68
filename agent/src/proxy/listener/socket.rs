//! Accepts without registering the caller's socket with the runtime: many callers have already sent
//! a request, get one response and leave; registering costs two system calls.
// Registering a descriptor is unsafe in general, because it might be closed meanwhile and its
// number be reused. The listener that owns it lives inside the `AsyncFd` and is never moved out.
#![allow(unsafe_code)]

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};

use rustix::net::{SocketFlags, acceptfrom_with};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::addr::Caller;
use crate::proxy::listener::bind::Accepted;

/// A listening port as registered by one worker.
#[derive(Debug)]
pub struct Listener(AsyncFd<TcpListener>);

impl Listener {
    /// Registers `listener`.
    ///
    /// # Errors
    /// The kernel watches no more descriptors.
    pub fn new(listener: TcpListener) -> io::Result<Self> {
        // SAFETY: the `AsyncFd` owns the listener, which keeps its descriptor open and never
        // changes it; only shared references are lent.
        let watched = unsafe { AsyncFd::register_with_interest(listener, Interest::READABLE) };
        Ok(Self(watched.map_err(io::Error::from)?))
    }

    /// Waits for the next connection.
    ///
    /// # Errors
    /// See [`crate::proxy::listener::bind::is_exhausted`]; else the caller left before it was
    /// accepted.
    pub async fn accept(&self) -> io::Result<Accepted> {
        self.0.async_io(Interest::READABLE, accepted).await
    }

    /// Accepts a queued connection without waiting.
    ///
    /// # Errors
    /// `WouldBlock` if none is queued; else as [`Self::accept`].
    pub fn accept_now(&self) -> io::Result<Accepted> {
        accepted(self.0.get_ref())
    }
}

fn accepted(listener: &TcpListener) -> io::Result<Accepted> {
    let (io, peer) = acceptfrom_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)?;
    // TCP sockets of either family have such an address.
    let peer = peer
        .and_then(|peer| SocketAddr::try_from(peer).ok())
        .ok_or(io::ErrorKind::NotConnected)?;
    Ok(Accepted {
        io: TcpStream::from(io),
        caller: Caller::new(peer),
    })
}
