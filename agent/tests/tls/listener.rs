//! A port of the agent with TLS: accept, handshake, dial the app, copy.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use traffic_agent::addr::AppAddr;
use traffic_agent::io::conn::Conn;
use traffic_agent::telemetry::metrics::PortMetrics;
use traffic_agent::tls;
use traffic_agent::tls::secrets::annotations;
use traffic_agent::tls::secrets::annotations::{AppPort, PortPlan};
use traffic_agent::tls::secrets::store::{FolderWatch, Stores};
use traffic_agent::tls::server::accept::Arrival;
use traffic_agent::upstream::DialApp;
use traffic_agent::upstream::app_tls::{AppTlsDialer, ClearHttp};

pub struct Listener {
    pub addr: SocketAddr,
    pub metrics: Arc<PortMetrics>,
    pub tls: Arc<tls::server::accept::TlsPort>,
    _watch: Option<FolderWatch>,
    task: JoinHandle<()>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The plan that annotations make for container port 8443.
pub fn plan(root: &Path, annotations: &[(&str, &str)], app_protocol: &str) -> PortPlan {
    let annotations: BTreeMap<_, _> = annotations
        .iter()
        .map(|(k, v)| (k.to_string(), v.to_string()))
        .collect();
    let port = AppPort {
        container_port: 8443,
        app_protocol: app_protocol.into(),
        ..AppPort::default()
    };
    let mut plans = annotations::plans(&annotations, "web", root, &[port]);
    assert!(plans.faults.is_empty(), "{}", plans.faults);
    plans.ports.pop().unwrap()
}

impl Listener {
    pub async fn start(plan: PortPlan, app: SocketAddr) -> Self {
        Self::with_limits(plan, app, tls::server::accept::HandshakeLimits::default()).await
    }

    pub async fn with_limits(
        plan: PortPlan,
        app: SocketAddr,
        limits: tls::server::accept::HandshakeLimits,
    ) -> Self {
        let mut stores = Stores::default();
        let app = Arc::new(AppTlsDialer::new(
            &plan,
            AppAddr(app),
            ClearHttp::Ask,
            &mut stores,
        ));
        let tls = Arc::new(tls::server::accept::TlsPort::new(
            &plan,
            &mut stores,
            Arc::clone(&app) as Arc<dyn tls::alpn::AppTls>,
            limits,
        ));
        let watch = stores.watch().unwrap();
        let metrics = Arc::new(PortMetrics::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let shared = (Arc::clone(&tls), Arc::clone(&app), Arc::clone(&metrics));
        let task = tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let (tls, app, metrics) = shared.clone();
                tokio::spawn(async move {
                    if let Err(ended) = carry(socket, &tls, &app, &metrics).await {
                        eprintln!("connection ended: {ended}");
                    }
                });
            }
        });
        Self {
            addr,
            metrics,
            tls,
            _watch: watch,
            task,
        }
    }
}

async fn carry(
    socket: TcpStream,
    tls: &tls::server::accept::TlsPort,
    app: &AppTlsDialer,
    metrics: &PortMetrics,
) -> Result<(), String> {
    socket.set_nodelay(true).unwrap();
    let (mut down, mut up) = match tls
        .accept(socket, true, metrics)
        .await
        .map_err(|refused| refused.to_string())?
    {
        Arrival::Terminated(conn, hello) => {
            let up = app.dial(Some(&hello)).await;
            (conn, up.map_err(|error| error.to_string())?)
        }
        Arrival::Clear(socket, hello) => {
            let up = app.dial(hello.as_ref()).await;
            (Conn::Tcp(socket), up.map_err(|error| error.to_string())?)
        }
        Arrival::Passthrough(socket) => {
            let up = app.dial_passthrough().await;
            (Conn::Tcp(socket), up.map_err(|error| error.to_string())?)
        }
    };
    tokio::io::copy_bidirectional(&mut down, &mut up)
        .await
        .map(drop)
        .map_err(|error| error.to_string())
}

/// Waits until `condition` holds.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..600 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("not within 30 s: {what}");
}
