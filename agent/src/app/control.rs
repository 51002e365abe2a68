//! Control side of the composition: the manager session, the agent's own gRPC API, and their shared
//! state with the data path.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use traffic_proto::dial_policy::DialPolicy;
use traffic_proto::manager_token;

use crate::app::files::FileService;
use crate::app::listeners::ApiListener;
use crate::app::ports;
use crate::app::ports::BoundPort;
use crate::app::settings::Settings;
use crate::control::config::{ControlConfig, LevelSwitch};
use crate::control::container_env;
use crate::control::dialer::{Dialer, FilePorts};
pub(crate) use crate::control::dns::Dns;
use crate::control::intercepts::bounds::Bounds;
use crate::control::intercepts::guard_rails::Rails;
use crate::control::{api, api_server};
use crate::drain::Drain;
use crate::ready::Blocker;
use crate::telemetry::logging;
use crate::telemetry::metrics::ControlMetrics;

pub(crate) use crate::control::tunnels::Tunnels;

/// Parts of the control side.
pub(crate) struct ControlPath<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) ports: &'a [BoundPort],
    pub(crate) tunnels: Tunnels,
    pub(crate) dns: Arc<Dns>,
    /// Port of the admin, which is dialled for nobody.
    pub(crate) admin_port: u16,
    pub(crate) metrics: Arc<ControlMetrics>,
    pub(crate) log: logging::LogControl,
    /// Holds readiness back until the first arrival.
    pub(crate) blocker: Blocker,
    /// Sockets of the gRPC API.
    pub(crate) grpc: ApiListener,
    /// Runtimes of the data path, which take the connections of attached workstations.
    pub(crate) workers: Vec<Handle>,
}

impl ControlPath<'_> {
    /// Starts the session and the gRPC API on the current runtime, as tasks of `tasks`. The
    /// returned future ends the session: all traffic to the app, then Depart. The API stays until
    /// the runtime ends, because tunnels lead through it.
    pub(crate) fn start(self, tasks: &Drain) -> impl Future<Output = ()> + use<> {
        let (stop, departed) = (CancellationToken::new(), CancellationToken::new());
        let files = FileService::start(self.settings, tasks);
        let api_port = self.grpc.port;
        let dialer = Arc::new(self.dialer(files));
        let service = api::Service::new(
            self.tunnels.clone(),
            Arc::clone(&self.dns),
            Arc::clone(&dialer),
            (tasks.clone(), Handle::current()),
            Arc::clone(&self.metrics),
        );
        let listeners = self.grpc.listeners.into_iter();
        let listeners: Vec<_> = listeners
            .filter_map(|l| tokio::net::TcpListener::from_std(l).ok())
            .collect();
        tasks.spawn(api_server::serve(service, listeners, self.workers));
        let session = ControlConfig {
            identity: identity(self.settings, api_port, files),
            manager: manager_address(self.settings),
            grace: self.settings.sidecar.session_grace,
            remember: self.settings.remember(),
            targets: self.ports.iter().map(|p| p.target.clone()).collect(),
            ports: self
                .ports
                .iter()
                .map(|port| ports::link(self.settings, port))
                .collect(),
            tunnels: self.tunnels,
            dns: self.dns,
            bounds: bounds(self.settings),
            dialer,
            control: tasks.clone(),
            metrics: self.metrics,
            ready: Some(self.blocker),
            ready_file: self.settings.rooted("/tmp/agent/ready"),
            token_file: self
                .settings
                .rooted(manager_token::DIRECTORY)
                .join(manager_token::FILE),
            set_level: level_switch(self.log),
        };
        let (stopped, done) = (stop.clone(), departed.clone());
        tasks.spawn(async move {
            let _done = done.drop_guard();
            session.run(stopped).await;
        });
        async move {
            stop.cancel();
            departed.cancelled().await;
        }
    }
}

impl ControlPath<'_> {
    fn dialer(&self, files: FileService) -> Dialer {
        let settings = self.settings;
        let files = [files.sftp_port, files.ftp_port];
        let metrics_port = settings.metrics_port.unwrap_or(0);
        let ports = [self.admin_port, self.grpc.port, metrics_port];
        let own = ports.into_iter().chain(files).filter(|port| *port != 0);
        let policy = DialPolicy::new(settings.dial_allow.clone()).with_own(own, settings.pod_ip);
        Dialer::new(
            policy,
            FilePorts::new(settings.pod_ip, files),
            &settings.limits,
            Arc::clone(&self.metrics),
        )
    }
}

fn bounds(settings: &Settings) -> Bounds {
    let rails = Rails::of(&settings.sidecar.guard_rails, &settings.annotations);
    if let Some(problem) = rails.unreadable() {
        tracing::warn!("{problem}: no intercept is served until it is corrected");
    }
    Bounds::of(&settings.limits).guarded(rails)
}

/// Returns the manager's `host:port`, an IPv6 address in brackets.
pub(crate) fn manager_address(settings: &Settings) -> String {
    let (host, port) = (
        &settings.sidecar.manager_host,
        settings.sidecar.manager_port,
    );
    if host.contains(':') && !host.starts_with('[') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

fn level_switch(log: logging::LogControl) -> LevelSwitch {
    LevelSwitch(Box::new(move |level| log.level_override(level)))
}

fn identity(
    settings: &Settings,
    api_port: u16,
    files: FileService,
) -> crate::control::config::AgentIdentity {
    let container = |s: container_env::SharedContainer| crate::control::config::Container {
        mount_point: files.mount_point(settings, &s.name),
        name: s.name,
        environment: s.environment,
        mounts: s.mounts,
    };
    let shared = container_env::containers(&settings.sidecar, &settings.environment);
    crate::control::config::AgentIdentity {
        name: settings.sidecar.agent_name.clone(),
        namespace: settings.sidecar.namespace.clone(),
        workload_kind: settings.sidecar.workload_kind.clone(),
        pod_name: settings.pod_name.clone(),
        pod_ip: settings.pod_ip.map(|ip| ip.to_string()).unwrap_or_default(),
        pod_uid: settings.pod_uid.clone(),
        api_port,
        sftp_port: files.sftp_port,
        ftp_port: files.ftp_port,
        containers: shared.into_iter().map(container).collect(),
        ports: crate::control::config::ports(&settings.targets),
    }
}
