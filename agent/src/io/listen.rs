//! Listening sockets: options, both address families, and accepting for the agent's own servers.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use rustix::io::Errno;
use socket2::{Domain, Socket, Type};

/// Pause after a failed accept of the agent's own servers: out of descriptors, usually, so that
/// trying again at once would only spin.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// Options of a TCP listener.
#[derive(Clone, Copy, Debug)]
pub struct ListenOptions {
    /// Length of the accept queue; the kernel caps it at `net.core.somaxconn`.
    pub backlog: i32,
    /// Several listeners share the port (`SO_REUSEPORT`).
    pub share: bool,
    /// Accepted sockets inherit `TCP_NODELAY`, which saves a system call for each.
    pub nodelay: bool,
}

/// Opens a TCP listener. The unspecified IPv6 address takes IPv4 callers too, others do not.
///
/// # Errors
/// The kernel's error; `AddrInUse` if the port is taken.
pub fn tcp(addr: SocketAddr, options: ListenOptions) -> io::Result<TcpListener> {
    let socket = socket(addr, Type::STREAM, is_any_v6(addr))?;
    listen(socket, addr, options)
}

/// Opens one TCP listener for each family of `v4` and `v6`, all on one port; IPv6 is left out if
/// the pod has none.
///
/// # Errors
/// The kernel's error; `AddrInUse` if the port is taken in one of the families.
pub fn tcp_families(
    (v4, v6): (Ipv4Addr, Ipv6Addr),
    port: u16,
    options: ListenOptions,
) -> io::Result<Vec<TcpListener>> {
    let open = |ip: IpAddr, port| {
        let addr = SocketAddr::new(ip, port);
        listen(socket(addr, Type::STREAM, false)?, addr, options)
    };
    let first = open(v4.into(), port)?;
    // The kernel's choice for port 0; the other family has to use the same.
    let port = first.local_addr()?.port();
    match open(v6.into(), port) {
        Ok(second) => Ok(vec![first, second]),
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => Err(e),
        // A pod without IPv6.
        Err(_) => Ok(vec![first]),
    }
}

/// Opens a UDP socket for every address of both families.
///
/// # Errors
/// The kernel's error; `AddrInUse` if the port is taken.
pub fn udp(port: u16) -> io::Result<UdpSocket> {
    any_address(port, |addr| {
        let socket = socket(addr, Type::DGRAM, is_any_v6(addr))?;
        socket.bind(&addr.into())?;
        Ok(socket.into())
    })
}

/// Opens a socket for every address of both families, or of IPv4 alone if the kernel or the pod has
/// no IPv6.
///
/// # Errors
/// Errors of `open`.
pub fn any_address<T>(port: u16, open: impl Fn(SocketAddr) -> io::Result<T>) -> io::Result<T> {
    match open(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)) {
        Err(e) if is_without_ipv6(&e) => open(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port)),
        opened => opened,
    }
}

/// Waits for the next connection of one of the agent's own servers. A failed accept is retried.
pub async fn accept(listener: &tokio::net::TcpListener, server: &str) -> tokio::net::TcpStream {
    loop {
        match listener.accept().await {
            Ok((socket, _)) => return socket,
            Err(error) => {
                tracing::debug!(%error, server, "accept failed");
                tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
            }
        }
    }
}

fn socket(addr: SocketAddr, kind: Type, takes_v4: bool) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(addr),
        kind.nonblocking().cloexec(),
        None,
    )?;
    if addr.is_ipv6() {
        // One socket for `::` serves both families; others would clash with IPv4's on the same port.
        socket.set_only_v6(!takes_v4)?;
    }
    Ok(socket)
}

fn listen(socket: Socket, addr: SocketAddr, options: ListenOptions) -> io::Result<TcpListener> {
    // A restarted container must not wait for connections in TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(options.share)?;
    socket.set_tcp_nodelay(options.nodelay)?;
    socket.bind(&addr.into())?;
    socket.listen(options.backlog)?;
    Ok(socket.into())
}

fn is_any_v6(addr: SocketAddr) -> bool {
    addr.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED)
}

fn is_without_ipv6(error: &io::Error) -> bool {
    [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: ListenOptions = ListenOptions {
        backlog: 1,
        share: false,
        nodelay: false,
    };

    #[test]
    fn both_families_get_the_same_port_and_a_taken_one_is_reported() {
        let loopback = (Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST);
        let first = tcp_families(loopback, 0, OPTIONS).unwrap();
        let port = first[0].local_addr().unwrap().port();
        assert!(first.iter().all(|l| l.local_addr().unwrap().port() == port));
        let again = tcp_families(loopback, port, OPTIONS).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn a_pod_without_ipv6_gets_ipv4() {
        let opened = any_address(7, |addr| match addr.ip() {
            IpAddr::V6(_) => Err(Errno::AFNOSUPPORT.into()),
            IpAddr::V4(_) => Ok(addr),
        });
        assert_eq!(opened.unwrap(), "0.0.0.0:7".parse().unwrap());
        let taken = any_address(7, |_| Err::<(), _>(Errno::ADDRINUSE.into()));
        assert_eq!(taken.unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }
}
