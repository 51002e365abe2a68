//! A port's shared state with a real app address, and workstations that answer tunnels in this
//! process.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use traffic_agent::addr::{AppAddr, Caller};
use traffic_agent::drain::Drain;
use traffic_agent::io::conn::Conn;
use traffic_agent::proxy::context::{
    AppProtocol, ConnContext, DetectedProtocol, PortContext, ProtocolSource,
};
use traffic_agent::routes::CurrentRoutes;
use traffic_agent::telemetry::metrics::PortMetrics;
use traffic_agent::tls::alpn::TlsInfo;
use traffic_agent::upstream::{
    AppError, DialApp, OpenTunnel, Role, Transport, TunnelError, TunnelIo,
};
use traffic_core::routing::matcher::Filters;
use traffic_core::routing::{Entry, Intercept, Mechanism, RouteTable, State};

pub const WAIT_TIMEOUT: Duration = Duration::from_secs(30);

/// The far end of an opened tunnel, and who it was opened for.
pub struct FakeTunnel {
    pub from_agent: mpsc::Receiver<Bytes>,
    pub to_agent: mpsc::Sender<Result<Bytes, TunnelError>>,
    pub caller: Caller,
    pub transport: Transport,
    pub intercept: Arc<Intercept>,
}

/// Passes every opened tunnel's far end to the test; refuses while none is taken.
#[derive(Debug)]
pub struct Workstation {
    opened_tx: Mutex<Option<mpsc::Sender<FakeTunnel>>>,
    pub asked: AtomicUsize,
}

impl Workstation {
    pub fn away() -> Arc<Self> {
        Arc::new(Self {
            opened_tx: Mutex::new(None),
            asked: AtomicUsize::new(0),
        })
    }

    pub fn there() -> (Arc<Self>, mpsc::Receiver<FakeTunnel>) {
        let (opened_tx, opened_rx) = mpsc::channel(4096);
        (
            Arc::new(Self {
                opened_tx: Mutex::new(Some(opened_tx)),
                asked: AtomicUsize::new(0),
            }),
            opened_rx,
        )
    }
}

impl OpenTunnel for Workstation {
    fn open(
        &self,
        intercept: Arc<Intercept>,
        caller: Caller,
        transport: Transport,
    ) -> BoxFuture<'static, Result<TunnelIo, TunnelError>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let opened_tx = self.opened_tx.lock().unwrap().clone();
        Box::pin(async move {
            let opened_tx =
                opened_tx.ok_or_else(|| TunnelError::NoPath("nobody there".to_owned()))?;
            let (tx, from_agent) = mpsc::channel(50);
            let (to_agent, rx) = mpsc::channel(50);
            opened_tx
                .send(FakeTunnel {
                    from_agent,
                    to_agent,
                    caller,
                    transport,
                    intercept,
                })
                .await
                .unwrap();
            Ok(TunnelIo {
                tx,
                rx: Box::pin(ReceiverStream::new(rx)),
                role: Role::Server,
            })
        })
    }
}

#[derive(Debug)]
struct App(SocketAddr);

impl DialApp for App {
    fn dial<'a>(&'a self, _hello: Option<&'a TlsInfo>) -> BoxFuture<'a, Result<Conn, AppError>> {
        Box::pin(async move {
            TcpStream::connect(self.0)
                .await
                .map(Conn::Tcp)
                .map_err(|source| AppError::Connect {
                    addr: AppAddr(self.0),
                    source,
                })
        })
    }

    fn plain_addr(&self) -> Option<AppAddr> {
        Some(AppAddr(self.0))
    }
}

pub fn port(app: SocketAddr, transport: Transport, tunnels: Arc<Workstation>) -> Arc<PortContext> {
    Arc::new(PortContext {
        container_port: app.port(),
        agent_port: 0,
        routes: Arc::new(CurrentRoutes::default()),
        transport,
        app_protocol: DetectedProtocol::new(AppProtocol::Unknown, ProtocolSource::Bytes),
        app: Arc::new(App(app)),
        tunnels,
        tls: None,
        access: traffic_agent::telemetry::access_log::Access::default(),
        metrics: Arc::new(PortMetrics::default()),
        drain: Drain::default(),
    })
}

pub fn context(port: &Arc<PortContext>, caller: SocketAddr) -> ConnContext {
    ConnContext {
        caller: Caller::new(caller),
        port: port.clone(),
        hello: None,
    }
}

pub fn global(id: &str) -> RouteTable {
    let intercept = Intercept {
        id: id.to_owned(),
        name: id.to_owned(),
        client: "dev@laptop".to_owned(),
        client_session: "session".to_owned(),
        mechanism: Mechanism::Tcp,
        filters: Filters::default(),
        plaintext: false,
        target_host: "127.0.0.1".to_owned(),
        target_port: 8080,
        roundtrip_latency: Duration::ZERO,
        dial_timeout: Duration::ZERO,
        stats: Arc::default(),
    };
    RouteTable::new(vec![Entry {
        intercept: Arc::new(intercept),
        state: State::Active,
    }])
}
