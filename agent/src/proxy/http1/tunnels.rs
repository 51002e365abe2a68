//! Open tunnels of one downstream connection: kept between exchanges, dropped when they have ended.

use std::sync::Arc;
use std::task::Context;

use crate::io::buffers::Buf;
use crate::io::conn::Conn;
use traffic_core::routing::Intercept;

/// The open tunnels.
#[derive(Debug, Default)]
pub(crate) struct TunnelPool {
    pub(crate) open: Vec<PooledTunnel>,
}

#[derive(Debug)]
pub(crate) struct PooledTunnel {
    pub(crate) intercept: Arc<Intercept>,
    pub(crate) conn: Conn,
}

impl TunnelPool {
    /// Returns the tunnel at the index chosen for the current exchange.
    pub(crate) fn at(&mut self, at: usize) -> &mut Conn {
        // Indexes change only between exchanges.
        &mut self.open[at].conn
    }

    /// The intercept of the tunnel at a place; as [`Self::at`].
    pub(crate) fn intercept(&self, at: usize) -> Arc<Intercept> {
        Arc::clone(&self.open[at].intercept)
    }

    /// Drops tunnels that ended (or sent unsolicited bytes) between exchanges.
    pub(crate) fn drop_ended(&mut self, cx: &mut Context<'_>) {
        self.open
            .retain_mut(|leg| Buf::default().poll_fill(&mut leg.conn, cx).is_pending());
    }

    pub(crate) fn find(&self, intercept: &Intercept) -> Option<usize> {
        self.open
            .iter()
            .position(|leg| leg.intercept.same_target(intercept))
    }
}
