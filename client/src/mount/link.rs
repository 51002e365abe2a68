//! A port of this machine that leads to the file service of a pod: each connection becomes a tunnel
//! through the manager, which the pod's agent dials at its end.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::sleep;
use traffic_proto::manager::SessionInfo;
use traffic_proto::sync::lock;

use crate::pod_tunnel::PodWay;
use crate::session::Manager;

/// Pause after a failed accept, usually for lack of descriptors.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// Volumes of a container as its pod offers them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Files {
    /// Address of the file service, as the pod sees it.
    pub(crate) address: SocketAddr,
    /// Folder of the container in it.
    pub(crate) folder: String,
}

/// The port; connections end with its last handle.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    port: u16,
    way: Arc<Mutex<Way>>,
    _serving: Arc<JoinSet<()>>,
}

/// Where new connections lead.
#[derive(Clone, Debug)]
struct Way {
    pod: PodWay,
    files: Files,
}

impl Link {
    /// Opens a port.
    ///
    /// # Errors
    /// None is free.
    pub(crate) async fn open(
        manager: Manager,
        session: &SessionInfo,
        files: Files,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        let way = Arc::new(Mutex::new(Way {
            pod: PodWay::new(manager, session),
            files,
        }));
        let mut serving = JoinSet::new();
        serving.spawn(serve(listener, way.clone()));
        Ok(Self {
            port,
            way,
            _serving: Arc::new(serving),
        })
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn folder(&self) -> String {
        lock(&self.way).files.folder.clone()
    }

    /// Leads further connections elsewhere.
    pub(crate) fn lead(&self, manager: Manager, session: &SessionInfo, files: Files) {
        *lock(&self.way) = Way {
            pod: PodWay::new(manager, session),
            files,
        };
    }
}

async fn serve(listener: TcpListener, way: Arc<Mutex<Way>>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) if is_ours(&stream, peer) => {
                    let Way { pod, files } = lock(&way).clone();
                    connections.spawn(async move {
                        match pod.carry(stream, &[files.address]).await {
                            Ok(carried) => tracing::debug!(?carried, "connection to the volumes ended"),
                            Err(why) => tracing::debug!("the volumes are not reached: {why}"),
                        }
                    });
                }
                Ok((_, peer)) => tracing::debug!(%peer, "volumes: another user's connection refused"),
                Err(error) => {
                    tracing::debug!(%error, "volumes: accept failed");
                    sleep(ACCEPT_RETRY_DELAY).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Returns true if a peer on this machine runs as the same user: the volumes may hold secrets.
fn is_ours(stream: &TcpStream, peer: SocketAddr) -> bool {
    let Ok(local) = stream.local_addr() else {
        return false;
    };
    match std::fs::read_to_string("/proc/net/tcp") {
        Ok(table) => {
            let own = rustix::process::getuid().as_raw();
            owner(&table, peer, local) == Some(own)
        }
        // Other systems have no such list.
        Err(_) => cfg!(not(target_os = "linux")),
    }
}

/// Finds the user whose socket has these ends in Linux' table of connections.
fn owner(table: &str, from: SocketAddr, to: SocketAddr) -> Option<u32> {
    let written = |address: SocketAddr| match address.ip() {
        // As a number of this machine's byte order.
        IpAddr::V4(ip) => Some(format!(
            "{:08X}:{:04X}",
            u32::from_ne_bytes(ip.octets()),
            address.port()
        )),
        IpAddr::V6(_) => None,
    };
    let (from, to) = (written(from)?, written(to)?);
    table.lines().find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let is_it = fields.next() == Some(&from) && fields.next() == Some(&to);
        is_it.then(|| fields.nth(4)?.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_of_a_connection_is_read_from_the_table() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
             \x20  0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 1\n\
             \x20  1: 0100007F:C350 0100007F:1F90 01 00000000:00000000 00:00000000 00000000  1001        0 2\n";
        let at = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        // As this machine would write it.
        let expected = cfg!(target_endian = "little").then_some(1001);
        assert_eq!(owner(table, at(50_000), at(8080)), expected);
        assert_eq!(owner(table, at(8080), at(50_000)), None);
    }

    #[tokio::test]
    async fn a_connection_of_this_process_is_ours() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let _calling = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (stream, peer) = listener.accept().await.unwrap();
        assert!(is_ours(&stream, peer));
    }
}
