//! A port whose accepted connections are carried as HTTP/2, an app behind it, and a workstation
//! behind its tunnels.

use std::net::SocketAddr;
use std::sync::Arc;

use agent_testkit::WAIT_TIMEOUT;
use agent_testkit::intercept;
use agent_testkit::port::{connection, context};
use agent_testkit::tunnels::{Behaviour, FakeTunnels};
use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Request, StatusCode};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use traffic_agent::io::buffers::Buf;
use traffic_agent::io::conn::Conn;
use traffic_agent::outcome::Ended;
use traffic_agent::proxy::context::PortContext;
use traffic_agent::proxy::http2;
use traffic_agent::telemetry::metrics::PortMetrics;
use traffic_core::routing::{RouteTable, State};

pub struct Rig {
    pub addr: SocketAddr,
    pub port: Arc<PortContext>,
    pub ended: mpsc::UnboundedReceiver<Ended>,
}

impl Rig {
    /// A port before `app`; tunnels lead to `workstation`, or cannot be opened.
    pub async fn new(app: SocketAddr, workstation: Option<SocketAddr>) -> Self {
        let behaviour = workstation.map_or(Behaviour::Away, Behaviour::Dials);
        Self::over(app, FakeTunnels::new(behaviour)).await
    }

    pub async fn over(app: SocketAddr, tunnels: Arc<FakeTunnels>) -> Self {
        Self::start(app, tunnels, false).await
    }

    /// As if callers had come by TLS where `secure`.
    pub async fn start(app: SocketAddr, tunnels: Arc<FakeTunnels>, secure: bool) -> Self {
        let port = Arc::new(context(app, tunnels));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (ended_tx, ended) = mpsc::unbounded_channel();
        let shared = port.clone();
        tokio::spawn(async move {
            while let Ok((down, caller)) = listener.accept().await {
                let (shared, ended_tx) = (shared.clone(), ended_tx.clone());
                tokio::spawn(async move {
                    down.set_nodelay(true).unwrap();
                    let mut lane = connection(&shared, caller);
                    lane.hello = secure.then(Arc::default);
                    let Ok(app) = shared.app.dial(None).await else {
                        return;
                    };
                    app.as_tcp().unwrap().set_nodelay(true).unwrap();
                    let how = http2::carry(
                        Conn::Tcp(down),
                        Buf::default(),
                        Some(app),
                        Buf::default(),
                        &lane,
                    )
                    .await;
                    let _ = ended_tx.send(how);
                });
            }
        });
        Self { addr, port, ended }
    }

    pub fn metrics(&self) -> &PortMetrics {
        &self.port.metrics
    }

    /// Requests with `x-dev: a` go to the workstation.
    pub fn intercept(&self) {
        self.port.routes.store(table(State::Active));
    }

    pub fn expire(&self) {
        self.port.routes.store(table(State::Expired));
    }

    pub fn clear(&self) {
        self.port.routes.store(RouteTable::default());
    }

    pub async fn next_ended(&mut self) -> Ended {
        timeout(WAIT_TIMEOUT, self.ended.recv())
            .await
            .expect("a connection ends")
            .unwrap()
    }
}

pub fn table(state: State) -> RouteTable {
    intercept::table(intercept::intercept("echo", &[("x-dev", "a")]), state)
}

/// A caller's connection.
pub struct Caller {
    pub send: SendRequest<Bytes>,
    driver: AbortHandle,
    over: mpsc::UnboundedReceiver<Result<(), h2::Error>>,
}

/// A whole answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: Option<HeaderMap>,
}

impl Answer {
    pub fn server(&self) -> &str {
        self.headers
            .get("x-server")
            .map_or("nobody", |v| v.to_str().unwrap())
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

impl Caller {
    pub async fn connect(addr: SocketAddr) -> Self {
        Self::with(
            addr,
            h2::client::Builder::new().initial_window_size(1 << 20),
        )
        .await
    }

    pub async fn with(addr: SocketAddr, builder: &h2::client::Builder) -> Self {
        let socket = TcpStream::connect(addr).await.unwrap();
        socket.set_nodelay(true).unwrap();
        let (send, connection) = builder.handshake::<_, Bytes>(socket).await.unwrap();
        let (over_tx, over) = mpsc::unbounded_channel();
        let driver = tokio::spawn(async move {
            let _ = over_tx.send(connection.await);
        });
        Self {
            send,
            driver: driver.abort_handle(),
            over,
        }
    }

    /// Breaks the connection off as a process that is killed does.
    pub fn kill(&self) {
        self.driver.abort();
    }

    /// How the connection ended.
    pub async fn over(&mut self) -> Result<(), h2::Error> {
        timeout(WAIT_TIMEOUT, self.over.recv())
            .await
            .expect("the connection ends")
            .unwrap()
    }

    pub async fn get(&self, path: &str, dev: bool) -> Result<Answer, h2::Error> {
        self.call(request(path, dev).body(()).unwrap(), &[]).await
    }

    pub async fn call(&self, request: Request<()>, body: &[u8]) -> Result<Answer, h2::Error> {
        let mut send = self.send.clone().ready().await?;
        let (response, mut up) = send.send_request(request, body.is_empty())?;
        if !body.is_empty() {
            up.send_data(Bytes::copy_from_slice(body), true)?;
        }
        whole(timeout(WAIT_TIMEOUT, response).await.expect("an answer")?).await
    }
}

pub fn request(path: &str, dev: bool) -> http::request::Builder {
    let request = Request::builder().uri(format!("http://app.example{path}"));
    if dev {
        request.header("x-dev", "a")
    } else {
        request
    }
}

pub async fn whole(response: http::Response<h2::RecvStream>) -> Result<Answer, h2::Error> {
    let (head, mut from) = response.into_parts();
    let mut body = Vec::new();
    while let Some(chunk) = timeout(WAIT_TIMEOUT, from.data()).await.expect("data") {
        let chunk = chunk?;
        from.flow_control().release_capacity(chunk.len())?;
        body.extend_from_slice(&chunk);
    }
    let trailers = timeout(WAIT_TIMEOUT, from.trailers())
        .await
        .expect("trailers")?;
    Ok(Answer {
        status: head.status,
        headers: head.headers,
        body: body.into(),
        trailers,
    })
}
