//! Accept flow of a port whose annotations name a secret: first bytes, ClientHello, handshake. ALPN
//! is answered as the app would. Callers that do not speak TLS are passed on unchanged, as are all
//! callers while one of the port's secrets is invalid.

use std::sync::Arc;
use std::time::Duration;

use rustls::server::Accepted;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use crate::io::conn::{Conn, Io as _};
use crate::outcome::Ended;
use crate::telemetry::metrics::{Limit, PortMetrics, TlsFailure};
use crate::tls::alpn::{AlpnOffer, AppTls, H2, HTTP1, TlsInfo};
use crate::tls::failure;
use crate::tls::identity::CallerIdentity;
use crate::tls::secrets::{annotations, store};
use crate::tls::server::client_hello::{RecordKind, read_hello, send_alert_and_close};
use crate::tls::server::refusal::{FailedHandshake, HandshakeRefused};
use crate::tls::server::{config, handshake_limit, self_test};
use crate::tls::stream;

/// Builds a ClientHello for [`TlsPort::warm_up`].
///
/// # Errors
/// The error of rustls; it does not depend on secrets.
pub fn hello() -> Result<Vec<u8>, rustls::Error> {
    self_test::hello()
}

/// Limits of one port's handshakes.
#[derive(Clone, Copy, Debug)]
pub struct HandshakeLimits {
    /// Time from the first byte of a ClientHello to the end of the handshake.
    pub handshake: Duration,
    /// Time to the first byte. Pools open connections ahead of their use, so this is generous; such
    /// a connection holds only its socket's memory.
    pub first_byte: Duration,
    /// Maximum of concurrent handshakes.
    pub concurrent: usize,
    /// Maximum of a ClientHello with its record headers. Usual ones have 0.2 to 2 KiB, with a large
    /// session ticket some more.
    pub hello_bytes: usize,
}

impl Default for HandshakeLimits {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            first_byte: Duration::from_secs(60),
            concurrent: 256,
            hello_bytes: 16 * 1024,
        }
    }
}

/// Result of the accept flow.
#[derive(Debug)]
pub enum Arrival {
    /// TLS was terminated; the stream is clear text.
    Terminated(Conn, TlsInfo),
    /// The caller speaks clear text. `TlsInfo`, if present, holds the ALPN with which to dial an
    /// app that wants TLS.
    Clear(TcpStream, Option<TlsInfo>),
    /// Not inspected, or TLS of the caller's own: dial the app without TLS of ours.
    Passthrough(TcpStream),
}

/// Downstream TLS of one port.
#[derive(Debug)]
pub struct TlsPort {
    termination: Option<config::ServerCertificates>,
    /// All secrets the port's annotations name, in both directions; all have to be valid.
    stores: Vec<Arc<store::Store>>,
    certain: bool,
    originates: bool,
    identity_header: Option<String>,
    app: Arc<dyn AppTls>,
    limits: HandshakeLimits,
    handshakes: handshake_limit::Handshakes,
}

impl TlsPort {
    /// Opens the plan's secrets; invalid ones are logged, and the port relays until they are valid.
    pub fn new(
        plan: &annotations::PortPlan,
        stores: &mut store::Stores,
        app: Arc<dyn AppTls>,
        limits: HandshakeLimits,
    ) -> Self {
        let termination = config::ServerCertificates::new(plan, stores);
        Self {
            stores: stores.all_of(plan),
            termination,
            certain: plan.certain,
            originates: plan.originating.is_some(),
            identity_header: plan.identity_header.clone(),
            app,
            handshakes: handshake_limit::Handshakes::new(limits.concurrent),
            limits,
        }
    }

    /// Returns true while callers' TLS is terminated.
    #[must_use]
    pub fn terminates(&self) -> bool {
        self.termination.is_some() && self.in_force()
    }

    /// Returns the first fault of a port that relays TLS although it has secrets.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        self.stores
            .iter()
            .filter(|s| s.current().is_none())
            .find_map(|s| s.fault())
    }

    /// Returns the request header that carries verified callers' identities.
    #[must_use]
    pub fn identity_header(&self) -> Option<&str> {
        self.identity_header.as_deref()
    }

    /// Returns the secrets in use, for metrics.
    #[must_use]
    pub fn stores(&self) -> &[Arc<store::Store>] {
        &self.stores
    }

    /// Returns true if the annotations are in force: every secret they name has been valid.
    #[must_use]
    pub fn in_force(&self) -> bool {
        store::all_good(&self.stores)
    }

    /// Runs a handshake with ourselves if this port terminates TLS and its secrets are valid.
    ///
    /// # Errors
    /// The problem of the secrets; callers' handshakes would fail the same way.
    pub fn self_test(&self) -> Result<(), rustls::Error> {
        self.current_config()
            .map_or(Ok(()), self_test::handshake_self_test)
    }

    /// Answers a synthetic ClientHello (see [`hello`]), so that the first real one is answered
    /// quickly.
    ///
    /// # Errors
    /// As [`Self::self_test`].
    pub fn warm_up(&self, hello: &[u8]) -> Result<(), rustls::Error> {
        self.current_config()
            .map_or(Ok(()), |config| self_test::respond_to(config, hello))
    }

    fn current_config(&self) -> Option<Arc<rustls::ServerConfig>> {
        let termination = self
            .termination
            .as_ref()
            .and_then(config::ServerCertificates::current)?;
        Some(termination.config(AlpnOffer {
            h2: true,
            http1: true,
        }))
    }

    /// Returns true if an annotation names this port, so that its callers are expected to speak
    /// TLS.
    #[must_use]
    pub fn is_certain(&self) -> bool {
        self.certain
    }

    /// Detects TLS and, if it is ours to terminate, performs the handshake. Failures are counted
    /// here. `app_only` means that no workstation could serve this caller, so that it is refused if
    /// the app does not listen.
    ///
    /// # Errors
    /// The handshake failed; the caller was sent an alert if TLS has one for it.
    pub async fn accept(
        &self,
        socket: TcpStream,
        app_only: bool,
        metrics: &PortMetrics,
    ) -> Result<Arrival, HandshakeRefused> {
        if !self.in_force() {
            return Ok(Arrival::Passthrough(socket));
        }
        let termination = match self
            .termination
            .as_ref()
            .map(config::ServerCertificates::current)
        {
            Some(None) => return Ok(Arrival::Passthrough(socket)),
            termination => termination.flatten(),
        };
        let refused = match self.first_bytes(&socket).await {
            Ok(RecordKind::Clear(hello)) => {
                if termination.is_some() {
                    metrics.tls_failures.at(TlsFailure::NotTls).inc();
                }
                return Ok(Arrival::Clear(socket, hello.filter(|_| self.originates)));
            }
            Ok(RecordKind::Tls) => match termination {
                None => return Ok(Arrival::Passthrough(socket)),
                Some(termination) => match self
                    .shake_hands(socket, &termination, app_only, metrics)
                    .await
                {
                    Ok(arrival) => {
                        metrics.tls_handshakes.inc();
                        return Ok(arrival);
                    }
                    Err(failed) => failed,
                },
            },
            Err(refused) => refused.into(),
        };
        if let Some(cause) = refused.refused.cause {
            metrics.tls_failures.at(cause).inc();
        }
        match refused.socket {
            Some(mut socket) if refused.refused.ended == Ended::AppRefused => socket.abort(),
            Some(socket) => send_alert_and_close(socket, &refused.alert).await,
            None => {}
        }
        Err(refused.refused)
    }

    /// Peeks at the first bytes.
    async fn first_bytes(&self, socket: &TcpStream) -> Result<RecordKind, HandshakeRefused> {
        let mut start = [0; 8];
        let deadline = Instant::now() + self.limits.first_byte;
        let mut patience = SILENCE_TIMEOUT;
        let read = loop {
            let until = if self.certain {
                deadline
            } else {
                deadline.min(Instant::now() + patience)
            };
            match timeout_at(until, socket.peek(&mut start)).await {
                Ok(read) => break read,
                Err(_) if Instant::now() >= deadline => {
                    return Err(HandshakeRefused::new(
                        TlsFailure::Timeout,
                        "the caller sent nothing",
                    ));
                }
                // The port's callers may not speak TLS at all: the app may be one that speaks
                // first.
                Err(_) if self.app.speaks_first().await => return Ok(RecordKind::Clear(None)),
                Err(_) => patience = APP_CHECK_INTERVAL,
            }
        };
        let n =
            read.map_err(|error| HandshakeRefused::new(TlsFailure::Closed, error.to_string()))?;
        Ok(RecordKind::of(start.get(..n).unwrap_or_default()))
    }

    async fn shake_hands(
        &self,
        mut socket: TcpStream,
        termination: &config::ServerConfigs,
        app_only: bool,
        metrics: &PortMetrics,
    ) -> Result<Arrival, FailedHandshake> {
        let deadline = Instant::now() + self.limits.handshake;
        let evicted = || {
            metrics.limits.at(Limit::Handshakes).inc();
            HandshakeRefused::new(
                TlsFailure::Timeout,
                "handshake limit reached: evicted for a newer handshake",
            )
        };
        let slot = self
            .handshakes
            .slot(deadline)
            .await
            .map_err(|_| evicted())?;
        let attempt = async {
            match self.negotiate(&mut socket, termination, app_only).await {
                Ok(start) => finish(start, socket).await,
                Err(failed) => Err(FailedHandshake {
                    socket: Some(socket),
                    ..failed
                }),
            }
        };
        let outcome = tokio::select! {
            outcome = timeout_at(deadline, attempt) => outcome,
            () = slot.evicted() => return Err(evicted().into()),
        };
        drop(slot);
        match outcome {
            Ok(Ok(stream)) => Ok(arrived(stream, termination)?),
            Ok(Err(failed)) => Err(failed),
            Err(_) => Err(HandshakeRefused::new(
                TlsFailure::Timeout,
                format!("not complete after {:?}", self.limits.handshake),
            )
            .into()),
        }
    }

    /// Reads the ClientHello and decides the offer.
    async fn negotiate(
        &self,
        socket: &mut TcpStream,
        termination: &config::ServerConfigs,
        app_only: bool,
    ) -> Result<(Accepted, Arc<rustls::ServerConfig>), FailedHandshake> {
        let accepted = read_hello(socket, self.limits.hello_bytes).await?;
        let asked: Option<Vec<Vec<u8>>> = accepted
            .client_hello()
            .alpn()
            .map(|names| names.map(<[u8]>::to_vec).collect());
        let offer = match &asked {
            // A caller without ALPN gets no answer to it, so the app need not be probed.
            None => AlpnOffer::default(),
            Some(names) => {
                let offer = match self.app.offers().await {
                    Ok(offer) => offer,
                    Err(away) if app_only => {
                        let detail = away.to_string();
                        return Err(HandshakeRefused {
                            cause: None,
                            ended: Ended::AppRefused,
                            detail,
                        }
                        .into());
                    }
                    Err(away) => away.likely,
                };
                let http = names.iter().any(|name| name == H2 || name == HTTP1);
                // A caller that offers only other protocols must not be refused because of HTTP.
                if http { offer } else { AlpnOffer::default() }
            }
        };
        Ok((accepted, termination.config(offer)))
    }
}

/// Time a caller may be silent before a port without declared TLS checks whether the app speaks
/// first.
const SILENCE_TIMEOUT: Duration = Duration::from_millis(300);
/// Interval of that check: the app may have been starting.
const APP_CHECK_INTERVAL: Duration = Duration::from_secs(5);

type Stream = tokio_rustls::server::TlsStream<TcpStream>;

async fn finish(
    (accepted, config): (Accepted, Arc<rustls::ServerConfig>),
    socket: TcpStream,
) -> Result<Stream, FailedHandshake> {
    let start = tokio_rustls::StartHandshake::from_parts(accepted, socket);
    let outcome = start.into_stream(config).into_fallible().await;
    outcome.map_err(|(error, socket)| {
        let cause = failure::cause(&error);
        // The alert has been sent with the error.
        FailedHandshake {
            socket: Some(socket),
            ..HandshakeRefused::new(cause, error.to_string()).into()
        }
    })
}

fn arrived(
    stream: Stream,
    termination: &config::ServerConfigs,
) -> Result<Arrival, HandshakeRefused> {
    let session = stream.get_ref().1;
    let identity = match session.peer_certificates().and_then(<[_]>::first) {
        Some(certificate) if termination.verifies_callers() => {
            let identity = CallerIdentity::of(certificate, store::now()).map_err(|problem| {
                HandshakeRefused::new(TlsFailure::Certificate, problem.to_string())
            })?;
            Some(Arc::new(identity))
        }
        _ => None,
    };
    let hello = TlsInfo {
        server_name: session.server_name().map(str::to_owned),
        alpn: session.alpn_protocol().map(<[u8]>::to_vec),
        identity,
    };
    Ok(Arrival::Terminated(
        Conn::Other(Box::new(stream::ServerSide::new(stream))),
        hello,
    ))
}
