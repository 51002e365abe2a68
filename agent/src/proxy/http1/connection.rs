//! State of one downstream HTTP/1 connection: the caller, the app, the tunnels, and the buffers
//! between them.

use std::sync::Arc;
use std::time::Duration;

use crate::io::close;
use crate::io::conn::{Conn, Io as _};
use crate::outcome::Ended;
use crate::proxy::context::ConnContext;
use crate::proxy::http1::pipe::Pipe;
use crate::proxy::http1::tunnels::TunnelPool;
use crate::proxy::wiretap::lanes::{Copies, Lanes};
use crate::telemetry::access_log::record::AccessRecord;
use crate::telemetry::metrics::OpaqueReason;
use crate::upstream::app::AppLeg;
use traffic_core::http1::head::Ambiguous;
use traffic_core::routing::Intercept;

/// Time a head may take from its first byte; a slower connection is relayed opaquely.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(60);

/// One downstream connection with its upstreams.
pub(crate) struct Connection {
    pub(crate) context: ConnContext,
    pub(crate) down: Conn,
    pub(crate) app: AppLeg,
    /// A workstation has answered since the app last did, so the app may have closed its idle
    /// connection.
    pub(crate) stale_app: bool,
    pub(crate) workstations: TunnelPool,
    /// Lanes for wiretaps; none before the first copy.
    pub(crate) lanes: Option<Box<Lanes>>,
    /// Copies of the current request that are not complete.
    pub(crate) copies: Option<Box<Copies>>,
    pub(crate) request: Pipe,
    pub(crate) answer: Pipe,
    /// The caller has ended its side.
    pub(crate) caller_done: bool,
    /// The app has been told so, behind everything else.
    pub(crate) end_passed: bool,
    /// One side has said that no exchange follows the last one: what the caller still sends is
    /// between it and the app.
    pub(crate) is_last: bool,
    /// The exchange before was a workstation's.
    pub(crate) previous_intercept: Option<Arc<Intercept>>,
    /// The exchange before was the app's.
    pub(crate) previous_was_app: bool,
    /// Access record of the current exchange, if one is kept.
    pub(crate) record: Option<Box<AccessRecord>>,
}

/// Upstream of the current exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Upstream {
    App,
    /// An open tunnel, by its place in [`TunnelPool`].
    Tunnel(u32),
}

impl Connection {
    /// Closes gently so that the caller gets the whole response, whatever it still sends.
    pub(crate) async fn linger(&mut self) -> Ended {
        match close::linger(&mut self.down).await {
            Ok(()) => Ended::Clean,
            Err(_) => Ended::CallerReset,
        }
    }

    /// Ends the caller's connection as the app has ended its own, between two requests. The usual
    /// plain socket is just dropped.
    pub(crate) async fn end_as_app(&mut self) -> Ended {
        if self.app.up().is_some_and(|app| app.was_cut()) {
            Box::pin(close::cut_when_delivered(&mut self.down)).await;
            return Ended::Clean;
        }
        let in_tls = matches!(self.down, Conn::Other(_));
        if in_tls || !self.request.buf.is_empty() || !close::may_drop(&self.down) {
            return Box::pin(self.linger()).await;
        }
        Ended::Clean
    }
}

impl From<Ambiguous> for OpaqueReason {
    fn from(why: Ambiguous) -> Self {
        match why {
            Ambiguous::Oversized => Self::OversizedHead,
            _ => Self::Ambiguous,
        }
    }
}
