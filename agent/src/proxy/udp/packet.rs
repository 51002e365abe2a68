//! Datagrams with the local address they were sent to. A redirect changes that address (to
//! loopback, or to the interface's), and a reply is translated back only when sent from it; a
//! socket bound to the wildcard would pick another. `IP_PKTINFO` and `IPV6_RECVPKTINFO` travel in
//! control messages without a safe wrapper, hence the unsafe code of this module.
#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};

use socket2::SockAddr;

/// The local address a datagram was sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Local {
    ip: IpAddr,
    /// Interface index, needed for link-local addresses; 0 otherwise.
    interface: u32,
}

impl Local {
    /// Returns the address alone.
    #[must_use]
    pub fn ip(&self) -> IpAddr {
        self.ip
    }
}

/// Size and addresses of one datagram.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// Bytes written into the buffer.
    pub len: usize,
    /// Sender address.
    pub from: SocketAddr,
    /// Destination address, if the kernel reports it.
    pub to: Option<Local>,
}

/// Room for one control message of either family, aligned as the kernel requires.
#[repr(C, align(8))]
struct ControlMessages([u8; 64]);

/// Enables reporting of each datagram's destination.
///
/// # Errors
/// What setsockopt answers.
pub fn report_destination(socket: BorrowedFd<'_>, of_v6: bool) -> io::Result<()> {
    let (level, name) = if of_v6 {
        (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO)
    } else {
        (libc::IPPROTO_IP, libc::IP_PKTINFO)
    };
    let on: libc::c_int = 1;
    // SAFETY: the pointer and the length describe `on`, which outlives the call.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const on).cast(),
            mem::size_of_val(&on) as libc::socklen_t,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Receives one datagram without waiting.
///
/// # Errors
/// `WouldBlock` if none is queued, else the error of recvmsg.
pub fn recv(socket: BorrowedFd<'_>, buf: &mut [u8]) -> io::Result<Received> {
    let mut control = ControlMessages([0; 64]);
    let mut iov = libc::iovec {
        iov_base: buf.as_mut_ptr().cast(),
        iov_len: buf.len(),
    };
    // SAFETY: all zero is a valid `msghdr` (null pointers with zero lengths).
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_iov = &raw mut iov;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = control.0.len() as _;
    // SAFETY: `try_init` hands out storage for an address of any family and its length; `header`
    // points to that and to buffers that outlive the call, each with its true length. On success
    // the kernel has set the length of the address it wrote, which is copied back.
    let (len, from) = unsafe {
        SockAddr::try_init(|storage, length| {
            header.msg_name = storage.cast();
            header.msg_namelen = *length;
            let n = libc::recvmsg(socket.as_raw_fd(), &raw mut header, libc::MSG_DONTWAIT);
            *length = header.msg_namelen;
            usize::try_from(n).map_err(|_| io::Error::last_os_error())
        })?
    };
    let from = from
        .as_socket()
        .ok_or_else(|| io::Error::other("a datagram without an internet address"))?;
    Ok(Received {
        len,
        from,
        to: destination(&header),
    })
}

/// Sends one datagram without waiting, from the given local address, or from the one the kernel
/// picks.
///
/// # Errors
/// `WouldBlock` if the socket's queue is full, else the error of sendmsg.
pub fn send(
    socket: BorrowedFd<'_>,
    data: &[u8],
    to: SocketAddr,
    from: Option<Local>,
) -> io::Result<()> {
    let address = SockAddr::from(to);
    let mut control = ControlMessages([0; 64]);
    let mut iov = libc::iovec {
        iov_base: data.as_ptr().cast_mut().cast(),
        iov_len: data.len(),
    };
    // SAFETY: as in `recv`.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_name = address.as_ptr().cast_mut().cast();
    header.msg_namelen = address.len();
    header.msg_iov = &raw mut iov;
    header.msg_iovlen = 1;
    if let Some(from) = from {
        header.msg_control = control.0.as_mut_ptr().cast();
        header.msg_controllen = control.0.len() as _;
        header.msg_controllen = put_source(&header, from) as _;
    }
    // SAFETY: every pointer in `header` is to something that outlives the call, with its true
    // length; the kernel only reads through them, so the casts from const are never written
    // through.
    let n = unsafe {
        libc::sendmsg(
            socket.as_raw_fd(),
            &raw const header,
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    };
    if n < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn destination(header: &libc::msghdr) -> Option<Local> {
    // SAFETY: `header` was filled in by recvmsg, so the control area holds whole messages, and the
    // macros stay within `msg_controllen`. The payload of each message is read unaligned, after its
    // type was checked.
    unsafe {
        let mut at = libc::CMSG_FIRSTHDR(header);
        while let Some(message) = at.as_ref() {
            match (message.cmsg_level, message.cmsg_type) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let info: libc::in_pktinfo = libc::CMSG_DATA(at)
                        .cast::<libc::in_pktinfo>()
                        .read_unaligned();
                    let ip = Ipv4Addr::from(u32::from_be(info.ipi_spec_dst.s_addr));
                    return Some(Local {
                        ip: ip.into(),
                        interface: 0,
                    });
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let info: libc::in6_pktinfo = libc::CMSG_DATA(at)
                        .cast::<libc::in6_pktinfo>()
                        .read_unaligned();
                    let ip = Ipv6Addr::from(info.ipi6_addr.s6_addr);
                    let interface = if ip.is_unicast_link_local() {
                        info.ipi6_ifindex as u32
                    } else {
                        0
                    };
                    return Some(Local {
                        ip: ip.into(),
                        interface,
                    });
                }
                _ => at = libc::CMSG_NXTHDR(header, at),
            }
        }
    }
    None
}

/// Writes the control message that sets the source address, and returns its length.
fn put_source(header: &libc::msghdr, from: Local) -> usize {
    match from.ip {
        IpAddr::V4(ip) => {
            // SAFETY: all zero is a valid `in_pktinfo`.
            let mut info: libc::in_pktinfo = unsafe { mem::zeroed() };
            info.ipi_spec_dst.s_addr = u32::from(ip).to_be();
            put(header, libc::IPPROTO_IP, libc::IP_PKTINFO, info)
        }
        IpAddr::V6(ip) => {
            // SAFETY: all zero is a valid `in6_pktinfo`.
            let mut info: libc::in6_pktinfo = unsafe { mem::zeroed() };
            info.ipi6_addr.s6_addr = ip.octets();
            info.ipi6_ifindex = from.interface as _;
            put(header, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info)
        }
    }
}

fn put<T>(header: &libc::msghdr, level: libc::c_int, kind: libc::c_int, payload: T) -> usize {
    let size = mem::size_of::<T>() as libc::c_uint;
    // SAFETY: the control area has 64 bytes, aligned for a header; the largest message here takes
    // 40. CMSG_FIRSTHDR is therefore not null, and header and payload are written inside the area.
    unsafe {
        let at = libc::CMSG_FIRSTHDR(header);
        (*at).cmsg_level = level;
        (*at).cmsg_type = kind;
        (*at).cmsg_len = libc::CMSG_LEN(size) as _;
        libc::CMSG_DATA(at).cast::<T>().write_unaligned(payload);
        libc::CMSG_SPACE(size) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::os::fd::AsFd;
    use std::time::Duration;

    /// Checks that a reply leaves from the address the caller used, even if the socket would pick
    /// another.
    fn echoes_from_the_asked_address(bind: &str, asked: &str, caller: &str) {
        let server = UdpSocket::bind(bind).unwrap();
        let port = server.local_addr().unwrap().port();
        report_destination(server.as_fd(), bind.starts_with('[')).unwrap();
        let caller = UdpSocket::bind(caller).unwrap();
        caller
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let asked = SocketAddr::new(asked.parse().unwrap(), port);
        caller.send_to(b"ping", asked).unwrap();
        server.peek_from(&mut [0; 4]).unwrap(); // waits for it
        let mut buf = [0; 100];
        let got = recv(server.as_fd(), &mut buf).unwrap();
        assert_eq!(&buf[..got.len], b"ping");
        send(server.as_fd(), b"pong", got.from, got.to).unwrap();
        let (n, from) = caller.recv_from(&mut buf).unwrap();
        assert_eq!((&buf[..n], from), (&b"pong"[..], asked));
    }

    #[test]
    fn replies_leave_from_the_address_that_was_asked_over_ipv4() {
        echoes_from_the_asked_address("0.0.0.0:0", "127.0.0.7", "127.0.0.1:0");
    }

    #[test]
    fn replies_leave_from_the_address_that_was_asked_over_ipv6_and_a_dual_stack_socket() {
        echoes_from_the_asked_address("[::]:0", "::1", "[::1]:0");
        echoes_from_the_asked_address("[::]:0", "127.0.0.7", "127.0.0.1:0");
    }

    #[test]
    fn nothing_there_is_would_block() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(
            recv(socket.as_fd(), &mut [0; 8]).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
    }
}
