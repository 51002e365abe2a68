//! One port of the agent without a manager, on the runtime of a worker.

#![allow(dead_code, unreachable_pub)]

use std::net::SocketAddr;
use std::sync::Arc;

use agent_testkit::port::context;
use agent_testkit::tunnels::FakeTunnels;
use tokio::net::TcpListener;
use traffic_agent::proxy::listener::accept::accept;
use traffic_core::routing::RouteTable;

/// Serves a port in front of `app` on the current runtime, and returns its address.
pub async fn serve(app: SocketAddr, routes: RouteTable) -> SocketAddr {
    let port = context(app, FakeTunnels::away());
    port.routes.store(routes);
    let listener = TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a loopback port");
    let addr = listener
        .local_addr()
        .expect("a bound listener has an address");
    tokio::spawn(accept(listener, Arc::new(port)));
    addr
}

/// The runtime of a worker.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}
