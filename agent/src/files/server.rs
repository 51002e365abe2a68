//! The SFTP listener: every connection has a thread of its own, as many as [`MAX_CONNECTIONS`].
//! Only peers of this pod are served: a workstation's connection is dialled by the agent itself,
//! and a port-forward arrives on loopback.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Shutdown, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use traffic_core::sftp::MAX_PACKET;

use crate::drain::Drain;
use crate::files::export::Exports;
use crate::files::sftp::Session;

/// Connections served at once; further ones wait.
pub const MAX_CONNECTIONS: usize = 32;
/// Bytes of answers that are collected before they are written.
const MAX_BATCH: usize = 256 * 1024;
/// Pause after a failed accept, usually for lack of descriptors.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// Serves `exports` on `listeners` as tasks of `tasks`, until these end.
pub fn serve(listeners: Vec<TcpListener>, exports: Exports, tasks: &Drain) {
    let exports = Arc::new(exports);
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    for listener in listeners {
        let (exports, slots) = (Arc::clone(&exports), Arc::clone(&slots));
        let control = tasks.clone();
        tasks.spawn(async move { accept_all(&listener, &exports, &slots, &control).await });
    }
}

async fn accept_all(
    listener: &TcpListener,
    exports: &Arc<Exports>,
    slots: &Arc<Semaphore>,
    tasks: &Drain,
) {
    loop {
        let Ok(slot) = Arc::clone(slots).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((socket, peer)) if is_of_this_pod(peer.ip(), socket.local_addr().ok()) => {
                if let Err(error) = start(socket, Arc::clone(exports), slot, tasks) {
                    tracing::warn!(%error, "SFTP: a connection cannot be served");
                }
            }
            Ok((_, peer)) => {
                tracing::info!(%peer, "SFTP: connection from outside the pod refused");
            }
            Err(error) => {
                tracing::debug!(%error, "SFTP: accept failed");
                tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
            }
        }
    }
}

/// Returns true for loopback peers and for those that call an address of the pod from that very
/// address, as connections of the pod to itself do.
fn is_of_this_pod(peer: IpAddr, local: Option<std::net::SocketAddr>) -> bool {
    let peer = peer.to_canonical();
    peer.is_loopback() || local.is_some_and(|local| local.ip().to_canonical() == peer)
}

fn start(
    socket: tokio::net::TcpStream,
    exports: Arc<Exports>,
    slot: OwnedSemaphorePermit,
    tasks: &Drain,
) -> io::Result<()> {
    let socket = socket.into_std()?;
    socket.set_nonblocking(false)?;
    socket.set_nodelay(true)?;
    let closer = socket.try_clone()?;
    let (done, ended) = tokio::sync::oneshot::channel::<()>();
    std::thread::Builder::new()
        .name("sftp".to_owned())
        .spawn(move || {
            let _slot = slot;
            if let Err(error) = run(socket, &exports) {
                tracing::debug!(%error, "SFTP: connection ended");
            }
            drop(done);
        })?;
    // The thread blocks in a read; closing the socket ends it when the tasks are ended.
    tasks.spawn(async move {
        let _closer = CloseOnDrop(closer);
        let _ = ended.await;
    });
    Ok(())
}

struct CloseOnDrop(TcpStream);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

/// Answers the requests of one connection in order. Answers are written when no whole request is
/// waiting, so that pipelined requests share a write.
fn run(mut socket: TcpStream, exports: &Exports) -> io::Result<()> {
    let mut session = Session::new(exports);
    let (mut unread, mut answers) = (Vec::new(), Vec::new());
    let mut chunk = vec![0; 64 * 1024];
    loop {
        let n = socket.read(&mut chunk)?;
        if n == 0 {
            return Ok(());
        }
        unread.extend_from_slice(chunk.get(..n).unwrap_or_default());
        let mut done = 0;
        while let Some(packet) = whole_packet(unread.get(done..).unwrap_or_default())? {
            session.answer(packet, &mut answers);
            done += 4 + packet.len();
            if answers.len() >= MAX_BATCH {
                socket.write_all(&answers)?;
                answers.clear();
            }
        }
        unread.drain(..done);
        socket.write_all(&answers)?;
        answers.clear();
    }
}

/// Returns the first packet without its length field, if it is whole.
///
/// # Errors
/// Its length is none that the protocol allows; what follows cannot be told apart.
fn whole_packet(bytes: &[u8]) -> io::Result<Option<&[u8]>> {
    let Some((length, rest)) = bytes.split_first_chunk::<4>() else {
        return Ok(None);
    };
    let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
    if length == 0 || length > MAX_PACKET {
        let text = format!("SFTP packet of {length} bytes; 1 to {MAX_PACKET} are allowed");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok(rest.get(..length))
}
