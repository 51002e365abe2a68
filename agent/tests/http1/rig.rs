//! One port of the agent on loopback, with an app that the test scripts and a workstation that can
//! be there or not.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use traffic_agent::addr::{AppAddr, Caller};
use traffic_agent::drain::Drain;
use traffic_agent::proxy::context::{AppProtocol, DetectedProtocol, PortContext, ProtocolSource};
use traffic_agent::proxy::listener::bind::PortSpec;
use traffic_agent::proxy::listener::workers::{Ports, RunningWorkers};
use traffic_agent::routes::CurrentRoutes;
use traffic_agent::telemetry::access_log::Access;
use traffic_agent::telemetry::metrics::PortMetrics;
use traffic_agent::upstream::app::PlainApp;
use traffic_agent::upstream::{OpenTunnel, Role, Transport, TunnelError, TunnelIo};
use traffic_core::routing::matcher::{Filters, HeaderFilter};
use traffic_core::routing::{Entry, Intercept, Mechanism, RouteTable, State};
use traffic_proto::tunnel::Message;

pub(crate) const WAIT_TIMEOUT: Duration = Duration::from_secs(30);

/// What the workstation does when a tunnel is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum TunnelBehaviour {
    /// Dials this address.
    Dials(SocketAddr),
    /// Is not there.
    Away,
    /// Answers the dial with a rejection.
    Rejects,
    /// Never answers the dial.
    Silent,
}

#[derive(Debug)]
pub(crate) struct Workstation {
    behaviour: Mutex<TunnelBehaviour>,
    pub(crate) opened: AtomicUsize,
    /// Breaks every open tunnel when sent to.
    cut: tokio::sync::watch::Sender<u64>,
}

impl Workstation {
    pub(crate) fn new(behaviour: TunnelBehaviour) -> Arc<Self> {
        Arc::new(Self {
            behaviour: Mutex::new(behaviour),
            opened: AtomicUsize::new(0),
            cut: tokio::sync::watch::Sender::new(0),
        })
    }

    /// What it does from here on.
    pub(crate) fn becomes(&self, behaviour: TunnelBehaviour) {
        *self.behaviour.lock().unwrap() = behaviour;
    }

    pub(crate) fn break_tunnels(&self) {
        self.cut.send_modify(|n| *n += 1);
    }
}

impl OpenTunnel for Workstation {
    fn open(
        &self,
        _intercept: Arc<Intercept>,
        _caller: Caller,
        _transport: Transport,
    ) -> BoxFuture<'static, Result<TunnelIo, TunnelError>> {
        let behaviour = *self.behaviour.lock().unwrap();
        let mut cut = self.cut.subscribe();
        self.opened.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move {
            if matches!(behaviour, TunnelBehaviour::Away) {
                return Err(TunnelError::NoPath("nobody there".to_owned()));
            }
            let (tx, from_agent) = mpsc::channel(50);
            let (to_agent, rx) = mpsc::channel(50);
            tokio::spawn(async move {
                let broken = to_agent.clone();
                tokio::select! {
                    () = work(behaviour, from_agent, to_agent) => {}
                    _ = cut.changed() => {
                        let _ = broken.send(Err(TunnelError::Broken("cut".to_owned()))).await;
                    }
                }
            });
            Ok(TunnelIo {
                tx,
                rx: Box::pin(ReceiverStream::new(rx)),
                role: Role::Server,
            })
        })
    }
}

async fn work(
    behaviour: TunnelBehaviour,
    mut from_agent: mpsc::Receiver<Bytes>,
    to_agent: mpsc::Sender<Result<Bytes, TunnelError>>,
) {
    let TunnelBehaviour::Dials(target) = behaviour else {
        if matches!(behaviour, TunnelBehaviour::Rejects) {
            let _ = to_agent.send(Ok(Message::DialReject.encode())).await;
        }
        while from_agent.recv().await.is_some() {}
        return;
    };
    let (mut read, mut write) = TcpStream::connect(target).await.unwrap().into_split();
    let _ = to_agent.send(Ok(Message::DialOk.encode())).await;
    let inward = async {
        while let Some(payload) = from_agent.recv().await {
            match Message::decode(payload).unwrap() {
                Message::Normal(data) => write.write_all(&data).await.unwrap_or_default(),
                Message::CloseSend => break,
                Message::Disconnect => return false,
                _ => {}
            }
        }
        let _ = write.shutdown().await;
        true
    };
    let outward = async {
        let mut buf = vec![0; 64 * 1024];
        while let Ok(n @ 1..) = read.read(&mut buf).await {
            let payload = Message::Normal(Bytes::copy_from_slice(&buf[..n])).encode();
            if to_agent.send(Ok(payload)).await.is_err() {
                break;
            }
        }
        let _ = to_agent.send(Ok(Message::CloseSend.encode())).await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        orderly = inward => if orderly { let _ = tokio::time::timeout(WAIT_TIMEOUT, std::future::pending::<()>()).await; },
        () = outward => {}
    }
}

/// What the connections of a port share.
pub(crate) fn shared(app: AppAddr, tunnels: Arc<dyn OpenTunnel>) -> Arc<PortContext> {
    Arc::new(PortContext {
        container_port: app.0.port(),
        agent_port: 0,
        routes: Arc::new(CurrentRoutes::default()),
        transport: Transport::Tcp,
        app_protocol: DetectedProtocol::new(AppProtocol::Unknown, ProtocolSource::Bytes),
        app: Arc::new(PlainApp::new(app)),
        tunnels,
        tls: None,
        access: Access::default(),
        metrics: Arc::new(PortMetrics::default()),
        drain: Drain::default(),
    })
}

/// A running port.
pub(crate) struct Rig {
    pub(crate) addr: SocketAddr,
    pub(crate) port: Arc<PortContext>,
    pub(crate) workstation: Arc<Workstation>,
    running: Option<RunningWorkers>,
}

impl Rig {
    pub(crate) fn start(app: SocketAddr) -> Self {
        Self::with(app, AppProtocol::Unknown, TunnelBehaviour::Away)
    }

    pub(crate) fn with(app: SocketAddr, declared: AppProtocol, behaviour: TunnelBehaviour) -> Self {
        Self::telling(app, declared, behaviour, Access::default())
    }

    /// With an access log, or a pod's name.
    pub(crate) fn telling(
        app: SocketAddr,
        declared: AppProtocol,
        behaviour: TunnelBehaviour,
        access: Access,
    ) -> Self {
        let workstation = Workstation::new(behaviour);
        let mut port = shared(
            AppAddr(app),
            Arc::clone(&workstation) as Arc<dyn OpenTunnel>,
        );
        Arc::get_mut(&mut port)
            .expect("nobody else has it yet")
            .access = access;
        port.app_protocol.set(declared, ProtocolSource::AppProtocol);
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
            workstation,
            running,
        }
    }

    pub(crate) async fn call(&self) -> TestClient {
        let socket = TcpStream::connect(self.addr).await.unwrap();
        socket.set_nodelay(true).unwrap();
        TestClient { socket }
    }

    /// Puts one intercept on `x-dev: a` in force.
    pub(crate) fn intercept(&self) -> Arc<Intercept> {
        self.rule(&[("x-dev", "a")], State::Active)
    }

    pub(crate) fn rule(&self, headers: &[(&str, &str)], state: State) -> Arc<Intercept> {
        let intercept = Arc::new(intercept(headers));
        self.port.routes.store(RouteTable::new(vec![Entry {
            intercept: Arc::clone(&intercept),
            state,
        }]));
        intercept
    }

    pub(crate) fn no_rules(&self) {
        self.port.routes.store(RouteTable::default());
    }
}

pub(crate) fn intercept(headers: &[(&str, &str)]) -> Intercept {
    Intercept {
        id: "session:mine".to_owned(),
        name: "mine".to_owned(),
        client: "dev@laptop".to_owned(),
        client_session: "session".to_owned(),
        mechanism: if headers.is_empty() {
            Mechanism::Tcp
        } else {
            Mechanism::Http
        },
        filters: Filters {
            headers: headers
                .iter()
                .map(|(n, v)| HeaderFilter::new(n, v))
                .collect(),
            paths: Vec::new(),
        },
        plaintext: false,
        target_host: "127.0.0.1".to_owned(),
        target_port: 8080,
        roundtrip_latency: Duration::ZERO,
        dial_timeout: Duration::ZERO,
        stats: Arc::default(),
    }
}

impl Drop for Rig {
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

/// A raw caller.
pub(crate) struct TestClient {
    pub(crate) socket: TcpStream,
}

/// Reading what is expected, from either side.
pub(crate) trait Expect {
    async fn send(&mut self, text: &str);
    async fn expect(&mut self, text: &str);
    /// Reads until the peer has closed.
    async fn expect_end(&mut self);
    async fn expect_reset(&mut self);
}

impl Expect for TcpStream {
    async fn send(&mut self, text: &str) {
        self.write_all(text.as_bytes()).await.unwrap();
    }

    async fn expect(&mut self, text: &str) {
        let mut seen = vec![0; text.len()];
        let mut at = 0;
        while at < seen.len() {
            let read = tokio::time::timeout(WAIT_TIMEOUT, self.read(&mut seen[at..])).await;
            let so_far = || String::from_utf8_lossy(&seen[..at]).into_owned();
            match read {
                Ok(Ok(n @ 1..)) => at += n,
                other => panic!("expected {text:?}, read {:?}, then {other:?}", so_far()),
            }
        }
        assert_eq!(String::from_utf8_lossy(&seen), text);
    }

    async fn expect_end(&mut self) {
        let mut rest = Vec::new();
        let read = tokio::time::timeout(WAIT_TIMEOUT, self.read_to_end(&mut rest)).await;
        assert!(
            matches!(read, Ok(Ok(0))),
            "expected the end, got {read:?}: {:?}",
            String::from_utf8_lossy(&rest)
        );
    }

    async fn expect_reset(&mut self) {
        let mut rest = Vec::new();
        let read = tokio::time::timeout(WAIT_TIMEOUT, self.read_to_end(&mut rest)).await;
        match read {
            Ok(Err(e)) if e.kind() == std::io::ErrorKind::ConnectionReset => {}
            other => panic!(
                "expected a reset, got {other:?}: {:?}",
                String::from_utf8_lossy(&rest)
            ),
        }
    }
}

impl Expect for TestClient {
    async fn send(&mut self, text: &str) {
        self.socket.send(text).await;
    }
    async fn expect(&mut self, text: &str) {
        self.socket.expect(text).await;
    }
    async fn expect_end(&mut self) {
        self.socket.expect_end().await;
    }
    async fn expect_reset(&mut self) {
        self.socket.expect_reset().await;
    }
}

/// Something that listens on loopback and is scripted by the test: an app, or a server at a
/// workstation.
pub(crate) struct Script {
    listener: TcpListener,
}

impl Script {
    pub(crate) async fn listen() -> Self {
        Self {
            listener: TcpListener::bind("127.0.0.1:0").await.unwrap(),
        }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    pub(crate) async fn accept(&self) -> TcpStream {
        let (socket, _) = tokio::time::timeout(WAIT_TIMEOUT, self.listener.accept())
            .await
            .expect("nobody connected")
            .unwrap();
        socket.set_nodelay(true).unwrap();
        socket
    }

    /// Whether nobody has connected.
    pub(crate) async fn is_untouched(&self) -> bool {
        tokio::time::timeout(Duration::from_millis(50), self.listener.accept())
            .await
            .is_err()
    }
}

/// Answers every request on every connection with its own name, following content-length bodies.
pub(crate) async fn named_server(name: &'static str) -> SocketAddr {
    let script = Script::listen().await;
    let addr = script.addr();
    tokio::spawn(async move {
        loop {
            let Ok((socket, _)) = script.listener.accept().await else {
                return;
            };
            tokio::spawn(serve_named(socket, name));
        }
    });
    addr
}

async fn serve_named(mut socket: TcpStream, name: &'static str) {
    let mut seen = Vec::new();
    let mut buf = [0; 4096];
    while let Ok(n @ 1..) = socket.read(&mut buf).await {
        seen.extend_from_slice(&buf[..n]);
        while let Some(end) = seen.windows(4).position(|w| w == b"\r\n\r\n") {
            seen.drain(..end + 4);
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}",
                name.len()
            );
            if socket.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    }
}

/// Waits until `condition` holds.
pub(crate) async fn eventually(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..3000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not within 30 s: {what}");
}
