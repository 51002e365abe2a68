//! The control side of the composition: the manager session, the agent's own gRPC API, and what
//! both share with the data path.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::listeners::Server;
use super::ports::{self, Port};
use crate::drain::Drain;
use crate::logging;
use crate::metrics::ControlMetrics;
use crate::ready::Blocker;
use crate::session::{self, LevelSwitch, Session, dns::Dns, serve};
use crate::settings::Settings;
use crate::share;

pub(super) use crate::session::streams::Tunnels;

/// What the control side is made of.
pub(super) struct Control<'a> {
    pub(super) settings: &'a Settings,
    pub(super) ports: &'a [Port],
    pub(super) tunnels: Tunnels,
    pub(super) metrics: Arc<ControlMetrics>,
    pub(super) log: logging::Control,
    /// Holds readiness back until the first arrival.
    pub(super) blocker: Blocker,
    /// The gRPC API's sockets.
    pub(super) grpc: Server,
}

impl Control<'_> {
    /// Starts the session and the gRPC API on the current runtime, as tasks of `tasks`. The future
    /// ends the session: all to the app, then farewell. The API is there until the runtime ends,
    /// because tunnels lead through it.
    pub(super) fn start(self, tasks: &Drain) -> impl Future<Output = ()> + use<> {
        let (stop, departed) = (CancellationToken::new(), CancellationToken::new());
        let dns = Arc::new(Dns::default());
        let service = serve::Service::new(
            self.tunnels.clone(),
            Arc::clone(&dns),
            tasks.clone(),
            Arc::clone(&self.metrics),
        );
        let api_port = self.grpc.port;
        let listeners = self
            .grpc
            .listeners
            .into_iter()
            .filter_map(|l| tokio::net::TcpListener::from_std(l).ok());
        let listeners: Vec<_> = listeners.collect();
        tasks.spawn(async move {
            if let Err(error) = serve::serve(service, listeners, CancellationToken::new()).await {
                tracing::error!(%error, "the agent's gRPC API is not served any more; restart the pod");
            }
        });
        let session = Session {
            identity: identity(self.settings, api_port),
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
            dns,
            control: tasks.clone(),
            metrics: self.metrics,
            ready: Some(self.blocker),
            ready_file: self.settings.rooted("/tmp/agent/ready"),
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

/// `host:port` of the traffic-manager, an IPv6 address in brackets.
pub(super) fn manager_address(settings: &Settings) -> String {
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

fn level_switch(log: logging::Control) -> LevelSwitch {
    LevelSwitch(Box::new(move |level| log.wish(level)))
}

fn identity(settings: &Settings, api_port: u16) -> session::Identity {
    let container = |s: share::Shared| session::Container {
        name: s.name,
        environment: s.environment,
        mount_point: s.mount_point,
        mounts: s.mounts,
    };
    let shared = share::containers(&settings.sidecar, &settings.environment);
    session::Identity {
        name: settings.sidecar.agent_name.clone(),
        namespace: settings.sidecar.namespace.clone(),
        workload_kind: settings.sidecar.workload_kind.clone(),
        pod_name: settings.pod_name.clone(),
        pod_ip: settings.pod_ip.map(|ip| ip.to_string()).unwrap_or_default(),
        pod_uid: settings.pod_uid.clone(),
        api_port,
        containers: shared.into_iter().map(container).collect(),
    }
}
