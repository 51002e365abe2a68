//! Dials the app past our own redirect.
//!
//! A plain connect does not wait: the socket is used while the kernel connects it, reads and writes
//! stay pending until then, and the first of them reports a refusal. This reaches the app without a
//! future, a timer or an allocation, and the connect timeout is the kernel's, as without the agent.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use rustix::io::Errno;
use socket2::{Domain, Socket, Type};
use tokio::net::TcpStream;

use crate::addr::AppAddr;
use crate::io::conn::Conn;
use crate::io::fd_reserve;
use crate::outcome::{Ended, Stage};
use crate::telemetry::metrics::{Label as _, PortMetrics};
use crate::telemetry::rate_limit::limited;
use crate::tls;
use crate::tls::alpn::TlsInfo;
use crate::upstream::{AppError, DialApp};

/// Time [`DialApp::dial`] waits for an app that neither accepts nor refuses: its backlog is full,
/// or its packets are dropped.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Delay before another try after descriptors ran out.
const EXHAUSTED_DELAY: Duration = Duration::from_millis(50);

/// An app reached in clear text.
#[derive(Debug)]
pub struct PlainApp {
    addrs: AppAddrs,
}

impl PlainApp {
    /// Creates an app at `addr`.
    #[must_use]
    pub fn new(addr: AppAddr) -> Self {
        Self {
            addrs: AppAddrs::new(addr),
        }
    }
}

impl DialApp for PlainApp {
    fn dial<'a>(&'a self, _hello: Option<&'a TlsInfo>) -> BoxFuture<'a, Result<Conn, AppError>> {
        Box::pin(async move { self.addrs.connect().await.map(Conn::Tcp) })
    }

    fn plain_addr(&self) -> Option<AppAddr> {
        Some(self.addrs.configured())
    }

    fn learn_other_family(&self, pod: IpAddr) {
        self.addrs.learn(pod);
    }

    fn other_addr(&self) -> Option<AppAddr> {
        self.addrs.other()
    }
}

/// The app's addresses: the configured one and, once a caller has arrived over the other IP family,
/// the pod's of that family. An app may listen on one of them only.
#[derive(Debug)]
pub struct AppAddrs {
    configured: AppAddr,
    other: OnceLock<IpAddr>,
}

impl AppAddrs {
    /// Knows the configured address alone.
    #[must_use]
    pub fn new(configured: AppAddr) -> Self {
        Self {
            configured,
            other: OnceLock::new(),
        }
    }

    /// The addresses of `app`, whose configured one is `configured`.
    #[must_use]
    pub fn of(app: &dyn DialApp, configured: AppAddr) -> Self {
        let addrs = Self::new(configured);
        if let Some(other) = app.other_addr() {
            addrs.learn(other.0.ip());
        }
        addrs
    }

    /// Returns the configured address.
    #[must_use]
    pub fn configured(&self) -> AppAddr {
        self.configured
    }

    /// Returns the address of the other family, if it is known.
    #[must_use]
    pub fn other(&self) -> Option<AppAddr> {
        let ip = *self.other.get()?;
        Some(AppAddr(SocketAddr::new(ip, self.configured.0.port())))
    }

    /// Keeps an address of the pod, if it is of the other family.
    pub fn learn(&self, pod: IpAddr) {
        if pod.is_ipv4() != self.configured.0.is_ipv4() {
            self.other.get_or_init(|| pod);
        }
    }

    /// Connects to the configured address, else to the other one.
    ///
    /// # Errors
    /// As [`connect`].
    pub async fn connect(&self) -> Result<TcpStream, AppError> {
        self.connect_marked().await.map(|(socket, _)| socket)
    }

    /// Connects as [`connect_marked`] does, for both addresses.
    ///
    /// # Errors
    /// As [`connect`].
    pub async fn connect_marked(&self) -> Result<(TcpStream, Option<OwnPort>), AppError> {
        match (connect_marked(self.configured).await, self.other()) {
            (Err(AppError::Connect { .. }), Some(other)) => connect_marked(other).await,
            (connected, _) => connected,
        }
    }
}

/// Starts a connect and returns the socket without waiting.
///
/// # Errors
/// Errors the kernel reports at once: no route, no descriptor, no free port.
pub fn begin(addr: AppAddr) -> io::Result<TcpStream> {
    start(addr, false)
}

/// Starts a connect like [`begin`]. If bytes are at hand that will be `sent_at_once`, the last
/// packet of the TCP handshake waits for them and is saved; without them it would go out after 200
/// ms.
fn start(addr: AppAddr, sent_at_once: bool) -> io::Result<TcpStream> {
    let make = || {
        Socket::new(
            Domain::for_address(addr.0),
            Type::STREAM.nonblocking().cloexec(),
            None,
        )
    };
    let socket = match make() {
        // The reserve exists for exactly this dial.
        Err(e) if is_out_of_descriptors(&e) && fd_reserve::release() => make()?,
        made => made?,
    };
    socket.set_tcp_nodelay(true)?;
    if sent_at_once {
        socket.set_tcp_quickack(false)?;
    }
    match socket.connect(&addr.0.into()) {
        // EINPROGRESS is the normal result of a nonblocking connect.
        Err(e) if e.raw_os_error() != Some(Errno::INPROGRESS.raw_os_error()) => return Err(e),
        _ => {}
    }
    TcpStream::from_std(socket.into())
}

/// Starts as [`start`] does, at the first address that does not refuse at once, which within one
/// host it does before the call returns.
fn start_either(
    first: AppAddr,
    other: Option<AppAddr>,
    sent_at_once: bool,
) -> io::Result<TcpStream> {
    let Some(other) = other else {
        return start(first, sent_at_once);
    };
    let socket = start(first, sent_at_once)?;
    match socket.take_error()? {
        None => Ok(socket),
        Some(_) => start(other, sent_at_once),
    }
}

/// Retries [`begin`] while descriptors have run out, because the caller has already been accepted.
async fn begin_when_possible(addr: AppAddr) -> io::Result<TcpStream> {
    loop {
        match begin(addr) {
            Err(e) if is_out_of_descriptors(&e) => tokio::time::sleep(EXHAUSTED_DELAY).await,
            begun => return begun,
        }
    }
}

fn is_out_of_descriptors(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::MFILE.raw_os_error())
}

/// Connects and waits until the app has accepted, at most [`CONNECT_TIMEOUT`].
///
/// # Errors
/// The kernel's error, or the timeout.
pub async fn connect(addr: AppAddr) -> Result<TcpStream, AppError> {
    connect_marked(addr).await.map(|(socket, _)| socket)
}

/// Connects like [`connect`], with the local port marked as ours before a peer can see the
/// connection.
///
/// # Errors
/// The kernel's error, or the timeout.
pub async fn connect_marked(addr: AppAddr) -> Result<(TcpStream, Option<OwnPort>), AppError> {
    let failed = |source| AppError::Connect { addr, source };
    let socket = begin_when_possible(addr).await.map_err(failed)?;
    let own = OwnPort::of_socket(&socket);
    match tokio::time::timeout(CONNECT_TIMEOUT, socket.writable()).await {
        Err(_) => {
            return Err(AppError::Timeout {
                addr,
                after: CONNECT_TIMEOUT,
            });
        }
        Ok(writable) => writable.map_err(failed)?,
    }
    // Writable means only that the connect has ended; its result is in the socket's error.
    match socket.take_error().map_err(failed)? {
        Some(refused) => Err(failed(refused)),
        None => Ok((socket, own)),
    }
}

impl AppError {
    /// Returns the outcome of a connection that failed with this error.
    #[must_use]
    pub fn ended(&self) -> Ended {
        match self {
            Self::Connect { source, .. } => ended_by_app(source),
            Self::Timeout { .. } => Ended::TimedOut(Stage::AppConnect),
            Self::Tls { .. } => Ended::AppReset,
        }
    }
}

/// Logs and counts why a connection to the app could not be made: a handshake that the app refuses
/// resets every caller, and nothing else tells.
pub fn report_dial_failure(error: &AppError, metrics: &PortMetrics) {
    match error {
        AppError::Tls { source, .. } => {
            let cause = tls::failure::cause(source);
            metrics.app_tls_failures.at(cause).inc();
            limited!(
                metrics.lines.app_tls, warn, cause = cause.label(), %error,
                "TLS handshake with the app failed; its callers are reset"
            );
        }
        AppError::Connect { .. } | AppError::Timeout { .. } => {
            tracing::debug!(%error, "the app could not be reached");
        }
    }
}

/// Maps an error on the app's connection to an outcome.
#[must_use]
pub fn ended_by_app(error: &io::Error) -> Ended {
    match error.kind() {
        io::ErrorKind::ConnectionRefused
        | io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable => Ended::AppRefused,
        io::ErrorKind::TimedOut => Ended::TimedOut(Stage::AppConnect),
        _ => Ended::AppReset,
    }
}

/// Connection to the app: not requested yet, dialling, open, or failed.
pub struct AppLeg {
    app: Arc<dyn DialApp>,
    hello: Option<Arc<TlsInfo>>,
    metrics: Arc<PortMetrics>,
    state: DialState,
}

enum DialState {
    Idle,
    /// Dialling with TLS, or out of descriptors; a plain connect is `Up` at once.
    Dialing(BoxFuture<'static, Result<Conn, AppError>>),
    Up(Conn),
    Failed(Ended),
}

impl AppLeg {
    /// Creates a leg that dials when [`Self::begin`] is called or when it is first awaited.
    #[must_use]
    pub fn new(
        app: Arc<dyn DialApp>,
        hello: Option<Arc<TlsInfo>>,
        metrics: Arc<PortMetrics>,
    ) -> Self {
        Self {
            app,
            hello,
            metrics,
            state: DialState::Idle,
        }
    }

    /// Starts dialling; drops an earlier connection of this leg.
    pub fn begin(&mut self) {
        self.begin_with(false);
    }

    /// Starts dialling like [`Self::begin`], for a connection whose first bytes are at hand and
    /// will be `sent_at_once`.
    pub fn begin_with(&mut self, sent_at_once: bool) {
        self.state = match self.app.plain_addr() {
            Some(addr) => match start_either(addr, self.app.other_addr(), sent_at_once) {
                Ok(socket) => DialState::Up(Conn::Tcp(socket)),
                Err(e) if is_out_of_descriptors(&e) => DialState::Dialing(Box::pin(async move {
                    let begun = begin_when_possible(addr).await;
                    begun
                        .map(Conn::Tcp)
                        .map_err(|source| AppError::Connect { addr, source })
                })),
                Err(e) => self.failed(AppError::Connect { addr, source: e }.ended()),
            },
            None => {
                let (app, hello) = (Arc::clone(&self.app), self.hello.clone());
                DialState::Dialing(Box::pin(async move { app.dial(hello.as_deref()).await }))
            }
        };
    }

    /// Returns the connection; dials if needed. A plain one may still be connecting; its first read
    /// or write then waits and reports a refusal.
    ///
    /// # Errors
    /// The dial's outcome; the same again until [`Self::begin`] is called.
    pub fn poll_conn(&mut self, cx: &mut Context<'_>) -> Poll<Result<&mut Conn, Ended>> {
        if matches!(self.state, DialState::Idle) {
            self.begin();
        }
        if let DialState::Dialing(dial) = &mut self.state {
            self.state = match std::task::ready!(dial.as_mut().poll(cx)) {
                Ok(conn) => DialState::Up(conn),
                Err(error) => {
                    report_dial_failure(&error, &self.metrics);
                    self.failed(error.ended())
                }
            };
        }
        Poll::Ready(match &mut self.state {
            DialState::Up(conn) => Ok(conn),
            DialState::Failed(ended) => Err(*ended),
            // Both states were left above.
            DialState::Idle | DialState::Dialing(_) => Err(Ended::Bug),
        })
    }

    /// Returns the connection if it is open.
    pub fn up(&mut self) -> Option<&mut Conn> {
        match &mut self.state {
            DialState::Up(conn) => Some(conn),
            _ => None,
        }
    }

    /// Returns true if no connection was requested, or it was given up.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        matches!(self.state, DialState::Idle)
    }

    /// Returns true if the last dial failed.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        matches!(self.state, DialState::Failed(_))
    }

    /// Drops the connection; the next use dials again.
    pub fn give_up(&mut self) {
        self.state = DialState::Idle;
    }

    /// Records that the connection failed before a byte was sent or received on it.
    pub fn fail(&mut self, ended: Ended) {
        self.state = self.failed(ended);
    }

    /// Makes the coming drop visible to the app as a reset.
    pub fn abort(&mut self) {
        if let Some(conn) = self.up() {
            conn.abort();
        }
    }

    /// Returns the connection; dials if needed (see [`Self::poll_conn`]).
    ///
    /// # Errors
    /// The dial's outcome.
    pub async fn into_conn(mut self) -> Result<Conn, Ended> {
        std::future::poll_fn(|cx| self.poll_conn(cx).map_ok(|_| ())).await?;
        match std::mem::replace(&mut self.state, DialState::Idle) {
            DialState::Up(conn) => Ok(conn),
            _ => Err(Ended::Bug),
        }
    }

    fn failed(&self, ended: Ended) -> DialState {
        self.metrics.app_connect_failures.inc();
        DialState::Failed(ended)
    }
}

impl fmt::Debug for AppLeg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.state {
            DialState::Idle => "AppLeg::Idle",
            DialState::Dialing(_) => "AppLeg::Dialing",
            DialState::Up(_) => "AppLeg::Up",
            DialState::Failed(_) => "AppLeg::Failed",
        })
    }
}

/// Local ports of our own connections to apps, one bit each: a caller from one of them is the agent
/// itself, because the redirect caught our own dial.
static OWN_PORTS: [AtomicU64; 1024] = [const { AtomicU64::new(0) }; 1024];

/// Marks one local port as ours until dropped.
#[derive(Debug)]
pub struct OwnPort(u16);

impl OwnPort {
    /// Marks the local port of `leg`; `None` while there is no plain socket.
    pub fn of(leg: &mut AppLeg) -> Option<Self> {
        Self::of_socket(leg.up()?.as_tcp()?)
    }

    /// Marks the local port of `socket`.
    pub fn of_socket(socket: &TcpStream) -> Option<Self> {
        let port = socket.local_addr().ok()?.port();
        // Relaxed: the redirected connection arrives through the kernel, which orders both threads.
        own_ports(port).fetch_or(1 << (port % 64), Ordering::Relaxed);
        Some(Self(port))
    }

    /// Returns true if `port` is marked.
    #[must_use]
    pub fn is_marked(port: u16) -> bool {
        own_ports(port).load(Ordering::Relaxed) & 1 << (port % 64) != 0
    }
}

impl Drop for OwnPort {
    fn drop(&mut self) {
        own_ports(self.0).fetch_and(!(1 << (self.0 % 64)), Ordering::Relaxed);
    }
}

fn own_ports(port: u16) -> &'static AtomicU64 {
    // 65536 ports in words of 64 bits make the 1024 of the table.
    &OWN_PORTS[usize::from(port / 64)]
}
