//! TLS towards the app and, with the same client certificate, towards workstations, with the
//! caller's server name and ALPN. Whether the app speaks TLS is declared, or probed once and kept
//! until a connection fails.
//!
//! A declared protocol comes first, then the result of the probe. The app is probed only if a
//! secret is configured, and a clear-text caller is carried in TLS only if there is a client
//! certificate.

use std::any::Any;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

use crate::addr::AppAddr;
use crate::io::conn::{Conn, Io};
use crate::tls;
use crate::tls::alpn::{AlpnOffer, AppUnavailable, H2, HTTP1, TlsInfo};
use crate::tls::client::config::{Client, Peer};
use crate::tls::secrets::annotations::{PortPlan, ToApp};
use crate::tls::secrets::store::{Store, Stores, all_good};
use crate::tls::stream::ClientSide;
use crate::upstream::app::AppAddrs;
use crate::upstream::probe;
use crate::upstream::probe::TlsAnswer;
use crate::upstream::{AppError, DialApp};
use traffic_proto::sync::lock;

/// Time for a handshake with the app or a workstation.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Lifetime of a missing answer: the app may be busy or starting, so it is probed again afterwards.
const SILENT_TTL: Duration = Duration::from_secs(5);
/// Lifetime of the result of a connection closed without a byte: nearly always a protocol that
/// cannot parse the probe.
const UNAVAILABLE_TTL: Duration = Duration::from_secs(60);

/// HTTP versions a clear-text app is declared to speak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClearHttp {
    /// HTTP/1 only.
    Http1,
    /// HTTP/2; HTTP/1 is left to the app.
    Http2,
    /// Other than HTTP: the app does not use ALPN.
    Neither,
    /// Undeclared: the app is probed by a preface.
    #[default]
    Ask,
    /// Undeclared, and probing is switched off.
    DoNotAsk,
}

/// Dials one port's app, in TLS if it speaks TLS.
#[derive(Debug)]
pub struct AppTlsDialer {
    addrs: AppAddrs,
    client: Client,
    /// All secrets of the port: unless all are valid, callers are passed through without TLS of
    /// ours.
    secrets: Vec<Arc<Store>>,
    to_app: ToApp,
    clear_http: ClearHttp,
    probe_timeout: Duration,
    known: Mutex<CachedAnswers>,
    asking: tokio::sync::Mutex<()>,
}

/// Cached results of probing the app.
#[derive(Debug, Default)]
struct CachedAnswers {
    speaks: Option<(AppAnswer, Option<Instant>)>,
    offer: Option<(AlpnOffer, Option<Instant>)>,
    speaks_first: Option<(bool, Option<Instant>)>,
    /// The last offer, even if expired.
    last_offer: Option<AlpnOffer>,
    /// Failure of the last connection's handshake, if it failed.
    fault: Option<String>,
}

impl CachedAnswers {
    /// Clears the cached results: the app's process may have been replaced.
    fn forget(&mut self) {
        *self = Self {
            last_offer: self.last_offer,
            fault: self.fault.take(),
            ..Self::default()
        };
    }
}

/// Protocol spoken to the app.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppAnswer {
    /// Clear text.
    Clear,
    /// TLS.
    Tls,
}

impl AppTlsDialer {
    /// Creates a dialler for the app at `addr`.
    #[must_use]
    pub fn new(plan: &PortPlan, addr: AppAddr, clear_http: ClearHttp, stores: &mut Stores) -> Self {
        Self {
            addrs: AppAddrs::new(addr),
            client: Client::new(plan, stores),
            secrets: stores.all_of(plan),
            to_app: plan.to_app,
            clear_http,
            probe_timeout: plan.probe_timeout,
            known: Mutex::default(),
            asking: tokio::sync::Mutex::default(),
        }
    }

    /// Returns the app's protocol; probes it if unknown.
    ///
    /// # Errors
    /// The app does not listen.
    pub async fn speaks(&self) -> Result<AppAnswer, AppError> {
        if let Some(known) = self.known_speaks() {
            return Ok(known);
        }
        // A burst of first callers would open a probing connection each.
        let _one_at_a_time = self.asking.lock().await;
        if let Some(known) = self.known_speaks() {
            return Ok(known);
        }
        let (speaks, picked, doubt) = match self.ask_tls(&[H2, HTTP1]).await? {
            TlsAnswer::Tls(picked) => (AppAnswer::Tls, Some(picked), None),
            // Only a TLS server can want a certificate that we have not.
            TlsAnswer::Refused => (AppAnswer::Tls, None, None),
            TlsAnswer::NotTls => (AppAnswer::Clear, None, None),
            TlsAnswer::Closed => (AppAnswer::Clear, None, Some(UNAVAILABLE_TTL)),
            // A clear-text protocol may wait for a whole line before it says anything.
            TlsAnswer::Silent => (AppAnswer::Clear, None, Some(SILENT_TTL)),
        };
        tracing::info!(
            port = self.port(),
            ?speaks,
            sure = doubt.is_none(),
            "app probed for TLS"
        );
        let offer = match picked {
            Some(picked) => Some(self.tls_offer(picked.as_deref()).await?),
            None => None,
        };
        let mut known = self.lock();
        known.speaks = Some((speaks, until(doubt)));
        if let Some(offer) = offer {
            known.offer = Some((offer, None));
            known.last_offer = Some(offer);
        }
        Ok(speaks)
    }

    fn known_speaks(&self) -> Option<AppAnswer> {
        match self.to_app {
            ToApp::Clear => Some(AppAnswer::Clear),
            _ => {
                kept(&self.lock().speaks).or((self.to_app == ToApp::Tls).then_some(AppAnswer::Tls))
            }
        }
    }

    /// Returns the offer of a TLS app that chose `picked` of both: HTTP/1.1 support needs a probe
    /// of its own.
    async fn tls_offer(&self, picked: Option<&[u8]>) -> Result<AlpnOffer, AppError> {
        Ok(match picked {
            Some(H2) => {
                let http1 = self.ask_tls(&[HTTP1]).await? == TlsAnswer::Tls(Some(HTTP1.to_vec()));
                AlpnOffer { h2: true, http1 }
            }
            Some(HTTP1) => AlpnOffer {
                h2: false,
                http1: true,
            },
            _ => AlpnOffer::default(),
        })
    }

    async fn ask_tls(&self, alpn: &[&[u8]]) -> Result<TlsAnswer, AppError> {
        let config = self
            .client
            .probe_config(alpn)
            .map_err(|error| self.tls_error(std::io::Error::other(error)))?;
        let name = self.client.name(None, self.addr().0.ip());
        probe::tls(&self.addrs, &config, &name, self.probe_timeout).await
    }

    async fn offer(&self) -> Result<AlpnOffer, AppError> {
        if let Some(offer) = kept(&self.lock().offer) {
            return Ok(offer);
        }
        // That probe may have brought the offer along, or another caller's has.
        let speaks = self.speaks().await?;
        if let Some(offer) = kept(&self.lock().offer) {
            return Ok(offer);
        }
        let http1 = AlpnOffer {
            h2: false,
            http1: true,
        };
        let (offer, doubt) = match speaks {
            AppAnswer::Tls => match self.ask_tls(&[H2, HTTP1]).await? {
                TlsAnswer::Tls(picked) => (self.tls_offer(picked.as_deref()).await?, None),
                // It requires a certificate of the caller's own, so its offer to the caller stays
                // unknown.
                TlsAnswer::Refused => (http1, None),
                TlsAnswer::NotTls => {
                    self.learn_clear_text();
                    self.clear_offer().await?
                }
                // HTTP/1.1 is what every client falls back to, and a wrong `h2` would break the
                // connection.
                TlsAnswer::Closed | TlsAnswer::Silent => (http1, Some(SILENT_TTL)),
            },
            AppAnswer::Clear => self.clear_offer().await?,
        };
        let sure = doubt.is_none();
        tracing::info!(
            port = self.port(),
            h2 = offer.h2,
            http1 = offer.http1,
            sure,
            "app probed for ALPN"
        );
        let mut known = self.lock();
        known.offer = Some((offer, until(doubt)));
        known.last_offer = Some(offer);
        drop(known);
        Ok(offer)
    }

    /// Returns the offer of a clear-text app, which takes no part in ALPN: `http/1.1` stays on
    /// offer beside `h2`, since an app that does not speak it says so itself.
    async fn clear_offer(&self) -> Result<(AlpnOffer, Option<Duration>), AppError> {
        Ok(match self.clear_http {
            ClearHttp::Http1 | ClearHttp::DoNotAsk => (
                AlpnOffer {
                    h2: false,
                    http1: true,
                },
                None,
            ),
            ClearHttp::Neither => (AlpnOffer::default(), None),
            ClearHttp::Http2 => (
                AlpnOffer {
                    h2: true,
                    http1: true,
                },
                None,
            ),
            ClearHttp::Ask => {
                let answer = probe::h2c(&self.addrs).await?;
                (
                    AlpnOffer {
                        h2: answer.unwrap_or(false),
                        http1: true,
                    },
                    answer.is_none().then_some(SILENT_TTL),
                )
            }
        })
    }

    async fn dial_app(&self, hello: Option<&TlsInfo>) -> Result<Conn, AppError> {
        if !self.wants_tls(hello) {
            // A secret that is not valid yet must not keep callers from the app.
            return self.dial_plain().await;
        }
        let dialled = match self.speaks().await {
            Ok(AppAnswer::Clear) => self.dial_plain().await,
            Ok(AppAnswer::Tls) => self.dial_tls(hello).await,
            Err(error) => Err(error),
        };
        let mut known = self.lock();
        known.fault = match &dialled {
            Err(error @ AppError::Tls { .. }) => Some(error.to_string()),
            _ => None,
        };
        // An app that is gone may come back as another one.
        if dialled.is_err() {
            known.forget();
        }
        // The lock ends before the connection, which lives long.
        drop(known);
        dialled
    }

    /// Returns true if TLS with the app is possible: for callers in TLS, and always with a client
    /// certificate.
    fn wants_tls(&self, hello: Option<&TlsInfo>) -> bool {
        (hello.is_some() || self.client.has_certificate()) && all_good(&self.secrets)
    }

    async fn dial_plain(&self) -> Result<Conn, AppError> {
        self.addrs.connect().await.map(Conn::Tcp)
    }

    async fn dial_tls(&self, hello: Option<&TlsInfo>) -> Result<Conn, AppError> {
        let (socket, own) = self.addrs.connect_marked().await?;
        let guard = own.map(|own| Box::new(own) as Box<dyn Any + Send>);
        match self.connect(socket, Peer::App, hello, guard).await {
            Ok(conn) => Ok(conn),
            // Nothing but our hello was sent, so the caller's bytes can still go in clear text.
            Err(error) if probe::read_failure(&error) == TlsAnswer::NotTls => {
                self.learn_clear_text();
                self.dial_plain().await
            }
            Err(error) => Err(self.tls_error(error)),
        }
    }

    /// Records that the app speaks clear text despite a declaration; nothing has been sent to it
    /// yet.
    fn learn_clear_text(&self) {
        tracing::warn!(
            port = self.port(),
            "the app speaks clear text although TLS was declared or probed"
        );
        let mut known = self.lock();
        known.forget();
        known.speaks = Some((AppAnswer::Clear, None));
    }

    async fn connect<S: Io + 'static>(
        &self,
        io: S,
        peer: Peer,
        hello: Option<&TlsInfo>,
        guard: Option<Box<dyn Any + Send>>,
    ) -> std::io::Result<Conn> {
        let alpn = hello.and_then(|hello| hello.alpn.as_deref());
        let config = self
            .client
            .config(peer, alpn)
            .map_err(std::io::Error::other)?;
        let name = self.client.name(hello, self.addr().0.ip());
        let connecting = TlsConnector::from(config).connect(name, io);
        let stream = timeout(HANDSHAKE_TIMEOUT, connecting)
            .await
            .map_err(|_| std::io::ErrorKind::TimedOut)??;
        Ok(Conn::Other(Box::new(ClientSide::new(stream, guard))))
    }

    fn addr(&self) -> AppAddr {
        self.addrs.configured()
    }

    fn port(&self) -> u16 {
        self.addr().0.port()
    }

    fn tls_error(&self, source: std::io::Error) -> AppError {
        AppError::Tls {
            addr: self.addr(),
            source,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, CachedAnswers> {
        lock(&self.known)
    }
}

fn until(doubt: Option<Duration>) -> Option<Instant> {
    doubt.map(|time| Instant::now() + time)
}

fn kept<T: Copy>(known: &Option<(T, Option<Instant>)>) -> Option<T> {
    known
        .as_ref()
        .filter(|(_, until)| until.is_none_or(|until| Instant::now() < until))
        .map(|(value, _)| *value)
}

impl DialApp for AppTlsDialer {
    fn dial<'a>(&'a self, hello: Option<&'a TlsInfo>) -> BoxFuture<'a, Result<Conn, AppError>> {
        Box::pin(self.dial_app(hello))
    }

    fn dial_passthrough(&self) -> BoxFuture<'_, Result<Conn, AppError>> {
        Box::pin(self.dial_plain())
    }

    fn app_addr(&self) -> Option<AppAddr> {
        Some(self.addr())
    }

    fn plain_addr(&self) -> Option<AppAddr> {
        None
    }

    fn learn_other_family(&self, pod: IpAddr) {
        self.addrs.learn(pod);
    }

    fn other_addr(&self) -> Option<AppAddr> {
        self.addrs.other()
    }

    fn tls_fault(&self) -> Option<String> {
        self.lock().fault.clone()
    }

    fn secure_tunnel<'a>(
        &'a self,
        tunnel: Box<dyn Io>,
        hello: Option<&'a TlsInfo>,
    ) -> BoxFuture<'a, std::io::Result<Conn>> {
        Box::pin(async move {
            let in_tls = self.wants_tls(hello) && matches!(self.speaks().await, Ok(AppAnswer::Tls));
            if !in_tls {
                return Ok(Conn::Other(tunnel));
            }
            self.connect(Conn::Other(tunnel), Peer::Workstation, hello, None)
                .await
        })
    }
}

impl tls::alpn::AppTls for AppTlsDialer {
    fn offers(&self) -> BoxFuture<'_, Result<AlpnOffer, AppUnavailable>> {
        Box::pin(async {
            match self.offer().await {
                Ok(offer) => Ok(offer),
                Err(AppError::Connect { .. } | AppError::Timeout { .. }) => {
                    let declared = AlpnOffer {
                        h2: self.clear_http == ClearHttp::Http2,
                        http1: true,
                    };
                    Err(AppUnavailable {
                        likely: self.lock().last_offer.unwrap_or(declared),
                    })
                }
                // The app listens, but its protocol cannot be determined: HTTP/1.1 is the most
                // common one.
                Err(AppError::Tls { .. }) => Ok(AlpnOffer {
                    h2: false,
                    http1: true,
                }),
            }
        })
    }

    fn speaks_first(&self) -> BoxFuture<'_, bool> {
        Box::pin(async {
            if let Some(speaks_first) = kept(&self.lock().speaks_first) {
                return speaks_first;
            }
            let Ok(speaks_first) = probe::speaks_first(&self.addrs).await else {
                return false;
            };
            // A silent app may just be starting.
            self.lock().speaks_first =
                Some((speaks_first, until((!speaks_first).then_some(SILENT_TTL))));
            speaks_first
        })
    }
}

/// Builds both halves of a port's TLS: accepting callers and dialling the app.
#[must_use]
pub fn compose(
    plan: &PortPlan,
    addr: AppAddr,
    clear_http: ClearHttp,
    stores: &mut Stores,
) -> (Arc<tls::server::accept::TlsPort>, Arc<AppTlsDialer>) {
    let app = Arc::new(AppTlsDialer::new(plan, addr, clear_http, stores));
    let port = tls::server::accept::TlsPort::new(
        plan,
        stores,
        Arc::clone(&app) as Arc<dyn tls::alpn::AppTls>,
        tls::server::accept::HandshakeLimits::default(),
    );
    (Arc::new(port), app)
}

/// Dials without TLS of ours, for a caller whose own TLS is passed through to the app.
#[derive(Debug)]
pub struct Passthrough(pub Arc<dyn DialApp>);

impl DialApp for Passthrough {
    fn dial<'a>(&'a self, _: Option<&'a TlsInfo>) -> BoxFuture<'a, Result<Conn, AppError>> {
        self.0.dial_passthrough()
    }

    fn plain_addr(&self) -> Option<AppAddr> {
        self.0.app_addr()
    }

    fn other_addr(&self) -> Option<AppAddr> {
        self.0.other_addr()
    }
}
