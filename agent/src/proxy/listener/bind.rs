//! Binds a port with the socket options of the data path, and accepts.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};

use crate::addr::{AppAddr, Caller};
use crate::io::conn::reset_when_dropped;
use crate::io::listen;
use crate::io::listen::ListenOptions;
use crate::upstream::app::OwnPort;
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::SockRef;
use tokio::net::TcpStream;

/// Listen backlog; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// A port to listen on.
#[derive(Clone, Debug)]
pub struct PortSpec {
    /// Port number; 0 lets the kernel choose.
    pub port: u16,
    /// Owner for messages: the container and its port.
    pub owner: String,
    /// The address to listen on; `None` for every address of both families.
    pub addr: Option<IpAddr>,
    /// The app may be probed for clear-text HTTP/2 once an intercept needs it.
    pub probes: bool,
}

/// A port that could not be bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another process has the port.
    #[error(
        "agent port {port} for {owner} is already in use in this pod; free it, or give this entry \
        another agentPort"
    )]
    Taken {
        /// The port in use.
        port: u16,
        /// The owner the port was meant for.
        owner: String,
    },
    /// The kernel refused for another reason.
    #[error("agent port {port} for {owner} cannot be bound: {source}")]
    Refused {
        /// The refused port.
        port: u16,
        /// The owner the port was meant for.
        owner: String,
        /// The kernel's error.
        source: io::Error,
    },
}

/// An accepted connection.
#[derive(Debug)]
pub struct Accepted {
    /// The socket.
    pub io: TcpStream,
    /// The downstream peer.
    pub caller: Caller,
}

impl PortSpec {
    /// Binds one listener for each worker. Several share the port (`SO_REUSEPORT`), so it is bound
    /// without sharing first: a port that belongs to another process, or another instance of the
    /// agent, has to be noticed.
    ///
    /// # Errors
    /// See [`BindError`].
    pub fn bind(&self, workers: usize) -> Result<Vec<TcpListener>, BindError> {
        let failed = |source| self.failed(source);
        let first = self
            .somewhere(self.port, |addr| bind(addr, false))
            .map_err(failed)?;
        if workers < 2 {
            return Ok(vec![first]);
        }
        let port = first.local_addr().map_err(failed)?.port();
        // Closed, because the port cannot be shared while a listener without SO_REUSEPORT holds it.
        drop(first);
        (0..workers)
            .map(|_| {
                self.somewhere(port, |addr| bind(addr, true))
                    .map_err(failed)
            })
            .collect()
    }

    fn failed(&self, source: io::Error) -> BindError {
        let (port, owner) = (self.port, self.owner.clone());
        match source.kind() {
            io::ErrorKind::AddrInUse => BindError::Taken { port, owner },
            _ => BindError::Refused {
                port,
                owner,
                source,
            },
        }
    }

    fn somewhere<T>(&self, port: u16, bind: impl Fn(SocketAddr) -> io::Result<T>) -> io::Result<T> {
        match self.addr {
            Some(addr) => bind(SocketAddr::new(addr, port)),
            None => listen::any_address(port, bind),
        }
    }
}

fn bind(addr: SocketAddr, share: bool) -> io::Result<TcpListener> {
    let options = ListenOptions {
        backlog: BACKLOG,
        share,
        nodelay: true,
    };
    listen::tcp(addr, options)
}

impl Accepted {
    /// Resets the connection.
    pub fn refuse(self) {
        reset_when_dropped(&self.io);
    }

    /// Returns true for one of the agent's own connections to the app, sent back by the redirect.
    /// Carrying it would open the next one, and so on.
    #[must_use]
    pub fn is_our_own(&self, app: Option<AppAddr>) -> bool {
        let Some(app) = app else { return false };
        // A cheap test first: only dials to the own pod can loop.
        if self.caller.0.ip() != app.0.ip() || !OwnPort::is_marked(self.caller.0.port()) {
            return false;
        }
        // Another process of the pod may use the same local address and port towards another
        // destination, so the destination is compared too: as dialled if the kernel remembers a
        // translation, else as accepted.
        let socket = SockRef::from(&self.io);
        let dialled = socket
            .original_dst_v4()
            .or_else(|_| socket.original_dst_v6())
            .ok()
            .and_then(|a| a.as_socket());
        dialled
            .or_else(|| self.io.local_addr().ok())
            .is_some_and(|to| Caller::new(to).0 == app.0)
    }
}

/// Raises the soft limit of file descriptors to the hard one: each connection takes two.
pub fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    ) {
        tracing::debug!(%error, "the limit of open files cannot be raised");
    }
}

/// Returns true if accepting failed for lack of descriptors or memory, which passes when
/// connections end.
#[must_use]
pub fn is_exhausted(error: &io::Error) -> bool {
    [
        Errno::MFILE,
        Errno::NFILE,
        Errno::NOBUFS,
        Errno::NOMEM,
        // No room for another watch of epoll.
        Errno::NOSPC,
    ]
    .iter()
    .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}
