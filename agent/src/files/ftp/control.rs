//! The control connection: lines in, replies out.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use traffic_core::ftp::{Command, Lines, parse};

/// Time without a command after which a connection is ended, as with stock agents; also without
/// progress of a transfer.
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_secs(300);

/// An answer: a code, and one line or several.
#[derive(Debug)]
pub(super) struct FtpReply {
    code: u16,
    lines: Vec<Vec<u8>>,
}

impl FtpReply {
    pub(super) fn line(code: u16, text: impl Into<Vec<u8>>) -> Self {
        Self::lines(code, vec![text.into()])
    }

    pub(super) fn lines(code: u16, lines: Vec<Vec<u8>>) -> Self {
        Self { code, lines }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let last = self.lines.len().saturating_sub(1);
        for (number, line) in self.lines.iter().enumerate() {
            match number {
                _ if number == last => bytes.extend(format!("{} ", self.code).as_bytes()),
                0 => bytes.extend(format!("{}-", self.code).as_bytes()),
                _ => bytes.push(b' '),
            }
            bytes.extend(line);
            bytes.extend(b"\r\n");
        }
        bytes
    }
}

pub(super) struct Control {
    socket: TcpStream,
    lines: Lines,
    /// A command that came during a transfer, to be answered behind it.
    next: Option<Vec<u8>>,
}

/// What came on the control connection during a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interruption {
    None,
    Abort,
    Gone,
}

impl Control {
    pub(super) fn new(socket: TcpStream) -> io::Result<Self> {
        socket.set_read_timeout(Some(IDLE_TIMEOUT))?;
        socket.set_write_timeout(Some(IDLE_TIMEOUT))?;
        // Clients send the end of an ABOR as urgent data, which would be missing in the line.
        rustix::net::sockopt::set_socket_oobinline(&socket, true)?;
        Ok(Self {
            socket,
            lines: Lines::default(),
            next: None,
        })
    }

    pub(super) fn socket(&self) -> &TcpStream {
        &self.socket
    }

    pub(super) fn is_v4(&self) -> io::Result<bool> {
        Ok(self.socket.local_addr()?.ip().to_canonical().is_ipv4())
    }

    pub(super) fn reply(&mut self, reply: &FtpReply) -> io::Result<()> {
        self.socket.write_all(&reply.bytes())
    }

    /// The next command; none at the end of the connection, and after a time without one.
    pub(super) fn next_line(&mut self) -> io::Result<Option<Vec<u8>>> {
        if let Some(line) = self.next.take() {
            return Ok(Some(line));
        }
        loop {
            match self.lines.next_line() {
                Ok(Some(line)) => return Ok(Some(line.to_vec())),
                Ok(None) => {}
                Err(too_long) => {
                    self.reply(&FtpReply::line(500, too_long.to_string()))?;
                    return Ok(None);
                }
            }
            match self.fill() {
                Ok(0) => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.reply(&FtpReply::line(421, "no command for 5 minutes"))?;
                    return Ok(None);
                }
                other => other?,
            };
        }
    }

    /// Returns true while a transfer has to look for commands: one that waits is enough.
    pub(super) fn is_watched(&self) -> bool {
        self.next.is_none()
    }

    /// Takes what arrived during a transfer.
    pub(super) fn interruption(&mut self) -> Interruption {
        if !matches!(self.fill(), Ok(1..)) {
            return Interruption::Gone;
        }
        match self.lines.next_line() {
            Ok(None) => Interruption::None,
            Ok(Some(line)) if parse(line) == Ok(Command::Abor) => Interruption::Abort,
            Ok(Some(line)) => {
                self.next = Some(line.to_vec());
                Interruption::None
            }
            Err(_) => Interruption::Gone,
        }
    }

    fn fill(&mut self) -> io::Result<usize> {
        let mut chunk = [0; 2048];
        loop {
            match self.socket.read(&mut chunk) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(n) => {
                    self.lines.push(chunk.get(..n).unwrap_or_default());
                    return Ok(n);
                }
                error => return error,
            }
        }
    }
}
