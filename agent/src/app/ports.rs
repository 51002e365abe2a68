//! Builds the shared state of each configured target: rules, protocol, upstreams, secrets.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::future::BoxFuture;
use traffic_proto::port::Transport as Wire;
use traffic_proto::sidecar::{AppProtocolStrategy, InterceptEntry, Target};

use crate::addr::AppAddr;
use crate::app::settings::{Settings, protocol};
use crate::control::intercepts::publisher::{PortHandle, ProbeFuture};
use crate::control::intercepts::translate::Readability;
use crate::drain::Drain;
use crate::io::conn::Conn;
use crate::proxy::context::{AppProtocol, DetectedProtocol, PortContext, ProtocolSource};
use crate::proxy::listener::bind::PortSpec;
use crate::proxy::protocol_probe;
use crate::telemetry::access_log::Access;
use crate::tls::alpn::TlsInfo;
use crate::tls::secrets::annotations;
use crate::tls::secrets::annotations::{AppPort, Plans, PortPlan};
use crate::tls::secrets::store::Stores;
use crate::upstream::app::PlainApp;
use crate::upstream::app_tls;
use crate::upstream::app_tls::ClearHttp;
use crate::upstream::{AppError, DialApp, OpenTunnel, Transport};

/// Time for the app's answer to a protocol probe before an intercept is reviewed without it.
const PROBE_TIMEOUT: Duration = Duration::from_secs(4);

/// A port with the state its connections share.
#[derive(Debug)]
pub(crate) struct BoundPort {
    /// Target as configured.
    pub(crate) target: Target,
    /// State shared by its connections.
    pub(crate) shared: Arc<PortContext>,
}

/// Builds all ports; problems of annotations are logged here, once.
pub(crate) fn build(
    settings: &Settings,
    access: &Access,
    drain: &Drain,
    tunnels: &Arc<dyn OpenTunnel>,
) -> (Vec<BoundPort>, Stores) {
    let mut stores = Stores::default();
    let plans = tls_plans(settings);
    let ports = settings
        .targets
        .iter()
        .map(|target| {
            let plan = plans
                .get(&target.container_port.get())
                .filter(|_| target.transport == Wire::Tcp);
            let mut shared = share(
                settings,
                target,
                plan,
                &mut stores,
                drain.clone(),
                tunnels.clone(),
            );
            shared.access = access.clone();
            let shared = Arc::new(shared);
            let (declared, source) = shared.app_protocol.get();
            tracing::info!(
                port = shared.container_port,
                agent_port = shared.agent_port,
                transport = %target.transport,
                app = %app_addr(settings, target),
                protocol = declared.word(),
                source = source.word(),
                terminates_tls = shared.tls.as_ref().is_some_and(|t| t.terminates()),
                "port"
            );
            BoundPort {
                target: target.clone(),
                shared,
            }
        })
        .collect();
    (ports, stores)
}

/// Returns the TCP ports to listen on.
pub(crate) fn tcp(settings: &Settings, ports: &[BoundPort]) -> Vec<(PortSpec, Arc<PortContext>)> {
    let spec = |port: &BoundPort| PortSpec {
        port: port.shared.agent_port,
        owner: port.owner(),
        addr: None,
        probes: asks(settings, &port.shared),
    };
    ports
        .iter()
        .filter(|p| p.shared.transport == Transport::Tcp)
        .map(|p| (spec(p), p.shared.clone()))
        .collect()
}

impl BoundPort {
    /// Owner of the port for messages.
    pub(crate) fn owner(&self) -> String {
        format!(
            "container {} port {}/{}",
            self.target.container, self.target.container_port, self.target.transport
        )
    }
}

fn share(
    settings: &Settings,
    target: &Target,
    plan: Option<&PortPlan>,
    stores: &mut Stores,
    drain: Drain,
    tunnels: Arc<dyn OpenTunnel>,
) -> PortContext {
    let strategy = settings.sidecar.app_protocol_strategy;
    let (declared, source, odd) = protocol::of(target, &settings.annotations, strategy);
    if let Some(odd) = odd {
        tracing::warn!("{odd}");
    }
    let addr = app_addr(settings, target);
    // Dialling a replaced container would reach the agent's own listener.
    let (tls, app): (_, Arc<dyn DialApp>) = match plan {
        _ if target.replaced => (None, Arc::new(ReplacedApp(addr))),
        Some(plan) => {
            let (tls, app) = app_tls::compose(plan, addr, clear_http(settings, declared), stores);
            (Some(tls), app)
        }
        None => (None, Arc::new(PlainApp::new(addr))),
    };
    PortContext {
        container_port: target.container_port.get(),
        aliases: aliases(target),
        agent_port: target.listen_port(),
        routes: Arc::default(),
        transport: if target.transport == Wire::Udp {
            Transport::Udp
        } else {
            Transport::Tcp
        },
        app_protocol: DetectedProtocol::new(declared, source),
        app,
        app_away: target.replaced || target.asleep,
        tls,
        tunnels,
        access: Access::default(),
        metrics: Arc::default(),
        drain,
    }
}

fn aliases(target: &Target) -> Vec<String> {
    let of_entry = |entry: &InterceptEntry| {
        let number = entry
            .service_port
            .map_or_else(String::new, |it| it.to_string());
        let names = [&entry.container_port_name, &entry.service_port_name];
        names.map(String::clone).into_iter().chain([number])
    };
    let mut aliases = Vec::new();
    for alias in target.entries.iter().flat_map(of_entry) {
        if !alias.is_empty() && !aliases.contains(&alias) {
            aliases.push(alias);
        }
    }
    aliases
}

pub(crate) fn app_addr(settings: &Settings, target: &Target) -> AppAddr {
    let ip = settings.pod_ip.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    AppAddr(SocketAddr::new(ip, settings.app_port(target)))
}

fn clear_http(settings: &Settings, declared: AppProtocol) -> ClearHttp {
    let may_ask = may_ask_in_clear_text(settings);
    match declared {
        AppProtocol::Http1 => ClearHttp::Http1,
        AppProtocol::Http2 => ClearHttp::Http2,
        AppProtocol::Opaque => ClearHttp::Neither,
        _ if may_ask => ClearHttp::Ask,
        _ => ClearHttp::DoNotAsk,
    }
}

pub(crate) fn may_ask_in_clear_text(settings: &Settings) -> bool {
    settings.sidecar.enable_h2c_probing
        && settings.sidecar.app_protocol_strategy == AppProtocolStrategy::Http2Probe
}

/// Returns the TLS plans by container port; logs invalid annotations, which are ignored.
fn tls_plans(settings: &Settings) -> BTreeMap<u16, PortPlan> {
    let plans = read_tls_annotations(settings);
    for fault in plans.faults.iter().chain(&plans.notes) {
        tracing::warn!("{fault}");
    }
    plans
        .ports
        .into_iter()
        .map(|plan| (plan.container_port, plan))
        .collect()
}

/// Reads the TLS annotations of the ports.
pub(crate) fn read_tls_annotations(settings: &Settings) -> Plans {
    let ports: Vec<_> = settings
        .targets
        .iter()
        .filter(|t| t.transport == Wire::Tcp)
        .map(|target| {
            let container = settings
                .sidecar
                .containers
                .iter()
                .find(|c| c.name == target.container);
            let names = target
                .entries
                .iter()
                .flat_map(|e| [&e.container_port_name, &e.service_port_name]);
            AppPort {
                container_port: target.container_port.get(),
                service_ports: target
                    .entries
                    .iter()
                    .filter_map(|e| e.service_port)
                    .collect(),
                names: names.filter(|n| !n.is_empty()).cloned().collect(),
                app_protocol: declared_protocol(settings, target),
                mount_point: container
                    .map(|c| c.mount_point.clone().into())
                    .unwrap_or_default(),
            }
        })
        .collect();
    annotations::plans(
        &settings.annotations,
        &settings.sidecar.agent_name,
        &settings.root,
        &ports,
    )
}

/// Returns the declared protocol; the per-port annotation takes precedence, as everywhere.
fn declared_protocol(settings: &Settings, target: &Target) -> String {
    let key = format!("{}.{}", protocol::ANNOTATION, target.container_port);
    settings
        .annotations
        .get(&key)
        .unwrap_or(&target.app_protocol)
        .clone()
}

/// Builds the handle through which the session publishes rules.
pub(crate) fn link(settings: &Settings, port: &BoundPort) -> PortHandle {
    let shared = Arc::clone(&port.shared);
    let routes = Arc::clone(&shared.routes);
    let probe = Arc::new(ProtocolProbe {
        may_ask: may_ask_in_clear_text(settings),
        tls_seen: OnceLock::new(),
        shared,
    });
    let (probe_handle, unread) = (Arc::clone(&probe), Arc::clone(&port.shared));
    let ask = move || -> ProbeFuture {
        let probe = Arc::clone(&probe);
        // An app that does not answer in time counts as one of unknown protocol.
        Box::pin(async move { drop(tokio::time::timeout(PROBE_TIMEOUT, probe.ask()).await) })
    };
    PortHandle {
        routes,
        readability: Box::new(move || probe_handle.readability()),
        ask: Box::new(ask),
        unread: Box::new(move || unread.unread_tls()),
    }
}

/// Probe of a port's protocol before an intercept with filters is reviewed.
struct ProtocolProbe {
    shared: Arc<PortContext>,
    may_ask: bool,
    /// The app of a port declared as HTTP/2, which leaves TLS open, was asked, and answered in TLS.
    tls_seen: OnceLock<bool>,
}

impl ProtocolProbe {
    /// Returns true if the app has to be asked: nothing declares its protocol; or it is declared as
    /// HTTP/2 and a secret is configured, so that it may well be in TLS.
    fn is_unknown(&self) -> bool {
        let shared = &*self.shared;
        let reads = shared.tls.as_ref().is_some_and(|tls| tls.in_force());
        // Terminated TLS is parsed by ALPN, and UDP has no requests, so neither needs a probe.
        if reads || !self.may_ask || shared.transport == Transport::Udp {
            return false;
        }
        match shared.app_protocol.get() {
            (AppProtocol::Unknown, _) => true,
            (AppProtocol::Http2, source) => {
                source != ProtocolSource::Probe
                    && shared.tls.is_some()
                    && self.tls_seen.get().is_none()
            }
            _ => false,
        }
    }

    async fn ask(&self) {
        if !self.is_unknown() {
            return;
        }
        if self.shared.app_protocol.get().0 == AppProtocol::Unknown {
            protocol_probe::probe(&self.shared).await;
        } else if let Some(in_tls) = protocol_probe::speaks_tls(&self.shared).await {
            self.tls_seen.get_or_init(|| in_tls);
        }
    }

    /// Returns if requests can be told apart on the port. They cannot where it speaks TLS and the
    /// agent has no valid certificate for it.
    fn readability(&self) -> Readability {
        let (shared, tls) = (&*self.shared, self.shared.tls.as_ref());
        let speaks_tls = shared.app_protocol.get().0 == AppProtocol::Tls
            || self.tls_seen.get() == Some(&true)
            || tls.is_some_and(|tls| tls.is_certain());
        if !speaks_tls && self.is_unknown() {
            return Readability::Unknown;
        }
        // Clear text can be parsed, and so can TLS with a valid certificate.
        if !speaks_tls || tls.is_some_and(|tls| tls.in_force()) {
            return Readability::Readable;
        }
        Readability::Unreadable(match tls.and_then(|tls| tls.fault()) {
            Some(fault) => format!("port {} speaks TLS: {fault}", shared.container_port),
            None => annotations::advice(shared.container_port),
        })
    }
}

/// Returns true if the app may be probed, because nothing declares its protocol.
fn asks(settings: &Settings, shared: &PortContext) -> bool {
    shared.transport == Transport::Tcp
        && shared.tls.is_none()
        && shared.app_protocol.get().0 == AppProtocol::Unknown
        && may_ask_in_clear_text(settings)
}

/// The app of a replaced container: it does not exist, and dialling its port would reach the agent
/// itself.
#[derive(Clone, Copy, Debug)]
struct ReplacedApp(AppAddr);

impl DialApp for ReplacedApp {
    fn dial<'a>(&'a self, _hello: Option<&'a TlsInfo>) -> BoxFuture<'a, Result<Conn, AppError>> {
        let refused = io::Error::new(
            io::ErrorKind::ConnectionRefused,
            "the container is replaced by an intercept",
        );
        let error = AppError::Connect {
            addr: self.0,
            source: refused,
        };
        Box::pin(async move { Err(error) })
    }

    fn plain_addr(&self) -> Option<AppAddr> {
        None
    }
}
