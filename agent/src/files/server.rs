//! The listeners: every connection has a thread of its own, as many as its [`FileProtocol`] may have.
//! Only peers of this pod are served: a workstation's connection is dialled by the agent itself,
//! and a port-forward arrives on loopback.

use std::io;
use std::net::{IpAddr, Shutdown, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::drain::Drain;
use crate::files::export::Exports;
use crate::files::{ftp, sftp};

/// SFTP connections served at once; a client has one.
pub const MAX_SFTP_CONNECTIONS: usize = 32;
/// FTP connections served at once; a client has one for each open file, and two more.
pub const MAX_FTP_CONNECTIONS: usize = 64;
/// Pause after a failed accept, usually for lack of descriptors.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// A protocol by which volumes are served.
#[derive(Clone, Copy, Debug)]
pub struct FileProtocol {
    name: &'static str,
    max_connections: usize,
    serve: fn(TcpStream, &Exports) -> io::Result<()>,
}

impl FileProtocol {
    /// SFTP without SSH, as sshfs speaks it.
    pub const SFTP: Self = Self {
        name: "SFTP",
        max_connections: MAX_SFTP_CONNECTIONS,
        serve: sftp::serve,
    };
    /// FTP in passive mode.
    pub const FTP: Self = Self {
        name: "FTP",
        max_connections: MAX_FTP_CONNECTIONS,
        serve: ftp::serve,
    };

    /// Name, for messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.name
    }
}

/// Serves `exports` by `protocol` on `listeners` as tasks of `tasks`, until these end.
pub fn serve(
    protocol: FileProtocol,
    listeners: Vec<TcpListener>,
    exports: &Arc<Exports>,
    tasks: &Drain,
) {
    // Further connections wait.
    let slots = Arc::new(Semaphore::new(protocol.max_connections));
    for listener in listeners {
        let (exports, slots) = (Arc::clone(exports), Arc::clone(&slots));
        let control = tasks.clone();
        tasks.spawn(
            async move { accept_all(protocol, &listener, &exports, &slots, &control).await },
        );
    }
}

async fn accept_all(
    protocol: FileProtocol,
    listener: &TcpListener,
    exports: &Arc<Exports>,
    slots: &Arc<Semaphore>,
    tasks: &Drain,
) {
    let name = protocol.name;
    loop {
        let Ok(slot) = Arc::clone(slots).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((socket, peer)) if is_of_this_pod(peer.ip(), socket.local_addr().ok()) => {
                if let Err(error) = start(protocol, socket, Arc::clone(exports), slot, tasks) {
                    tracing::warn!(%error, "{name}: a connection cannot be served");
                }
            }
            Ok((_, peer)) => {
                tracing::info!(%peer, "{name}: connection from outside the pod refused");
            }
            Err(error) => {
                tracing::debug!(%error, "{name}: accept failed");
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
    protocol: FileProtocol,
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
        .name(protocol.name.to_ascii_lowercase())
        .spawn(move || {
            let _slot = slot;
            if let Err(error) = (protocol.serve)(socket, &exports) {
                tracing::debug!(%error, "{}: connection ended", protocol.name);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_peers_of_the_pod_are_served() {
        for (peer, local, wanted) in [
            // A port-forward, and the agent's own dial of loopback.
            ("127.0.0.1", "127.0.0.1:2222", true),
            ("::1", "[::1]:2222", true),
            ("::ffff:127.0.0.1", "[::ffff:127.0.0.1]:2222", true),
            // Its dial of the pod's address.
            ("10.244.0.7", "10.244.0.7:2222", true),
            ("::ffff:10.244.0.7", "10.244.0.7:2222", true),
            ("fd00::7", "[fd00::7]:2222", true),
            // The node, and other pods.
            ("10.244.0.1", "10.244.0.7:2222", false),
            ("10.244.0.8", "10.244.0.7:2222", false),
            ("::ffff:10.244.0.8", "[::ffff:10.244.0.7]:2222", false),
            ("fd00::8", "[fd00::7]:2222", false),
            ("10.244.0.8", "127.0.0.1:2222", false),
        ] {
            let (ip, local) = (peer.parse().unwrap(), local.parse().ok());
            assert_eq!(is_of_this_pod(ip, local), wanted, "{peer} at {local:?}");
        }
        assert!(!is_of_this_pod("10.244.0.8".parse().unwrap(), None));
    }
}
