//! Protocol detection on the first bytes, while the app is connected and may already send.
//!
//! The caller's bytes decide. Bytes from the app first mean a protocol in which the server speaks
//! first; such a connection is relayed opaquely. A silent caller has no deadline: the app is
//! connected and nothing is held back. The caller's first byte starts one deadline and one size
//! limit; exceeding either means opaque.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Sleep;

use crate::io::buffers::Buf;
use crate::io::conn::Conn;
use crate::outcome::Ended;
use crate::proxy::context::{AppProtocol, ConnContext, ProtocolSource};
use crate::telemetry::metrics::OpaqueReason;
use crate::upstream::app::{AppLeg, ended_by_app};
use traffic_core::http1::head::MAX_HEAD;
use traffic_core::sniff::{self, FirstBytes};

/// Time a prefix that may become a usual request is held back from the app. Clients send a request
/// line in one piece, so this delays only a protocol that begins like one and then waits for an
/// answer.
pub const DEADLINE: Duration = Duration::from_secs(3);

/// Time a prefix is held back that no usual request begins with. It is most likely another
/// protocol, which must not be slowed; a fragmented request with an unusual method goes to the app.
pub const UNFAMILIAR_TIMEOUT: Duration = Duration::from_millis(200);

/// Time a silent caller is waited for if a workstation takes every connection of the port: long
/// enough for clients that speak first, short beside a login where the server does.
pub const SILENCE_TIMEOUT: Duration = Duration::from_millis(200);

/// The protocol a connection is carried as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.0 or 1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// Not understood, or not to be parsed.
    Opaque(OpaqueReason),
}

/// The decision, with the bytes that were read for it.
#[derive(Debug)]
pub struct Detected {
    /// The detected protocol.
    pub protocol: Protocol,
    /// Bytes the caller has sent.
    pub from_caller: Buf,
    /// Bytes the app has sent.
    pub from_app: Buf,
}

/// Reads until the protocol is known, beginning with the bytes the caller has already sent in
/// `received`. Nothing is consumed.
///
/// # Errors
/// The connection is over: the caller left, or the app refused while no rule could send a request
/// elsewhere.
pub async fn first_bytes(
    down: &mut Conn,
    received: Buf,
    app: &mut AppLeg,
    context: &ConnContext,
) -> Result<Detected, Ended> {
    // Only a caller that speaks HTTP is sure to send first.
    let (declared, source) = context.port.app_protocol.get();
    let client_first = matches!(declared, AppProtocol::Http1 | AppProtocol::Http2)
        && source != ProtocolSource::Probe;
    let awaits_workstation = app.is_idle() && !client_first && received.is_empty();
    let (from_caller, from_app) = (received, Buf::default());
    let mut look = Look {
        down,
        app,
        context,
        from_caller,
        from_app,
        awaits_workstation,
        doubted: false,
        deadline: None,
    };
    let protocol = match look.protocol(sniff::classify(look.from_caller.unread())) {
        Some(protocol) => protocol,
        None => poll_fn(|cx| look.poll(cx)).await?,
    };
    Ok(Detected {
        protocol,
        from_caller: look.from_caller,
        from_app: look.from_app,
    })
}

struct Look<'a> {
    down: &'a mut Conn,
    app: &'a mut AppLeg,
    context: &'a ConnContext,
    from_caller: Buf,
    from_app: Buf,
    /// The app is not dialled yet, because a workstation takes every connection of the port.
    awaits_workstation: bool,
    /// The caller's bytes do not begin like a usual request.
    doubted: bool,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Look<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Protocol, Ended>> {
        if let Poll::Ready(decided) = self.poll_caller(cx) {
            return Poll::Ready(decided);
        }
        if let Poll::Ready(decided) = self.poll_app(cx) {
            return Poll::Ready(decided);
        }
        if !self.doubted && !sniff::is_familiar(self.from_caller.unread()) {
            // The shorter timeout starts now; the one under way was for a usual request.
            (self.doubted, self.deadline) = (true, None);
        }
        let (wait, reason) = if self.doubted {
            (UNFAMILIAR_TIMEOUT, OpaqueReason::Undecided)
        } else if !self.from_caller.is_empty() || !self.from_app.is_empty() {
            (DEADLINE, OpaqueReason::Undecided)
        } else if self.awaits_workstation {
            (SILENCE_TIMEOUT, OpaqueReason::ServerFirst)
        } else {
            return Poll::Pending;
        };
        let deadline = self
            .deadline
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(wait)));
        deadline
            .as_mut()
            .poll(cx)
            .map(|()| Ok(Protocol::Opaque(reason)))
    }

    fn poll_caller(&mut self, cx: &mut Context<'_>) -> Poll<Result<Protocol, Ended>> {
        loop {
            match std::task::ready!(self.from_caller.poll_fill(self.down, cx)) {
                Ok(0) if self.from_caller.is_full() && self.from_caller.len() < MAX_HEAD => {
                    self.from_caller.grow(MAX_HEAD);
                    continue;
                }
                // The caller ended without a decisive byte, or filled the buffer: the app has to
                // see it.
                Ok(0) => return Poll::Ready(Ok(Protocol::Opaque(OpaqueReason::Undecided))),
                Ok(_) => {}
                Err(_) => {
                    self.app.abort();
                    return Poll::Ready(Err(Ended::CallerReset));
                }
            }
            // The caller has sent a byte, so the short timeout for silent callers no longer
            // applies.
            self.deadline = self
                .deadline
                .take()
                .filter(|_| !std::mem::take(&mut self.awaits_workstation));
            if let Some(protocol) = self.protocol(sniff::classify(self.from_caller.unread())) {
                return Poll::Ready(Ok(protocol));
            }
        }
    }

    /// Maps a verdict to a protocol on this port. The bytes override a declaration, which may be
    /// wrong, except that a port declared to speak TLS never gets clear-text handling.
    fn protocol(&self, verdict: FirstBytes) -> Option<Protocol> {
        // With TLS terminated here, TLS records inside are just unknown bytes.
        let ends_tls = self.context.hello.is_some();
        let (declared, source) = self.context.port.app_protocol.get();
        let contradicts = match verdict {
            FirstBytes::Http1 | FirstBytes::Http2 => declared == AppProtocol::Tls && !ends_tls,
            FirstBytes::Tls => declared != AppProtocol::Tls && !ends_tls,
            FirstBytes::Other | FirstBytes::NeedMore => false,
        };
        if contradicts && source == ProtocolSource::Probe {
            self.context.port.app_protocol.forget_probe();
        }
        Some(match verdict {
            FirstBytes::NeedMore => return None,
            // The app sent SETTINGS, which only a caller with an HTTP/2 preface understands.
            FirstBytes::Http1 | FirstBytes::Tls | FirstBytes::Other
                if !self.from_app.is_empty() =>
            {
                Protocol::Opaque(OpaqueReason::ServerFirst)
            }
            FirstBytes::Tls if !ends_tls => Protocol::Opaque(OpaqueReason::TlsRelayed),
            FirstBytes::Tls | FirstBytes::Other => Protocol::Opaque(OpaqueReason::NotHttp),
            _ if declared == AppProtocol::Tls && !ends_tls => {
                Protocol::Opaque(OpaqueReason::NotHttp)
            }
            FirstBytes::Http1 => Protocol::Http1,
            FirstBytes::Http2 => Protocol::Http2,
        })
    }

    fn poll_app(&mut self, cx: &mut Context<'_>) -> Poll<Result<Protocol, Ended>> {
        if self.app.is_idle() || self.app.has_failed() {
            return Poll::Pending;
        }
        let failure = match std::task::ready!(self.app.poll_conn(cx)) {
            Ok(conn) => match std::task::ready!(self.from_app.poll_fill(conn, cx)) {
                // Some HTTP/2 servers send their SETTINGS before they have received the preface.
                Ok(n) if n > 0 && sniff::may_be_settings(self.from_app.unread()) => {
                    return self.poll_app(cx);
                }
                Ok(_) => return Poll::Ready(Ok(Protocol::Opaque(OpaqueReason::ServerFirst))),
                Err(e) => ended_by_app(&e),
            },
            Err(ended) => ended,
        };
        self.app.fail(failure);
        // With rules in force, a request may still turn out to be a workstation's.
        if self.context.port.routes.load().is_empty() {
            Poll::Ready(Err(failure))
        } else {
            Poll::Pending
        }
    }
}
