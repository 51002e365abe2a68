//! Composition root: binds everything first, builds everything, then runs until told to stop. It
//! knows all parts; none of them knows it.

mod certificates;
mod control;
mod files;
pub mod limit_table;
mod listeners;
mod page_release;
mod ports;
pub mod readiness;
pub mod settings;
pub mod shutdown;
pub mod status;
mod summary;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use traffic_proto::fault::{Fault, Faults};
use traffic_proto::web_origin::OwnNames;

use crate::admin;
use crate::admin::{AdminCommands, ListenerInfo};
use crate::app::settings::Settings;
use crate::app::shutdown::Shutdown;
use crate::drain::Drain;
use crate::proxy::context::PortContext;
use crate::proxy::listener::bind::BindError;
use crate::proxy::listener::workers::Ports;
use crate::ready::Ready;
use crate::telemetry::access_log::{Access, AccessLog};
use crate::telemetry::logging::LogControl;
use crate::telemetry::memory::BUDGET;
use crate::telemetry::metrics::ControlMetrics;
use crate::tls::secrets::store::FolderWatch;
use crate::upstream::{OpenTunnel, Transport};

use crate::app::listeners::{Servers, ServersError, UdpPort};
use crate::app::ports::BoundPort;

/// Error that prevents the agent's start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A container port cannot be bound.
    #[error(transparent)]
    Port(#[from] BindError),
    /// A server port: neither the wanted one nor any of the following is free.
    #[error(transparent)]
    Servers(#[from] ServersError),
    /// A thread or a runtime could not be created.
    #[error(
        "the agent's threads could not be started: {0}; check the pod's process and memory limits"
    )]
    Threads(#[from] io::Error),
}

/// The agent with all sockets bound and none served yet.
#[derive(Debug)]
pub struct RunningAgent {
    settings: Settings,
    ports: Vec<BoundPort>,
    tcp: Ports,
    udp: Vec<UdpPort>,
    servers: Servers,
    tunnels: control::Tunnels,
    dns: Arc<control::Dns>,
    control: Arc<ControlMetrics>,
    ready: Ready,
    drain: Drain,
    log: LogControl,
    _secrets: Option<FolderWatch>,
}

/// Returns what `--check` refuses: invalid annotations, which a running agent ignores for the sake of
/// the other ports, and settings that cannot be meant. `strict` adds the warnings.
#[must_use]
pub fn check(settings: &Settings, strict: bool) -> Faults {
    let annotations = ports::read_tls_annotations(settings);
    let mut faults = settings::check::faults(settings);
    faults.append(annotations.faults);
    if strict {
        for warning in settings.warnings.iter().chain(&annotations.notes) {
            faults.push(warning.clone());
        }
        let strategy = settings.sidecar.app_protocol_strategy;
        let of = |target| settings::protocol::of(target, &settings.annotations, strategy);
        for odd in settings.targets.iter().filter_map(|target| of(target).2) {
            faults.push(Fault::missing(settings::protocol::ANNOTATION, odd, ""));
        }
    }
    faults
}

/// Describes the effect of the configuration: ports, protocols, TLS, servers, times, warnings.
#[must_use]
pub fn summary(settings: &Settings) -> String {
    summary::of(settings)
}

/// Binds and builds.
///
/// # Errors
/// A port is taken, or the process may not create another thread.
pub fn build(settings: Settings, log: LogControl) -> Result<RunningAgent, StartError> {
    BUDGET.set(settings.limits.memory.0 as u64);
    let drain = Drain::default();
    let control = Arc::new(ControlMetrics::default());
    let dns = Arc::new(control::Dns::new(&settings.limits, control.clone()));
    let tunnels = control::Tunnels::new(control.clone(), dns.clone());
    let (ports, stores) = ports::build(
        &settings,
        &access(&settings),
        &drain,
        &(Arc::new(tunnels.clone()) as Arc<dyn OpenTunnel>),
    );
    // Everything is bound before anything is served: a taken port fails the start instead of half
    // of the pod's traffic.
    let tcp = Ports::bind(ports::tcp(&settings, &ports), settings.workers)?;
    let udp = listeners::bind_udp(&ports)?;
    let servers = Servers::bind(&settings)?;
    servers.write_ports_file(&settings);
    // Watched from the start, so that a rotation during start-up is not missed.
    let secrets = stores.watch()?;
    let ready = Ready::default();
    Ok(RunningAgent {
        settings,
        ports,
        tcp,
        udp,
        servers,
        tunnels,
        dns,
        control,
        ready,
        drain,
        log,
        _secrets: secrets,
    })
}

impl RunningAgent {
    /// Runs until a signal or an admin command, and returns the exit code.
    ///
    /// # Errors
    /// A thread or a runtime could not be created.
    pub fn run(self) -> Result<u8, StartError> {
        // Not ready before the first arrival: replicas must be known to the manager before they
        // receive traffic.
        let blocker = self.ready.block("arrival at the traffic-manager");
        let listeners = self.listener_infos();
        let settings = &self.settings;
        let running = self.tcp.run(&self.drain)?;
        let udp = listeners::serve_udp(self.udp, &settings.limits, &self.drain)?;
        let commands = Arc::new(AdminCommands::default());
        let agent = Arc::new(admin::Agent {
            version: crate::VERSION,
            workload: settings.sidecar.agent_name.clone(),
            namespace: settings.sidecar.namespace.clone(),
            pod: settings.pod_name.clone(),
            names: OwnNames::new(&settings.pod_name, settings.pod_ip),
            manager: control::manager_address(settings),
            started: Instant::now(),
            workers: settings.workers,
            listeners,
            ports: self.ports.iter().map(|p| p.shared.clone()).collect(),
            control: self.control.clone(),
            certificates: Arc::new(certificates::LoadedCertificates::of(&self.ports)),
            ready: self.ready.clone(),
            drain: self.drain.clone(),
            log: self.log.clone(),
            config: settings.to_json(),
            commands: commands.clone(),
        });
        let of_tcp = self
            .ports
            .iter()
            .filter(|p| p.shared.transport == Transport::Tcp);
        let leaving = Shutdown {
            drain: self.drain.clone(),
            ready: self.ready.clone(),
            commands,
            lame_duck: settings.sidecar.drain.lame_duck,
            grace: settings.sidecar.drain.grace,
            app_ports: of_tcp.map(|p| p.shared.container_port).collect(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        // Separate from the data path's drain, so that control tasks outlive open connections.
        let tasks = Drain::default();
        let code = runtime.block_on(async {
            let stop = CancellationToken::new();
            let admin_port = self.servers.admin.port;
            Servers::serve_admin(self.servers.admin, &agent, &stop);
            Servers::serve_rest_api(self.servers.rest_api, agent.ports.clone(), &stop);
            Servers::serve_metrics(self.servers.metrics, &agent, &stop);
            let control = control::ControlPath {
                settings,
                ports: &self.ports,
                tunnels: self.tunnels,
                dns: self.dns,
                admin_port,
                metrics: self.control,
                log: self.log,
                blocker,
                grpc: self.servers.grpc,
                workers: running.runtimes().to_vec(),
            };
            let depart = control.start(&tasks);
            let ports = self.ports.iter().map(|p| p.shared.clone()).collect();
            tasks.spawn(page_release::release_startup_pages(
                ports,
                self.ready.clone(),
            ));
            leaving.run(shutdown::signals(), depart).await.exit_code()
        });
        tasks.kill();
        // Bounded, because a name lookup on a blocking thread would otherwise delay the exit.
        runtime.shutdown_timeout(Duration::from_millis(100));
        // `&` and not `&&`: both threads have to be joined.
        let sound = running.join() & udp.is_none_or(|t| t.join().is_ok());
        Ok(if sound { code } else { 70 })
    }

    fn listener_infos(&self) -> Vec<ListenerInfo> {
        let of_tcp = self
            .ports
            .iter()
            .filter(|p| p.shared.transport == Transport::Tcp);
        let tcp = of_tcp
            .zip(self.tcp.addrs())
            .map(|(p, address)| info(&p.shared, address, "TCP"));
        let udp = self.udp.iter().map(|u| info(&u.shared, u.address, "UDP"));
        let own = [
            ("server", &self.servers.grpc),
            ("admin", &self.servers.admin),
        ];
        let rest_api = self.servers.rest_api.iter().map(|api| ("rest_api", api));
        let metrics = self.servers.metrics.iter().map(|it| ("metrics", it));
        let more = rest_api.chain(metrics);
        let own = own.into_iter().chain(more).flat_map(|(name, server)| {
            let addresses = server.listeners.iter().filter_map(|l| l.local_addr().ok());
            addresses.map(move |address| ListenerInfo {
                name: name.to_owned(),
                address,
                transport: "TCP",
            })
        });
        tcp.chain(udp).chain(own).collect()
    }
}

/// Opens the access log on standard output; log lines go to standard error.
fn access(settings: &Settings) -> Access {
    // The format was checked with the other settings.
    let log = AccessLog::start(
        &settings.access_log,
        &settings.access_log_headers,
        io::stdout(),
    )
    .ok()
    .flatten();
    Access {
        log: log.map(Arc::new),
        pod: settings.pod_name.as_str().into(),
    }
}

fn info(shared: &PortContext, address: SocketAddr, transport: &'static str) -> ListenerInfo {
    ListenerInfo {
        name: format!("port_{}", shared.container_port),
        address,
        transport,
    }
}
