//! Data connections: a port is opened for one, and it is taken from the client's own address alone.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::control::{Control, IDLE_TIMEOUT, Interruption};

/// Time within which a client has to open its data connection.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A port that waits for one data connection.
pub(super) struct Passive {
    listener: TcpListener,
    address: SocketAddr,
    /// Address of the control connection's peer.
    client: IpAddr,
}

impl Passive {
    /// Opens a port at the address at which the client has reached this agent.
    pub(super) fn open(control: &TcpStream) -> io::Result<Self> {
        let mut address = control.local_addr()?;
        address.set_port(0);
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            address: listener.local_addr()?,
            listener,
            client: control.peer_addr()?.ip().to_canonical(),
        })
    }

    pub(super) fn port(&self) -> u16 {
        self.address.port()
    }

    /// Text of a PASV reply; none for IPv6.
    pub(super) fn host_and_port(&self) -> Option<String> {
        let IpAddr::V4(address) = self.address.ip().to_canonical() else {
            return None;
        };
        let [a, b, c, d] = address.octets();
        let [high, low] = self.address.port().to_be_bytes();
        Some(format!("port ({a},{b},{c},{d},{high},{low})"))
    }

    /// Takes the client's connection. Those of others are closed.
    pub(super) fn accept(&self) -> io::Result<TcpStream> {
        let deadline = Instant::now() + CONNECT_TIMEOUT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            wait(&mut [PollFd::new(&self.listener, PollFlags::IN)], left)?;
            match self.listener.accept() {
                Ok((socket, peer)) if peer.ip().to_canonical() == self.client => {
                    socket.set_nonblocking(true)?;
                    return Ok(socket);
                }
                Ok((_, peer)) => {
                    tracing::info!(%peer, "FTP: data connection of another host refused");
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// A data connection in use. The control connection is watched meanwhile: a client that aborts or
/// leaves does not have to read to the end.
pub(super) struct Transfer<'c> {
    data: TcpStream,
    control: &'c mut Control,
}

/// A transfer that did not come to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TransferBreak {
    /// The client said ABOR.
    Aborted,
    /// The data connection was lost, or made no progress for too long.
    Data,
    /// The control connection was lost.
    Control,
}

impl<'c> Transfer<'c> {
    pub(super) fn new(data: TcpStream, control: &'c mut Control) -> Self {
        Self { data, control }
    }

    pub(super) fn send(&mut self, mut bytes: &[u8]) -> Result<(), TransferBreak> {
        while !bytes.is_empty() {
            self.wait_for(PollFlags::OUT)?;
            match self.data.write(bytes) {
                Ok(n) if n > 0 => bytes = bytes.get(n..).unwrap_or_default(),
                Err(error) if is_passing(&error) => {}
                _ => return Err(TransferBreak::Data),
            }
        }
        Ok(())
    }

    /// Receives bytes; none at the end.
    pub(super) fn receive(&mut self, room: &mut [u8]) -> Result<usize, TransferBreak> {
        loop {
            self.wait_for(PollFlags::IN)?;
            match self.data.read(room) {
                Ok(n) => return Ok(n),
                Err(error) if is_passing(&error) => {}
                Err(_) => return Err(TransferBreak::Data),
            }
        }
    }

    fn wait_for(&mut self, wanted: PollFlags) -> Result<(), TransferBreak> {
        loop {
            let data = PollFd::new(&self.data, wanted);
            let (data, control) = if self.control.is_watched() {
                let control = PollFd::new(self.control.socket(), PollFlags::IN);
                let mut both = [data, control];
                wait(&mut both, IDLE_TIMEOUT).map_err(|_| TransferBreak::Data)?;
                let [data, control] = both;
                (data.revents(), control.revents())
            } else {
                let mut alone = [data];
                wait(&mut alone, IDLE_TIMEOUT).map_err(|_| TransferBreak::Data)?;
                let [data] = alone;
                (data.revents(), PollFlags::empty())
            };
            if !control.is_empty() {
                match self.control.interruption() {
                    Interruption::None => {}
                    Interruption::Abort => return Err(TransferBreak::Aborted),
                    Interruption::Gone => return Err(TransferBreak::Control),
                }
            }
            if !data.is_empty() {
                return Ok(());
            }
            if control.is_empty() {
                return Err(TransferBreak::Data);
            }
        }
    }
}

fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, WouldBlock};
    matches!(error.kind(), WouldBlock | Interrupted)
}

/// Waits until one of the sockets is ready, or the time has passed.
fn wait(sockets: &mut [PollFd<'_>], time: Duration) -> io::Result<()> {
    let time = Timespec::try_from(time).map_err(|_| io::ErrorKind::InvalidInput)?;
    rustix::io::retry_on_intr(|| poll(sockets, Some(&time)))?;
    Ok(())
}
