//! Context of one connection: the caller, the port's shared state, and the TLS handshake's result.
//! Protocols take a [`ConnContext`].

use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::addr::Caller;
use crate::drain::Drain;
use crate::routes::{CurrentRoutes, UnreadTls};
use crate::telemetry::access_log::Access;
use crate::telemetry::access_log::record::AccessRecord;
use crate::telemetry::explain_header::Explanation;
use crate::telemetry::metrics::{Label as _, OpaqueReason, PortMetrics};
use crate::tls::alpn::TlsInfo;
use crate::tls::identity::CallerIdentity;
use crate::upstream::workstation::Workstations;
use crate::upstream::{DialApp, OpenTunnel, Transport};
use traffic_core::routing::{Intercept, Request, RouteTable, Routed};

/// The app protocol a port was declared, annotated or probed to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AppProtocol {
    /// Unknown: the caller's bytes decide.
    Unknown,
    /// Opaque: relayed without detection.
    Opaque,
    /// HTTP/1 in clear text.
    Http1,
    /// HTTP/2; a TLS record or a preface from the caller says which form.
    Http2,
    /// TLS; the version of HTTP inside by ALPN.
    Tls,
}

/// Source of a port's app protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ProtocolSource {
    /// Only each caller's own bytes.
    #[default]
    Bytes,
    /// The Service port's `appProtocol`.
    AppProtocol,
    /// The per-port annotation.
    Annotation,
    /// The configured strategy (`portName`, `http`, `http2`).
    Strategy,
    /// A probe of the app.
    Probe,
}

impl ProtocolSource {
    /// Name in the log and on admin pages.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::AppProtocol => "declared",
            Self::Annotation => "annotation",
            Self::Strategy => "strategy",
            Self::Probe => "probe",
        }
    }
}

impl AppProtocol {
    /// Name in the log and on admin pages.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Opaque => "tcp",
            Self::Http1 => "http",
            Self::Http2 => "http2",
            Self::Tls => "https",
        }
    }
}

/// The app protocol of a port and where that knowledge comes from (declaration, annotation, probe).
/// A probe may change it while the port serves.
#[derive(Debug)]
pub struct DetectedProtocol {
    known: ArcSwap<(AppProtocol, ProtocolSource)>,
    /// Held while the app is asked, so that it is asked once.
    pub(crate) asking: tokio::sync::Mutex<()>,
    /// Signals that a probe's result was dropped.
    pub(crate) forgotten: tokio::sync::Notify,
}

impl DetectedProtocol {
    /// Starts with the configured protocol.
    #[must_use]
    pub fn new(declared: AppProtocol, source: ProtocolSource) -> Self {
        Self {
            known: ArcSwap::from_pointee((declared, source)),
            asking: tokio::sync::Mutex::new(()),
            forgotten: tokio::sync::Notify::new(),
        }
    }

    /// Returns the current protocol and its source.
    #[must_use]
    pub fn get(&self) -> (AppProtocol, ProtocolSource) {
        **self.known.load()
    }

    /// Stores a probe's result.
    pub fn set(&self, found: AppProtocol, source: ProtocolSource) {
        self.known.store(Arc::new((found, source)));
    }

    /// Drops the result of a probe, because a connection contradicts it or the app was away: it may
    /// be another one by now.
    pub fn forget_probe(&self) {
        if self.get().1 == ProtocolSource::Probe {
            self.set(AppProtocol::Unknown, ProtocolSource::Bytes);
            self.forgotten.notify_one();
        }
    }
}

/// State shared by all connections of one port.
#[derive(Debug)]
pub struct PortContext {
    /// The app's port as the container declares it.
    pub container_port: u16,
    /// Names of the port in the container and in Services, and its numbers in those.
    pub aliases: Vec<String>,
    /// The port the agent listens on.
    pub agent_port: u16,
    /// The current rules.
    pub routes: Arc<CurrentRoutes>,
    /// TCP or UDP.
    pub transport: Transport,
    /// The app's protocol as far as it is known.
    pub app_protocol: DetectedProtocol,
    /// Dials the app.
    pub app: Arc<dyn DialApp>,
    /// An intercept has taken the app's place: there is nobody else to answer.
    pub app_away: bool,
    /// Opens tunnels to workstations.
    pub tunnels: Arc<dyn OpenTunnel>,
    /// Certificates and limits if the port's annotations ask for TLS.
    pub tls: Option<Arc<crate::tls::server::accept::TlsPort>>,
    /// Access log and the pod's name for explanations.
    pub access: Access,
    /// Counters of the port.
    pub metrics: Arc<PortMetrics>,
    /// Shutdown phases.
    pub drain: Drain,
}

impl PortContext {
    /// Returns what callers said in TLS that nobody here could read, although the port is declared
    /// as one that is read.
    #[must_use]
    pub fn unread_tls(&self) -> Option<UnreadTls> {
        let (declared, source) = self.app_protocol.get();
        // What a probe or a caller's bytes have told is no promise that could be broken.
        let is_declared = !matches!(source, ProtocolSource::Bytes | ProtocolSource::Probe);
        let connections = self.metrics.opaque.at(OpaqueReason::TlsRelayed).get();
        if declared != AppProtocol::Http2 || !is_declared || self.tls.is_some() || connections == 0
        {
            return None;
        }
        let port = self.container_port;
        let text = format!(
            "callers of port {port}, declared as HTTP/2, speak TLS, which is relayed unread: filters see \
            nothing of it; give the agent the certificate (telepresence.io/downstream-tls-secret.{port})"
        );
        Some(UnreadTls { connections, text })
    }

    /// The port's way to workstations.
    #[must_use]
    pub fn workstations(&self) -> Workstations<'_> {
        Workstations {
            port: self.container_port,
            tunnels: &*self.tunnels,
            app: &*self.app,
            app_away: self.app_away,
            metrics: &self.metrics,
        }
    }
}

/// Context of one connection.
#[derive(Clone, Debug)]
pub struct ConnContext {
    /// The downstream peer.
    pub caller: Caller,
    /// State shared by all connections of the port.
    pub port: Arc<PortContext>,
    /// Result of the TLS handshake, if the agent terminated TLS.
    pub hello: Option<Arc<TlsInfo>>,
}

impl ConnContext {
    /// Starts the access record of a request if the access log is on or `request` asks for an
    /// explanation.
    #[must_use]
    pub fn access_record<R: Request + ?Sized>(
        &self,
        verdict: &Routed<'_>,
        table: &RouteTable,
        request: &R,
        method: &[u8],
        protocol: &'static str,
    ) -> Option<Box<AccessRecord>> {
        let access = &self.port.access;
        if access.log.is_none() && !verdict.asks_why {
            return None;
        }
        let line = access.log.as_ref().map(|log| {
            (
                log.clone(),
                log.begin(request, method, protocol, self.caller),
            )
        });
        let explanation = verdict.asks_why.then(|| {
            let (declared, source) = self.port.app_protocol.get();
            let protocol = format_args!("{protocol} ({} by {})", declared.word(), source.word());
            Explanation::of(
                &access.pod,
                self.port.container_port,
                protocol,
                table,
                request,
            )
        });
        let mut record = AccessRecord::new(line, explanation);
        record.decided(&verdict.decision, table, &self.app_address());
        record.copied(verdict.wiretaps.iter().map(|w| &***w));
        Some(record)
    }

    /// Starts the access record of an opaque connection if the access log is on. It goes to the
    /// app, or to `intercept`'s workstation.
    #[must_use]
    pub fn opaque_record(
        &self,
        why: OpaqueReason,
        intercept: Option<&Intercept>,
    ) -> Option<Box<AccessRecord>> {
        let log = self.port.access.log.as_ref()?;
        let mut record =
            AccessRecord::new(Some((log.clone(), log.begin_connection(self.caller))), None);
        record.unread(why.label(), intercept, &self.app_address());
        Some(record)
    }

    /// The app's address for messages.
    #[must_use]
    pub fn app_address(&self) -> String {
        self.port
            .app
            .plain_addr()
            .map_or_else(|| "app".to_owned(), |a| a.to_string())
    }

    /// Header name for the client-certificate identity on this port, and this caller's identity if
    /// it has one. A header of that name sent by the caller must never be forwarded.
    #[must_use]
    pub fn identity(&self) -> Option<(&str, Option<&CallerIdentity>)> {
        let name = self.port.tls.as_ref()?.identity_header()?;
        Some((
            name,
            self.hello
                .as_ref()
                .and_then(|hello| hello.identity.as_deref()),
        ))
    }
}
