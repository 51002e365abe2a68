//! A port of the agent without a manager: its shared state, and tunnels that end in this process.

#![allow(dead_code, unreachable_pub)]

use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::net::{TcpListener, TcpStream};
use traffic_agent::addr::{AppAddr, Caller};
use traffic_agent::drain::Drain;
use traffic_agent::proxy::context::{
    AppProtocol, ConnContext, DetectedProtocol, PortContext, ProtocolSource,
};
use traffic_agent::routes::CurrentRoutes;
use traffic_agent::telemetry::metrics::PortMetrics;
use traffic_agent::upstream::app::PlainApp;
use traffic_agent::upstream::{OpenTunnel, Transport, TunnelError, TunnelIo};
use traffic_core::routing::{Intercept, RouteTable};

#[derive(Debug)]
struct Nobody;

impl OpenTunnel for Nobody {
    fn open(
        &self,
        _: Arc<Intercept>,
        _: Caller,
        _: Transport,
    ) -> BoxFuture<'static, Result<TunnelIo, TunnelError>> {
        Box::pin(std::future::ready(Err(TunnelError::NoPath(
            "no workstation in this bench".to_owned(),
        ))))
    }
}

/// Builds a port in front of `app`.
pub fn shared(app: SocketAddr, routes: RouteTable) -> Arc<PortContext> {
    let table = CurrentRoutes::default();
    table.store(routes);
    Arc::new(PortContext {
        container_port: app.port(),
        agent_port: 0,
        routes: Arc::new(table),
        transport: Transport::Tcp,
        app_protocol: DetectedProtocol::new(AppProtocol::Unknown, ProtocolSource::Bytes),
        app: Arc::new(PlainApp::new(AppAddr(app))),
        tunnels: Arc::new(Nobody),
        tls: None,
        access: traffic_agent::telemetry::access_log::Access::default(),
        metrics: Arc::new(PortMetrics::default()),
        drain: Drain::default(),
    })
}

/// Serves the port on the current runtime and returns its address.
pub async fn serve(shared: Arc<PortContext>) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a loopback port");
    let addr = listener
        .local_addr()
        .expect("a bound listener has an address");
    listener.set_nonblocking(true).expect("a mode of sockets");
    tokio::spawn(traffic_agent::proxy::listener::accept::accept(
        TcpListener::from_std(listener).expect("room to watch it"),
        shared,
    ));
    addr
}

/// Returns a connected pair of sockets.
pub async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a loopback port");
    let addr = listener
        .local_addr()
        .expect("a bound listener has an address");
    let (a, b) = tokio::join!(TcpStream::connect(addr), listener.accept());
    let (a, b) = (a.expect("connect"), b.expect("accept").0);
    a.set_nodelay(true).expect("nodelay");
    b.set_nodelay(true).expect("nodelay");
    (a, b)
}

/// Builds the context of one connection.
pub fn context(shared: &Arc<PortContext>, caller: SocketAddr) -> ConnContext {
    ConnContext {
        caller: Caller::new(caller),
        port: shared.clone(),
        hello: None,
    }
}

/// Builds the runtime of a worker.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}
