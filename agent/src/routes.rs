//! The pointer that control writes and data reads: the current [`RouteTable`] of a port, with a
//! wake-up for connections that must act on a change at once.

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use tokio::sync::watch;

use traffic_core::routing::RouteTable;

/// The current table of one port.
#[derive(Debug)]
pub struct CurrentRoutes {
    table: ArcSwap<RouteTable>,
    epoch: watch::Sender<u64>,
}

impl Default for CurrentRoutes {
    fn default() -> Self {
        Self {
            table: ArcSwap::from_pointee(RouteTable::default()),
            epoch: watch::Sender::new(0),
        }
    }
}

impl CurrentRoutes {
    /// Returns the current table by a lock-free read. Hold it for one decision, not across an
    /// await.
    pub fn load(&self) -> Guard<Arc<RouteTable>> {
        self.table.load()
    }

    /// Returns the current table as an owned pointer.
    #[must_use]
    pub fn load_full(&self) -> Arc<RouteTable> {
        self.table.load_full()
    }

    /// Replaces the table and wakes all watchers.
    pub fn store(&self, table: RouteTable) {
        self.table.store(Arc::new(table));
        self.epoch.send_modify(|e| *e += 1);
    }

    /// Watches for changes; used by connections that relay frames and must stop doing so when a
    /// rule arrives.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.epoch.subscribe()
    }
}

/// TLS of callers on a port that is declared as HTTP/2 and has no certificate: it is relayed, and no
/// filter sees what is inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnreadTls {
    /// Connections that were relayed so.
    pub connections: u64,
    /// Problem and remedy.
    pub text: String,
}
