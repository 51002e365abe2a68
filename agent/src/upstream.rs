//! Upstreams: the app, or a tunnel to a workstation. The data path requests a tunnel through
//! [`OpenTunnel`]; the control side provides it, and neither imports the other.

pub mod app;
pub mod app_tls;
pub mod copy_memory;
pub mod datagrams;
mod liveness;
pub mod probe;
pub mod queues;
pub mod tunnel;
pub mod workstation;

use crate::tls::alpn::TlsInfo;
use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;

use crate::addr::Caller;
use crate::io::conn::Conn;
use crate::telemetry::metrics::FailOpen;
use traffic_core::routing::Intercept;
use traffic_proto::tunnel::Message;
use traffic_proto::tunnel::frame::Frame;

/// Error of a connection to the app.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The connect call failed; usually refused while the app starts.
    #[error("connect to the app at {addr}: {source}")]
    Connect {
        /// The app's address.
        addr: crate::addr::AppAddr,
        /// The kernel's error.
        source: std::io::Error,
    },
    /// The app did not accept the connection in time.
    #[error("the app at {addr} did not accept within {after:?}")]
    Timeout {
        /// The app's address.
        addr: crate::addr::AppAddr,
        /// Time waited.
        after: std::time::Duration,
    },
    /// TLS towards the app failed.
    #[error("TLS handshake with the app at {addr}: {source}")]
    Tls {
        /// The app's address.
        addr: crate::addr::AppAddr,
        /// Error of rustls or of the socket.
        source: std::io::Error,
    },
}

/// Opens connections to one port's app.
pub trait DialApp: Send + Sync + fmt::Debug {
    /// Dials; `hello` is the result of the caller's TLS handshake, if there was one.
    fn dial<'a>(&'a self, hello: Option<&'a TlsInfo>) -> BoxFuture<'a, Result<Conn, AppError>>;

    /// Dials without TLS of ours, whatever is configured: for bytes relayed unchanged, including
    /// TLS of the caller's own.
    fn dial_passthrough(&self) -> BoxFuture<'_, Result<Conn, AppError>> {
        self.dial(None)
    }

    /// Returns the address if the app is reached without TLS, so that the hot path may connect
    /// without a boxed future.
    fn plain_addr(&self) -> Option<crate::addr::AppAddr>;

    /// Returns the address, with or without TLS.
    fn app_addr(&self) -> Option<crate::addr::AppAddr> {
        self.plain_addr()
    }

    /// Keeps the pod's address of the other IP family, learned from where a caller has arrived: the
    /// app may listen on one family only.
    fn learn_other_family(&self, _pod: std::net::IpAddr) {}

    /// Returns the app's address in the other IP family, if one is known.
    fn other_addr(&self) -> Option<crate::addr::AppAddr> {
        None
    }

    /// What is wrong with the app's TLS at the moment, for people.
    fn tls_fault(&self) -> Option<String> {
        None
    }

    /// The connection to a workstation through an open tunnel, spoken to as the app would be: in
    /// TLS where the app speaks TLS, as it is elsewhere. May ask the app once what it speaks.
    fn secure_tunnel<'a>(
        &'a self,
        tunnel: Box<dyn crate::io::conn::Io>,
        _hello: Option<&'a TlsInfo>,
    ) -> BoxFuture<'a, std::io::Result<Conn>> {
        Box::pin(std::future::ready(Ok(Conn::Other(tunnel))))
    }
}

/// The agent's side of the gRPC call; decides how the end of data is signalled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Client (`Manager.Tunnel`): dropping the sender half-closes the call.
    Caller,
    /// Server (`Agent.Tunnel`): a CloseSend message signals it, the call stays open.
    Server,
}

/// The tunnel takes no more messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone;

/// The messages of an open tunnel, whatever carries them. What is sent leaves by itself.
pub trait Messages: Send {
    /// Ready when there is room for one message; the sender waits while there is none, so a
    /// workstation that does not read slows it.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Gone>>;

    /// Sends a message into the room that [`Self::poll_room`] has found.
    ///
    /// # Errors
    /// The tunnel takes no more messages.
    fn send(&mut self, frame: Frame) -> Result<(), Gone>;

    /// Sends a message if there is room for it; false if not.
    fn try_send(&mut self, frame: Frame) -> bool;

    /// Asks the workstation for a sign of life, by what carries the tunnel.
    fn ask_for_life(&mut self) {
        // A queue that stays full for long is itself a sign of a dead peer.
        self.try_send(Frame::from(&Message::KeepAlive));
    }

    /// Ends our direction, behind what was sent and `last`, for which there is always room.
    fn end(&mut self, last: Option<Frame>);

    /// Receives the next message.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Message, TunnelError>>>;
}

/// A tunnel after StreamInfo and StreamOK were exchanged. The dial at the workstation may still be
/// under way.
pub struct TunnelIo {
    /// Both directions.
    pub messages: Box<dyn Messages>,
    /// The agent's side of the call.
    pub role: Role,
}

/// Error of opening a tunnel, or of an open one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TunnelError {
    /// The owner of the intercept is not connected, neither directly nor to the manager.
    #[error("workstation not connected: {0}")]
    NoPath(String),
    /// The stream ended with an error.
    #[error("the tunnel broke: {0}")]
    Broken(String),
    /// The peer sent what is no tunnel message.
    #[error("malformed tunnel message: {0}")]
    Malformed(String),
    /// The workstation did not answer in time.
    #[error("the workstation did not answer within {0:?}")]
    Timeout(std::time::Duration),
}

impl TunnelError {
    /// Returns the fail-open label of this error.
    #[must_use]
    pub fn fail_open(&self) -> FailOpen {
        match self {
            Self::Timeout(_) => FailOpen::DialTimeout,
            Self::NoPath(_) | Self::Broken(_) | Self::Malformed(_) => FailOpen::NoTunnel,
        }
    }
}

/// Opens tunnels to workstations. Implemented by the session over a directly attached workstation,
/// else over the manager.
pub trait OpenTunnel: Send + Sync + fmt::Debug {
    /// Opens a tunnel for `intercept` on behalf of `caller`. Resolves when StreamOK has been
    /// exchanged (or the workstation has answered a dial request), within the intercept's dial
    /// timeout plus latency.
    fn open(
        &self,
        intercept: Arc<Intercept>,
        caller: Caller,
        transport: Transport,
    ) -> BoxFuture<'static, Result<TunnelIo, TunnelError>>;

    /// Asks a directly attached workstation for a sign of life now, since callers wait for it; its
    /// attachment and tunnels end if it gives none within about a second.
    fn doubt(&self, _client_session: &str) {}

    /// The number of the workstation's present attachment to this agent; none while it has none.
    fn attachment(&self, _client_session: &str) -> Option<u64> {
        None
    }

    /// Counts the attachments, of any workstation, that have begun or ended.
    fn attachment_changes(&self) -> u64 {
        0
    }

    /// Notes that the app got what was meant for a workstation.
    fn fell_back(&self) {}
}

/// Transport protocol of a connection id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// Protocol 6.
    Tcp,
    /// Protocol 17.
    Udp,
}

impl Transport {
    /// Returns the word in labels.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}
