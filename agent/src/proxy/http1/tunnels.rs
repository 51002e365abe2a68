//! Open tunnels of one downstream connection: kept between exchanges, dropped when they have ended.

use std::sync::Arc;
use std::task::Context;

use crate::io::buffers::Buf;
use crate::io::conn::Conn;
use crate::upstream::workstation::{PathInUse, Workstations};
use traffic_core::routing::Intercept;

/// The open tunnels; on the heap, because most connections never have one.
#[derive(Debug, Default)]
pub(crate) struct TunnelPool {
    open: Option<Box<OpenTunnels>>,
}

#[derive(Debug, Default)]
struct OpenTunnels(Vec<PooledTunnel>);

#[derive(Debug)]
pub(crate) struct PooledTunnel {
    pub(crate) intercept: Arc<Intercept>,
    pub(crate) conn: Conn,
    pub(crate) path: PathInUse,
}

impl TunnelPool {
    /// Returns the tunnel at the index chosen for the current exchange.
    pub(crate) fn at(&mut self, at: u32) -> &mut Conn {
        // Indexes change only between exchanges, and there is none before the first tunnel.
        &mut self.open.get_or_insert_default().0[at as usize].conn
    }

    /// The intercept of the tunnel at a place; as [`Self::at`].
    pub(crate) fn intercept(&mut self, at: u32) -> Arc<Intercept> {
        Arc::clone(&self.open.get_or_insert_default().0[at as usize].intercept)
    }

    /// Takes a tunnel in, and returns its place.
    pub(crate) fn add(&mut self, tunnel: PooledTunnel) -> u32 {
        let open = &mut self.open.get_or_insert_default().0;
        open.push(tunnel);
        // One for each intercept of a port.
        open.len() as u32 - 1
    }

    /// Drops tunnels that ended (or sent unsolicited bytes) between exchanges.
    pub(crate) fn drop_ended(&mut self, cx: &mut Context<'_>) {
        let Some(open) = &mut self.open else { return };
        open.0
            .retain_mut(|leg| Buf::default().poll_fill(&mut leg.conn, cx).is_pending());
    }

    /// Returns the place of the tunnel to an intercept's workstation.
    pub(crate) fn find(&self, intercept: &Intercept) -> Option<u32> {
        let mut legs = self.open.as_ref()?.0.iter();
        let at = legs.position(|leg| leg.intercept.same_target(intercept))?;
        u32::try_from(at).ok()
    }

    /// The same for the next request: a tunnel whose path is outdated is dropped.
    pub(crate) fn find_current(
        &mut self,
        intercept: &Intercept,
        way: &Workstations<'_>,
    ) -> Option<u32> {
        let at = self.find(intercept)?;
        let open = &mut self.open.as_mut()?.0;
        if way.is_outdated(&mut open[at as usize].path, intercept) {
            open.remove(at as usize);
            return None;
        }
        Some(at)
    }
}
