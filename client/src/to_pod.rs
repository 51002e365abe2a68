//! Ports of the intercepted pod on this machine's loopback, as long as the intercept lives
//! (`--to-pod`): what the app expects beside it, such as a proxy in its pod, is where it expects
//! it.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::{Id, JoinSet};
use tokio::time::sleep;
use traffic_proto::manager::{InterceptInfo, SessionInfo};
use traffic_proto::port::Transport;
use traffic_proto::sync::lock;
use traffic_proto::tunnel::MAX_DATAGRAM;

use crate::Failure;
use crate::pod_tunnel::{PodWay, addresses};
use crate::session::Manager;

/// Pause after a failed accept, usually for lack of descriptors.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);
/// Peers whose datagrams one port carries at a time; those of further ones are dropped.
const MAX_FLOWS: usize = 256;

/// Value of `--to-pod`: a port of the pod, which has the same number here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodPort {
    number: u16,
    transport: Transport,
}

impl FromStr for PodPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, transport) = text.split_once('/').unwrap_or((text, "TCP"));
        let transport = match transport.to_ascii_uppercase().as_str() {
            "TCP" => Transport::Tcp,
            "UDP" => Transport::Udp,
            _ => return Err(format!("{transport:?} is no transport; write /TCP or /UDP")),
        };
        let number = number.parse().ok().filter(|number| *number != 0);
        let number = number
            .ok_or_else(|| format!("{text:?} is not a port number; write 1 to 65535, or 53/UDP"))?;
        Ok(Self { number, transport })
    }
}

impl std::fmt::Display for PodPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.number, self.transport)
    }
}

/// The ports; connections end with it.
#[derive(Debug, Default)]
pub(crate) struct PodPorts {
    pod: SharedPod,
    _serving: JoinSet<()>,
}

/// Where connections lead; none while no pod serves the intercept.
type SharedPod = Arc<Mutex<Option<Pod>>>;

/// The pod that serves the intercept.
#[derive(Clone, Debug)]
struct Pod {
    way: PodWay,
    ips: Vec<IpAddr>,
}

impl Pod {
    fn places(&self, port: u16) -> Vec<SocketAddr> {
        self.ips.iter().map(|ip| (*ip, port).into()).collect()
    }
}

impl PodPorts {
    /// Opens the ports.
    ///
    /// # Errors
    /// One of them is taken.
    pub(crate) fn open(ports: &[PodPort]) -> Result<Self, Failure> {
        let pod = SharedPod::default();
        let mut serving = JoinSet::new();
        for port in ports {
            let failed = |error: io::Error| {
                Failure::Failed(format!(
                    "--to-pod {port}: {error} at 127.0.0.1; end the program that has this port here"
                ))
            };
            let (pod, number) = (Arc::clone(&pod), port.number);
            match port.transport {
                Transport::Tcp => {
                    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, number));
                    let listener = listener.and_then(|it| {
                        it.set_nonblocking(true)?;
                        TcpListener::from_std(it)
                    });
                    serving.spawn(accept(listener.map_err(failed)?, pod, number));
                }
                Transport::Udp => {
                    let socket = datagrams(number, None).map_err(failed)?;
                    serving.spawn(receive(socket, pod, number));
                }
            }
        }
        Ok(Self {
            pod,
            _serving: serving,
        })
    }

    /// Leads further connections to the pod that serves the intercept now.
    pub(crate) fn lead(&self, manager: Manager, session: &SessionInfo, info: &InterceptInfo) {
        let ip = info.pod_ip.parse().ok();
        *lock(&self.pod) = ip.map(|ip| Pod {
            way: PodWay::new(manager, session),
            ips: addresses(ip),
        });
    }
}

async fn accept(listener: TcpListener, pod: SharedPod, port: u16) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(carry(stream, lock(&pod).clone(), port));
                }
                Err(error) => {
                    tracing::debug!(%error, port, "--to-pod: accept failed");
                    sleep(ACCEPT_RETRY_DELAY).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn carry(stream: TcpStream, pod: Option<Pod>, port: u16) {
    let Some(pod) = pod else {
        tracing::debug!(port, "--to-pod: no pod serves the intercept yet");
        return;
    };
    let places = pod.places(port);
    let carried = pod.way.carry(stream, &places).await;
    tracing::debug!(?carried, port, "--to-pod: connection ended");
}

/// Begins a flow for each peer that sends; its further datagrams arrive at the flow's own socket.
async fn receive(socket: UdpSocket, pod: SharedPod, port: u16) {
    let (mut flows, mut peers) = (JoinSet::new(), HashMap::<SocketAddr, Id>::new());
    let mut datagram = vec![0; MAX_DATAGRAM];
    loop {
        let (length, peer) = tokio::select! {
            received = socket.recv_from(&mut datagram) => match received {
                Ok(received) => received,
                Err(_) => continue,
            },
            Some(ended) = flows.join_next_with_id() => {
                let id = match ended {
                    Ok((id, ())) => id,
                    Err(error) => error.id(),
                };
                peers.retain(|_, of_peer| *of_peer != id);
                continue;
            }
        };
        let Some(pod) = lock(&pod).clone() else {
            continue;
        };
        // One that came before the flow's socket was there.
        if peers.contains_key(&peer) || peers.len() >= MAX_FLOWS {
            continue;
        }
        let Ok(own) = datagrams(port, Some(peer)) else {
            continue;
        };
        let first = Bytes::copy_from_slice(datagram.get(..length).unwrap_or_default());
        let flow = flows.spawn(async move {
            let places = pod.places(port);
            let carried = pod.way.carry_datagrams(own, first, &places).await;
            tracing::debug!(?carried, port, "--to-pod: datagrams of a peer ended");
        });
        peers.insert(peer, flow.id());
    }
}

/// Opens a socket of the port; one for a peer gets what that peer sends.
fn datagrams(port: u16, peer: Option<SocketAddr>) -> io::Result<UdpSocket> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)?;
    // The first one asks for the port alone, so that one that is taken is noticed.
    if peer.is_none() {
        let alone = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, port))?;
        drop(alone);
    }
    sockopt::set_socket_reuseport(&socket, true)?;
    rustix::net::bind(&socket, &SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
    if let Some(peer) = peer {
        rustix::net::connect(&socket, &peer)?;
    }
    UdpSocket::from_std(std::net::UdpSocket::from(socket))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_with_their_transport() {
        let port = |text: &str| text.parse::<PodPort>();
        assert_eq!(port("9090").unwrap().to_string(), "9090/TCP");
        assert_eq!(port("53/udp").unwrap().to_string(), "53/UDP");
        assert_eq!(port("80/TCP").unwrap(), port("80").unwrap());
        for (text, said) in [
            ("0", "1 to 65535"),
            ("http", "1 to 65535"),
            ("80:90", "1 to 65535"),
            ("80/SCTP", "/TCP or /UDP"),
        ] {
            assert!(port(text).unwrap_err().contains(said), "{text}");
        }
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_named() {
        let taken = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let datagrams = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let tcp = taken.local_addr().unwrap().port().to_string();
        let udp = format!("{}/UDP", datagrams.local_addr().unwrap().port());
        for text in [tcp, udp] {
            let error = PodPorts::open(&[text.parse().unwrap()]).unwrap_err();
            let said = error.to_string();
            assert!(said.contains(&format!("--to-pod {text}")), "{said}");
        }
    }
}
