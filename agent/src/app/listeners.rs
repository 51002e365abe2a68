//! Sockets that belong to no TCP port: UDP ports, the agent's gRPC API, the admin.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio_util::sync::CancellationToken;

use crate::admin::{Agent, metrics_port, server};
use crate::app::ports::BoundPort;
use crate::app::settings::{Bind, Settings};
use crate::drain::Drain;
use crate::io::listen;
use crate::io::listen::ListenOptions;
use crate::io::state_file;
use crate::limits::Limits;
use crate::proxy::context::PortContext;
use crate::proxy::listener::bind::BindError;
use crate::proxy::udp;
use crate::proxy::udp::UdpLimits;
use crate::rest_api::RestApi;
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

/// Servers of the agent.
#[derive(Debug)]
pub(crate) struct Servers {
    /// The local REST API, if one is configured and its port is free.
    pub(crate) rest_api: Option<ApiListener>,
    /// The gRPC API.
    pub(crate) grpc: ApiListener,
    /// The admin server.
    pub(crate) admin: ApiListener,
    /// The port of metrics alone, if there is to be one.
    pub(crate) metrics: Option<ApiListener>,
}

impl Servers {
    /// Binds the servers, gRPC API and admin on the wanted ports if free, else on the next free ones.
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
            rest_api: settings.sidecar.api_port.and_then(bind_rest_api),
            metrics: settings.metrics_port.and_then(bind_metrics),
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

    /// Serves the REST API on the current runtime.
    pub(crate) fn serve_rest_api(
        listener: Option<ApiListener>,
        ports: Vec<Arc<PortContext>>,
        stop: &CancellationToken,
    ) {
        let api = Arc::new(RestApi::new(ports));
        for listener in listener.into_iter().flat_map(|api| api.listeners) {
            match tokio::net::TcpListener::from_std(listener) {
                Ok(listener) => {
                    #[expect(clippy::disallowed_methods, reason = "it ends with `stop`")]
                    tokio::spawn(Arc::clone(&api).serve(listener, stop.clone()));
                }
                Err(error) => {
                    tracing::error!(%error, "the REST API cannot be served on one of its addresses")
                }
            }
        }
    }

    /// Serves the metrics on the current runtime.
    pub(crate) fn serve_metrics(
        metrics: Option<ApiListener>,
        agent: &Arc<Agent>,
        stop: &CancellationToken,
    ) {
        for listener in metrics.into_iter().flat_map(|it| it.listeners) {
            match tokio::net::TcpListener::from_std(listener) {
                Ok(listener) => {
                    #[expect(clippy::disallowed_methods, reason = "it ends with `stop`")]
                    tokio::spawn(metrics_port::serve(listener, agent.clone(), stop.clone()));
                }
                Err(error) => {
                    tracing::error!(%error, "metrics cannot be served on one of the addresses");
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
        let written = state_file::write(&dir.join("ports.json"), text.as_bytes());
        if let Err(error) = written {
            tracing::warn!(%error,
            "{}/ports.json cannot be written; `traffic-agent status` needs --admin-port", dir.display());
        }
    }
}

/// Binds the REST API on all addresses. Its port is written into the app's environment, so no other
/// will do; the pod's requests do not depend on it.
fn bind_rest_api(port: u16) -> Option<ApiListener> {
    bind_families(Bind::All, port)
        .inspect_err(|error| {
            tracing::error!(
                "apiPort {port}: {error}; the REST API is not served: set another \
                 agent REST API port (AGENT_REST_API_PORT of the traffic-manager)"
            );
        })
        .ok()
}

/// Binds the port of the metrics. Scrapers know its number, so no other will do; and as traffic goes
/// on without metrics, it is no reason to fail either.
fn bind_metrics(port: u16) -> Option<ApiListener> {
    match bind_families(Bind::All, port) {
        Ok(bound) => Some(bound),
        Err(error) => {
            tracing::error!(
                "metrics port {port}: {error}; there are no metrics, except on the admin: set \
                 metrics.port to a free port"
            );
            None
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
pub(crate) fn serve_udp(
    ports: Vec<UdpPort>,
    limits: &Limits,
    drain: &Drain,
) -> io::Result<Option<JoinHandle<()>>> {
    if ports.is_empty() {
        return Ok(None);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let limits = UdpLimits::of(limits);
    let drain = drain.clone();
    let work = move || {
        runtime.block_on(async {
            for port in ports {
                drain.carry(async move {
                    let number = port.shared.agent_port;
                    let served = match tokio::net::UdpSocket::from_std(port.socket) {
                        Ok(socket) => udp::serve(socket, port.shared, limits).await,
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
