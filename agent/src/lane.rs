//! What carrying one connection needs: who called, what its port shares, and what the handshake found. Protocols
//! take a [`Lane`] instead of a bag of everything.

use std::sync::Arc;

use crate::addr::Caller;
use crate::drain::Drain;
use crate::metrics::PortMetrics;
use crate::switch::Routes;
use crate::upstream::{DialApp, Hello, OpenTunnel};

/// The app protocol a port was declared, annotated or probed to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Declared {
    /// Nothing is known: the caller's own bytes decide.
    Unknown,
    /// No look at all.
    Opaque,
    /// HTTP/1 in clear text.
    Http1,
    /// HTTP/2; a TLS record or a preface from the caller says which form.
    Http2,
    /// TLS; the version of HTTP inside by ALPN.
    Tls,
}

/// What all connections of one port share.
#[derive(Debug)]
pub struct Shared {
    /// The app's port, as people know it.
    pub container_port: u16,
    /// The port the agent listens on.
    pub agent_port: u16,
    /// The rules in force.
    pub routes: Arc<Routes>,
    /// What the app speaks, as far as it is declared.
    pub declared: Declared,
    /// The way to the app.
    pub app: Arc<dyn DialApp>,
    /// The way to workstations.
    pub tunnels: Arc<dyn OpenTunnel>,
    /// Certificates and limits where the port's annotations ask for TLS; `None` on all other ports.
    pub tls: Option<Arc<crate::tls::Port>>,
    /// Counters.
    pub metrics: Arc<PortMetrics>,
    /// When to leave.
    pub drain: Drain,
}

/// One connection's share of its port.
#[derive(Clone, Debug)]
pub struct Lane {
    /// Who opened the connection.
    pub caller: Caller,
    /// What all connections of the port share.
    pub port: Arc<Shared>,
    /// What the TLS handshake found, where the agent terminated TLS.
    pub hello: Option<Arc<Hello>>,
}
