//! Sockets that belong to no TCP port: UDP ports, the agent's gRPC API, the admin.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio_util::sync::CancellationToken;

use crate::admin::{Agent, server};
use crate::app::ports::BoundPort;
use crate::app::settings::{Bind, Settings};
use crate::drain::Drain;
use crate::io::listen;
use crate::io::listen::ListenOptions;
use crate::proxy::context::PortContext;
use crate::proxy::listener::bind::BindError;
use crate::proxy::udp;
use crate::upstream::Transport;

/// Maximum of ports tried after the wanted one.
const MAX_FOLLOWING_PORTS: u16 = 20;

/// A bound UDP port.
#[derive(Debug)]
pub(crate) struct UdpPort {
    socket: UdpSocket,
    pub(crate) address: SocketAddr,
    pub(crate) shared: Arc<PortContext>,
}

/// A server port could not be bound.
#[derive(Debug, thiserror::Error)]
#[error(
    "{name} port {wanted}: neither it nor one of the {MAX_FOLLOWING_PORTS} following ones is free \
    ({source}); set {key} to a free port"
)]
pub struct ServersError {
    name: &'static str,
    key: &'static str,
    wanted: u16,
    source: io::Error,
}

/// Listeners of one server, one for each address family, on the same port.
#[derive(Debug)]
pub(crate) struct ApiListener {
    pub(crate) listeners: Vec<TcpListener>,
    pub(crate) port: u16,
}

/// Both servers of the agent.
#[derive(Debug)]
pub(crate) struct Servers {
    /// The gRPC API.
    pub(crate) grpc: ApiListener,
    /// The admin server.
    pub(crate) admin: ApiListener,
}

impl Servers {
    /// Binds both servers, on the wanted ports if free, else on the next free ones.
    pub(crate) fn bind(settings: &Settings) -> Result<Self, ServersError> {
        let bind = |name, key, wanted| {
            bind_near(settings.bind, wanted).map_err(|source| ServersError {
                name,
                key,
                wanted,
                source,
            })
        };
        let servers = Self {
            grpc: bind("server", "envoy.serverPort", settings.server_port)?,
            admin: bind("admin", "envoy.adminPort", settings.admin_port)?,
        };
        for (name, wanted, got) in [
            ("server", settings.server_port, servers.grpc.port),
            ("admin", settings.admin_port, servers.admin.port),
        ] {
            // Port 0 asked for any port, so no warning for it.
            if wanted != 0 && wanted != got {
                tracing::warn!("{name} port {wanted} is taken; {got} is used instead");
            }
        }
        Ok(servers)
    }

    /// Serves the admin on the current runtime.
    pub(crate) fn serve_admin(admin: ApiListener, agent: &Arc<Agent>, stop: &CancellationToken) {
        for listener in admin.listeners {
            match tokio::net::TcpListener::from_std(listener) {
                Ok(listener) => {
                    #[expect(clippy::disallowed_methods, reason = "it ends with `stop`")]
                    tokio::spawn(server::serve(listener, agent.clone(), stop.clone()));
                }
                Err(error) => {
                    tracing::error!(%error, "the admin cannot be served on one of its addresses")
                }
            }
        }
    }

    /// Writes the used ports to a file for other programs of the pod.
    pub(crate) fn write_ports_file(&self, settings: &Settings) {
        let dir = settings.rooted("/tmp/agent");
        let text = format!(
            "{{\"server\": {}, \"admin\": {}}}\n",
            self.grpc.port, self.admin.port
        );
        let written = std::fs::create_dir_all(&dir).and_then(|()| {
            // Renamed into place, so that readers never see half of it.
            let fresh = dir.join(format!(".ports.{}", std::process::id()));
            std::fs::write(&fresh, text)?;
            std::fs::rename(fresh, dir.join("ports.json"))
        });
        if let Err(error) = written {
            tracing::warn!(%error,
            "{}/ports.json cannot be written; `traffic-agent status` needs --admin-port", dir.display());
        }
    }
}

fn bind_near(bind: Bind, wanted: u16) -> io::Result<ApiListener> {
    // A second agent-like sidecar in the pod may have the usual port.
    let last = wanted.saturating_add(if wanted == 0 { 0 } else { MAX_FOLLOWING_PORTS });
    let mut answer = bind_families(bind, wanted);
    for port in wanted.saturating_add(1)..=last {
        match &answer {
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => answer = bind_families(bind, port),
            _ => break,
        }
    }
    answer
}

/// Binds IPv4 and, if the pod has it, IPv6 on the same port.
pub(crate) fn bind_families(bind: Bind, port: u16) -> io::Result<ApiListener> {
    let (v4, v6) = match bind {
        Bind::Pod => (Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST),
        Bind::All => (Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED),
    };
    let options = ListenOptions {
        backlog: 128,
        share: false,
        nodelay: true,
    };
    let listeners = listen::tcp_families((v4, v6), port, options)?;
    let port = listeners
        .first()
        .map_or(Ok(port), |first| first.local_addr().map(|a| a.port()))?;
    Ok(ApiListener { listeners, port })
}

/// Binds every UDP port.
pub(crate) fn bind_udp(ports: &[BoundPort]) -> Result<Vec<UdpPort>, BindError> {
    let of_udp = ports
        .iter()
        .filter(|p| p.shared.transport == Transport::Udp);
    of_udp
        .map(|port| {
            let number = port.shared.agent_port;
            let bound = listen::udp(number).and_then(|socket| Ok((socket.local_addr()?, socket)));
            let (address, socket) = bound.map_err(|source| match source.kind() {
                io::ErrorKind::AddrInUse => BindError::Taken {
                    port: number,
                    owner: port.owner(),
                },
                _ => BindError::Refused {
                    port: number,
                    owner: port.owner(),
                    source,
                },
            })?;
            Ok(UdpPort {
                socket,
                address,
                shared: port.shared.clone(),
            })
        })
        .collect()
}

/// Serves all UDP ports on a separate thread; `None` if there are none. Datagrams in flight count
/// like connections: the drain waits for them until its deadline.
pub(crate) fn serve_udp(ports: Vec<UdpPort>, drain: &Drain) -> io::Result<Option<JoinHandle<()>>> {
    if ports.is_empty() {
        return Ok(None);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let drain = drain.clone();
    let work = move || {
        runtime.block_on(async {
            for port in ports {
                drain.carry(async move {
                    let number = port.shared.agent_port;
                    let served = match tokio::net::UdpSocket::from_std(port.socket) {
                        Ok(socket) => {
                            udp::serve(socket, port.shared, udp::UdpLimits::default()).await
                        }
                        Err(error) => Err(error),
                    };
                    if let Err(error) = served {
                        tracing::error!(port = number, %error,
                        "the UDP port has stopped; restart the pod");
                    }
                });
            }
            // Without this wait `finished` would return at once while idle.
            drain.draining().await;
            drain.finished().await;
        });
    };
    std::thread::Builder::new()
        .name("udp".to_owned())
        .spawn(work)
        .map(Some)
}
