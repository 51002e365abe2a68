//! State of one downstream HTTP/1 connection: the caller, the app, the tunnels, and the buffers
//! between them.

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;

use crate::io::conn::Conn;
use crate::outcome::Ended;
use crate::proxy::context::ConnContext;
use crate::proxy::http1::pipe::Pipe;
use crate::proxy::http1::tunnels::TunnelPool;
use crate::telemetry::access_log::record::AccessRecord;
use crate::telemetry::metrics::OpaqueReason;
use crate::upstream::app::AppLeg;
use traffic_core::http1::head::Ambiguous;

/// Time a head may take from its first byte; a slower connection is relayed opaquely.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Time a caller is read from after its last response; `MAX_LINGER_BYTES` bounds the bytes.
const LINGER_TIMEOUT: Duration = Duration::from_secs(2);
const MAX_LINGER_BYTES: usize = 4 << 20;

/// One downstream connection with its upstreams.
pub(crate) struct Connection {
    pub(crate) context: ConnContext,
    pub(crate) down: Conn,
    pub(crate) app: AppLeg,
    /// A workstation has answered since the app last did, so the app may have closed its idle
    /// connection.
    pub(crate) stale_app: bool,
    pub(crate) workstations: TunnelPool,
    pub(crate) request: Pipe,
    pub(crate) answer: Pipe,
    /// The caller has ended its side.
    pub(crate) caller_done: bool,
    /// Access record of the current exchange, if one is kept.
    pub(crate) record: Option<Box<AccessRecord>>,
}

/// Upstream of the current exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Upstream {
    App,
    /// An open tunnel, by its place in [`TunnelPool`].
    Tunnel(usize),
}

impl Connection {
    /// Closes gently so that the caller gets the whole response: its remaining bytes are read for a
    /// while, because closing over unread bytes resets the connection.
    pub(crate) async fn linger(&mut self) -> Ended {
        if self.down.shutdown().await.is_err() {
            return Ended::CallerReset;
        }
        let mut left = MAX_LINGER_BYTES;
        let reading = poll_fn(|cx| {
            loop {
                self.request.buf.consume(usize::MAX);
                match std::task::ready!(self.request.buf.poll_fill(&mut self.down, cx)) {
                    Ok(n) if n > 0 && left > 0 => left = left.saturating_sub(n),
                    _ => return Poll::Ready(()),
                }
            }
        });
        // After the timeout the caller has had time to read the response.
        let _ = tokio::time::timeout(LINGER_TIMEOUT, reading).await;
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
