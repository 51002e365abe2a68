//! The app's end of a flow: a socket of its own, so that the app sees one peer for each caller, in
//! the IP family in which the caller came. A pod has an address of either family, and an app may
//! listen on one of them only, or on each with another socket. A caller of the other family than
//! the configured address goes where it would without us; if the app refuses it there, it is served
//! at the configured address, and so are those that follow.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use socket2::SockRef;
use tokio::net::UdpSocket;
use tokio::sync::Notify;

use crate::proxy::context::PortContext;
use crate::proxy::udp::packet::Local;

/// Answers taken in one turn before other flows run.
const MAX_ANSWERS_PER_TURN: usize = 64;

/// Whether the app of a port has refused callers of the other family where they came, and answered
/// them at the configured address.
#[derive(Clone, Debug, Default)]
pub(crate) struct OneFamily(Arc<AtomicBool>);

/// The sockets of a flow towards the app: one, or one for each place where the app may be.
#[derive(Debug)]
pub(crate) struct AppEnd {
    /// Where the caller came, and the configured address; the latter alone where both are one.
    places: Vec<Place>,
    /// Index of the place that is used.
    current: AtomicUsize,
    /// The app has answered at the current place.
    is_settled: AtomicBool,
    turned: Notify,
    one_family: OneFamily,
}

#[derive(Debug)]
struct Place {
    addr: SocketAddr,
    /// Opened when it is first needed.
    socket: OnceLock<UdpSocket>,
}

impl AppEnd {
    /// Opens the socket for a caller that came to `local`.
    pub(crate) fn open(
        shared: &PortContext,
        local: Option<Local>,
        one_family: &OneFamily,
    ) -> io::Result<Self> {
        let app = shared.app.plain_addr().ok_or_else(|| {
            io::Error::other("the app's port uses TLS, which does not exist over UDP")
        })?;
        let places: Vec<Place> = other_place(app.0, local)
            .into_iter()
            .chain([app.0])
            .map(Place::at)
            .collect();
        let configured = places.len() - 1;
        let first = if one_family.0.load(Ordering::Relaxed) {
            configured
        } else {
            0
        };
        let end = Self {
            places,
            current: AtomicUsize::new(first),
            is_settled: AtomicBool::new(false),
            turned: Notify::new(),
            one_family: one_family.clone(),
        };
        end.socket(first)?;
        Ok(end)
    }

    /// Sends a datagram, to the other place if the app refuses it at the current one.
    pub(crate) fn send(&self, datagram: &[u8]) {
        let at = self.current.load(Ordering::Relaxed);
        if self.send_at(at, datagram) {
            return;
        }
        self.turn(at);
        // After a second refusal the datagram is lost, as on any network.
        self.send_at(self.current.load(Ordering::Relaxed), datagram);
    }

    /// Takes the app's answers for as long as a socket lasts.
    pub(crate) async fn receive(&self, mut take: impl FnMut(&UdpSocket) -> io::Result<()>) {
        loop {
            let at = self.current.load(Ordering::Relaxed);
            let Ok(socket) = self.socket(at) else {
                return;
            };
            tokio::select! {
                ready = socket.readable() => if ready.is_err() {
                    return;
                },
                () = self.turned.notified() => continue,
            }
            for _ in 0..MAX_ANSWERS_PER_TURN {
                match take(socket) {
                    Ok(()) => self.answered(at),
                    // The app's port is closed for now: the next datagram tries again. Most often
                    // that is seen there, because an error alone does not wake a reader.
                    Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => self.turn(at),
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => {
                        tracing::debug!(%error, "socket to the app failed");
                        return;
                    }
                }
            }
            tokio::task::yield_now().await;
        }
    }

    fn has_choice(&self) -> bool {
        self.places.len() > 1
    }

    /// Returns false if the app is known to have refused it. Within a host it refuses before the
    /// call returns.
    fn send_at(&self, at: usize, datagram: &[u8]) -> bool {
        let Ok(socket) = self.socket(at) else {
            return false;
        };
        let was_refused = send(socket, datagram);
        let is_settled = self.is_settled.load(Ordering::Relaxed) && !was_refused;
        if is_settled || !self.has_choice() {
            return true;
        }
        !matches!(socket.take_error(), Ok(Some(error)) if error.kind() == io::ErrorKind::ConnectionRefused)
    }

    fn answered(&self, at: usize) {
        if self.is_settled.swap(true, Ordering::Relaxed) || !self.has_choice() {
            return;
        }
        let is_configured = at + 1 == self.places.len();
        self.one_family.0.store(is_configured, Ordering::Relaxed);
    }

    /// Turns to the other place, unless that has happened.
    fn turn(&self, from: usize) {
        if !self.has_choice() || self.current.load(Ordering::Relaxed) != from {
            return;
        }
        self.is_settled.store(false, Ordering::Relaxed);
        self.one_family.0.store(false, Ordering::Relaxed);
        self.current.store(1 - from, Ordering::Relaxed);
        self.turned.notify_one();
    }

    fn socket(&self, at: usize) -> io::Result<&UdpSocket> {
        let place = self.places.get(at).ok_or(io::ErrorKind::NotFound)?;
        match place.socket.get() {
            Some(socket) => Ok(socket),
            None => {
                let socket = connect(place.addr)?;
                Ok(place.socket.get_or_init(|| socket))
            }
        }
    }
}

impl Place {
    fn at(addr: SocketAddr) -> Self {
        Self {
            addr,
            socket: OnceLock::new(),
        }
    }
}

/// Returns where a caller would have reached the app without us, if it came over the other family
/// than the configured address. A link-local address is of no use without its interface.
fn other_place(app: SocketAddr, local: Option<Local>) -> Option<SocketAddr> {
    let ip = local?.ip().to_canonical();
    let is_link_local = matches!(ip, std::net::IpAddr::V6(ip) if ip.is_unicast_link_local());
    let is_other = ip.is_ipv4() != app.ip().to_canonical().is_ipv4() && !is_link_local;
    is_other.then(|| SocketAddr::new(ip, app.port()))
}

fn connect(addr: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = if addr.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let socket = std::net::UdpSocket::bind(any)?;
    socket.connect(addr)?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

/// Sends a datagram, with one retry if the first try only reported that an earlier datagram was
/// refused, and returns true in that case. Uses the socket directly, because the runtime does not
/// know a new socket to be writable yet.
fn send(socket: &UdpSocket, datagram: &[u8]) -> bool {
    let socket = SockRef::from(socket);
    let sent = socket.send(datagram);
    let was_refused = sent.is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused);
    if was_refused {
        // After a second failure the datagram is lost, as on any network.
        let _ = socket.send(datagram);
    }
    was_refused
}
