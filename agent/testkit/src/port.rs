//! A port of the agent on loopback, with its workers.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpStream;
use traffic_agent::addr::{AppAddr, Caller};
use traffic_agent::proxy::context::{
    AppProtocol, ConnContext, DetectedProtocol, PortContext, ProtocolSource,
};
use traffic_agent::proxy::listener::bind::PortSpec;
use traffic_agent::proxy::listener::workers::{Ports, RunningWorkers};
use traffic_agent::upstream::app::PlainApp;
use traffic_agent::upstream::{OpenTunnel, Transport};
use traffic_core::routing::{Intercept, RouteTable, State};

use crate::intercept;
use crate::tunnels::{Behaviour, FakeTunnels};

/// The context of a TCP port in front of `app`: no rules, no TLS, no access log, protocol unknown.
/// Fields can be changed before it is shared.
pub fn context(app: SocketAddr, tunnels: Arc<dyn OpenTunnel>) -> PortContext {
    PortContext {
        container_port: app.port(),
        aliases: Vec::new(),
        agent_port: 0,
        routes: Arc::default(),
        transport: Transport::Tcp,
        app_protocol: DetectedProtocol::new(AppProtocol::Unknown, ProtocolSource::Bytes),
        app: Arc::new(PlainApp::new(AppAddr(app))),
        app_away: false,
        tunnels,
        tls: None,
        access: traffic_agent::telemetry::access_log::Access::default(),
        metrics: Arc::default(),
        drain: traffic_agent::drain::Drain::default(),
    }
}

/// The context of a connection of that port.
pub fn connection(port: &Arc<PortContext>, caller: SocketAddr) -> ConnContext {
    ConnContext {
        caller: Caller::new(caller),
        port: Arc::clone(port),
        hello: None,
    }
}

/// A running port. Dropping it drains it, and fails the test if a worker panicked.
#[derive(Debug)]
pub struct PortFixture {
    /// The address callers connect to.
    pub addr: SocketAddr,
    /// The port's state.
    pub port: Arc<PortContext>,
    /// The way to the workstation.
    pub tunnels: Arc<FakeTunnels>,
    running: Option<RunningWorkers>,
}

impl PortFixture {
    /// Starts a port in front of `app`; the workstation is away.
    pub fn start(app: SocketAddr) -> Self {
        Self::with(app, AppProtocol::Unknown, Behaviour::Away)
    }

    /// Starts a port of a declared protocol.
    pub fn with(app: SocketAddr, declared: AppProtocol, workstation: Behaviour) -> Self {
        Self::configured(app, workstation, |port| {
            port.app_protocol = DetectedProtocol::new(declared, ProtocolSource::AppProtocol);
        })
    }

    /// Starts a port after `change`.
    pub fn configured(
        app: SocketAddr,
        workstation: Behaviour,
        change: impl FnOnce(&mut PortContext),
    ) -> Self {
        let tunnels = FakeTunnels::new(workstation);
        let mut port = context(app, Arc::clone(&tunnels) as Arc<dyn OpenTunnel>);
        change(&mut port);
        let port = Arc::new(port);
        let spec = PortSpec {
            port: 0,
            owner: "test".to_owned(),
            addr: Some([127, 0, 0, 1].into()),
            probes: false,
        };
        let ports = Ports::bind(vec![(spec, Arc::clone(&port))], 1).unwrap();
        let addr = ports.addrs()[0];
        let running = Some(ports.run(&port.drain).unwrap());
        Self {
            addr,
            port,
            tunnels,
            running,
        }
    }

    /// Connects as a caller.
    pub async fn connect(&self) -> TcpStream {
        let socket = TcpStream::connect(self.addr).await.unwrap();
        socket.set_nodelay(true).unwrap();
        socket
    }

    /// Puts one intercept on `x-dev: a` in force.
    pub fn intercept(&self) -> Arc<Intercept> {
        self.rule(&[("x-dev", "a")], State::Active)
    }

    /// Puts one intercept on these headers in force; without headers it takes the whole port.
    pub fn rule(&self, headers: &[(&str, &str)], state: State) -> Arc<Intercept> {
        let entry = intercept::entry(intercept::intercept("mine", headers), state);
        let intercept = Arc::clone(&entry.intercept);
        self.port.routes.store(RouteTable::new(vec![entry]));
        intercept
    }

    /// Puts these rules in force.
    pub fn rules(&self, rules: Vec<Intercept>) {
        let entries = rules.into_iter();
        let entries = entries.map(|rule| intercept::entry(rule, State::Active));
        self.port.routes.store(RouteTable::new(entries.collect()));
    }

    /// Removes all rules.
    pub fn clear(&self) {
        self.port.routes.store(RouteTable::default());
    }
}

impl Drop for PortFixture {
    fn drop(&mut self) {
        self.port.drain.start();
        self.port.drain.kill();
        if let Some(running) = self.running.take() {
            assert!(
                running.join() || std::thread::panicking(),
                "a worker panicked"
            );
        }
    }
}
