//! Netlink by hand: messages with attributes, a socket, dumps. Enough for nf_tables and for reading
//! interfaces, and nothing else, so that the program needs no C library of netlink's and no other
//! program.
//!
//! Layout: `linux/netlink.h`. A message is a 16-byte header and a body; a body is a fixed part and
//! attributes, each `length, kind, payload` padded to four bytes. Numbers are in the host's order
//! unless a subsystem says otherwise.

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt,
};

/// Flag of a request to the kernel.
pub const REQUEST: u16 = 0x1;
/// Flag that asks for an answer also when all went well.
pub const ACK: u16 = 0x4;
/// Flag that asks for every object.
pub const DUMP: u16 = 0x300;
/// Flag that creates what does not exist.
pub const CREATE: u16 = 0x400;
/// Flag that puts the object behind the others.
pub const APPEND: u16 = 0x800;

const HEADER: usize = 16;
const KIND_ERROR: u16 = 2;
const KIND_DONE: u16 = 3;
const FLAG_DUMP_INTERRUPTED: u16 = 0x10;
/// Mask of an attribute's kind: its two upper bits are flags.
const ATTRIBUTE_KIND: u16 = 0x3fff;
/// Time for an answer: the kernel answers at once or not at all, and this keeps a broken sandbox
/// from hanging the pod.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
const BUFFER: usize = 1 << 16;
/// Room for one transaction with some thousand rules.
const TRANSACTION_ROOM: usize = 8 << 20;

/// Bytes of attributes under construction.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Attributes(pub Vec<u8>);

impl Attributes {
    /// Adds raw bytes that are no attribute: the fixed part in front of them.
    pub fn fixed(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self.pad();
        self
    }

    /// Adds an attribute with these bytes.
    pub fn bytes(mut self, kind: u16, payload: &[u8]) -> Self {
        // The length counts the header, not the padding.
        let length = u16::try_from(4 + payload.len()).unwrap_or(u16::MAX);
        debug_assert!(
            usize::from(length) == 4 + payload.len(),
            "no attribute of ours comes near 64 KiB"
        );
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(payload);
        self.pad();
        self
    }

    /// Adds a number in network order, as nf_tables wants its numbers.
    pub fn be32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// Adds a text with its closing zero.
    pub fn text(self, kind: u16, text: &str) -> Self {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    /// Adds attributes within an attribute.
    pub fn nest(self, kind: u16, inner: Self) -> Self {
        self.bytes(kind, &inner.0)
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

/// Iterates over the attributes in `bytes`: kind and payload. Stops at the first one that does not
/// fit.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(read16(bytes, 0)?);
        let kind = read16(bytes, 2)? & ATTRIBUTE_KIND;
        let payload = bytes.get(4..length)?;
        // The last attribute may come without its padding.
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    })
}

/// Payload of the first attribute of this kind.
pub fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes)
        .find(|(it, _)| *it == kind)
        .map(|(_, payload)| payload)
}

/// Text in the first attribute of this kind, without its closing zero.
pub fn find_text(bytes: &[u8], kind: u16) -> Option<&str> {
    let payload = find(bytes, kind)?;
    let end = payload
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(payload.len());
    std::str::from_utf8(&payload[..end]).ok()
}

/// Number in network order in the first attribute of this kind.
pub fn find_be32(bytes: &[u8], kind: u16) -> Option<u32> {
    Some(u32::from_be_bytes(find(bytes, kind)?.try_into().ok()?))
}

fn read16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn read32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Builds one message, ready to be sent.
pub fn message(kind: u16, flags: u16, sequence: u32, body: &Attributes) -> Vec<u8> {
    let length = u32::try_from(HEADER + body.0.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(HEADER + body.0.len());
    bytes.extend_from_slice(&length.to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&sequence.to_ne_bytes());
    // Port id 0: the kernel puts in the socket's.
    bytes.extend_from_slice(&0u32.to_ne_bytes());
    bytes.extend_from_slice(&body.0);
    bytes
}

/// Message received: its kind, flags, sequence number and body.
struct Received<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    body: &'a [u8],
}

fn received(mut bytes: &[u8]) -> impl Iterator<Item = Received<'_>> {
    std::iter::from_fn(move || {
        let length = usize::try_from(read32(bytes, 0)?).ok()?;
        let body = bytes.get(HEADER..length)?;
        let one = Received {
            kind: read16(bytes, 4)?,
            flags: read16(bytes, 6)?,
            sequence: read32(bytes, 8)?,
            body,
        };
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(one)
    })
}

impl Received<'_> {
    /// Verdict of the kernel on our message: nothing wrong, or an error.
    fn verdict(&self) -> Result<(), Errno> {
        match read32(self.body, 0).map_or(0, |code| code.cast_signed()) {
            0 => Ok(()),
            // The kernel sends its errors negated.
            code => Err(Errno::from_raw_os_error(code.saturating_neg())),
        }
    }
}

/// Refusal by the kernel of message `sequence` of a transaction, or of all of it (`None`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// Number of the message.
    pub sequence: Option<u32>,
    /// Error of the kernel.
    pub errno: Errno,
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Self {
            sequence: None,
            errno,
        }
    }
}

/// Netlink socket to one subsystem of the kernel.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    buffer: RefCell<Vec<u8>>,
}

impl Socket {
    /// Opens one. Errors mean that the kernel (or the sandbox) has no such subsystem.
    pub fn open(protocol: Option<Protocol>) -> Result<Self, Errno> {
        Self::subscribed(protocol, 0)
    }

    /// Opens one that also hears the events of these groups, a bit for each.
    pub fn subscribed(protocol: Option<Protocol>, groups: u32) -> Result<Self, Errno> {
        let fd = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            protocol,
        )?;
        rustix::net::bind(&fd, &SocketAddrNetlink::new(0, groups))?;
        sockopt::set_socket_timeout(&fd, sockopt::Timeout::Recv, Some(ANSWER_TIMEOUT))?;
        Ok(Self {
            fd,
            buffer: RefCell::new(vec![0; BUFFER]),
        })
    }

    /// Requests a dump and gives all bodies of the answer.
    ///
    /// Errors: the kernel's; `EINTR` when the objects kept changing while they were read.
    pub fn dump(&self, kind: u16, body: &Attributes) -> Result<Vec<Vec<u8>>, Errno> {
        // Interfaces and rules settle quickly; who never sees them settle is told so.
        for sequence in 1..=10 {
            self.send(&message(kind, REQUEST | DUMP, sequence, body))?;
            if let Some(all) = self.answers(sequence)? {
                return Ok(all);
            }
        }
        Err(Errno::INTR)
    }

    /// Reads the answers to one dump request, or `None` when it has to be repeated.
    fn answers(&self, sequence: u32) -> Result<Option<Vec<Vec<u8>>>, Errno> {
        let mut all = Vec::new();
        let mut whole = true;
        loop {
            let bytes = self.receive()?;
            for one in received(&bytes).filter(|one| one.sequence == sequence) {
                // Objects changed between two parts of the dump: some may be missing or there
                // twice.
                whole &= one.flags & FLAG_DUMP_INTERRUPTED == 0;
                match one.kind {
                    KIND_DONE => return Ok(whole.then_some(all)),
                    KIND_ERROR => one.verdict()?,
                    _ => all.push(one.body.to_vec()),
                }
            }
        }
    }

    /// Asks for one object and gives the body of the answer.
    pub fn ask(&self, kind: u16, body: &Attributes) -> Result<Vec<u8>, Errno> {
        let sequence = 77;
        self.send(&message(kind, REQUEST, sequence, body))?;
        loop {
            let bytes = self.receive()?;
            for one in received(&bytes).filter(|one| one.sequence == sequence) {
                match one.kind {
                    KIND_ERROR => one.verdict()?,
                    _ => return Ok(one.body.to_vec()),
                }
            }
        }
    }

    /// Sends a whole transaction and waits for the kernel's word on it. `last` is the message that
    /// asked for an acknowledgement; the kernel speaks of all others only when it refuses them.
    pub fn transact(&self, bytes: &[u8], last: u32) -> Result<(), Refusal> {
        // Without NET_ADMIN this is refused, and so will be the transaction.
        let _ = sockopt::set_socket_send_buffer_size_force(&self.fd, TRANSACTION_ROOM);
        let _ = sockopt::set_socket_recv_buffer_size_force(&self.fd, TRANSACTION_ROOM);
        self.send(bytes)?;
        loop {
            let answer = self.receive()?;
            for one in received(&answer).filter(|one| one.kind == KIND_ERROR) {
                match one.verdict() {
                    Err(errno) => {
                        return Err(Refusal {
                            sequence: Some(one.sequence),
                            errno,
                        });
                    }
                    Ok(()) if one.sequence == last => return Ok(()),
                    Ok(()) => {}
                }
            }
        }
    }

    fn send(&self, bytes: &[u8]) -> Result<(), Errno> {
        rustix::io::retry_on_intr(|| {
            rustix::net::sendto(
                &self.fd,
                bytes,
                SendFlags::empty(),
                &SocketAddrNetlink::new(0, 0),
            )
        })
        .map(drop)
    }

    /// Bodies of the events that are here already.
    pub fn events(&self) -> Result<Vec<Vec<u8>>, Errno> {
        let mut bodies = Vec::new();
        loop {
            match self.receive_with(RecvFlags::DONTWAIT) {
                Ok(bytes) => bodies.extend(received(&bytes).map(|one| one.body.to_vec())),
                Err(Errno::AGAIN) => return Ok(bodies),
                Err(errno) => return Err(errno),
            }
        }
    }

    fn receive(&self) -> Result<Vec<u8>, Errno> {
        self.receive_with(RecvFlags::empty())
    }

    fn receive_with(&self, flags: RecvFlags) -> Result<Vec<u8>, Errno> {
        let mut buffer = self.buffer.borrow_mut();
        let (got, _) =
            rustix::io::retry_on_intr(|| rustix::net::recv(&self.fd, &mut buffer[..], flags))?;
        Ok(buffer[..got].to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn attributes_are_read_as_they_were_written() {
        let made = Attributes::default()
            .text(1, "lo")
            .be32(2, 7)
            .nest(3, Attributes::default().bytes(9, &[1, 2, 3]));
        assert_eq!(find_text(&made.0, 1), Some("lo"));
        assert_eq!(find_be32(&made.0, 2), Some(7));
        assert_eq!(find(find(&made.0, 3).unwrap(), 9), Some(&[1, 2, 3][..]));
        assert_eq!(find(&made.0, 4), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for one in received(&bytes) {
                let _ = one.verdict();
                for (_, payload) in attributes(one.body) {
                    let _ = (find_text(payload, 1), find_be32(payload, 1));
                }
            }
            let _ = attributes(&bytes).count();
        }
    }
}
