//! The one pointer that control writes and data reads: the current [`RouteTable`] of a port, with a
//! wake-up for connections that have to act on a change at once.

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
    /// The table in force; a lock-free read. Hold it for one decision, not across an await.
    pub fn load(&self) -> Guard<Arc<RouteTable>> {
        self.table.load()
    }

    /// The table in force, to keep.
    #[must_use]
    pub fn load_full(&self) -> Arc<RouteTable> {
        self.table.load_full()
    }

    /// Puts a table in force and wakes whoever watches.
    pub fn store(&self, table: RouteTable) {
        self.table.store(Arc::new(table));
        self.epoch.send_modify(|e| *e += 1);
    }

    /// Wakes at every change; for connections that carry frames and must leave that state when a
    /// rule arrives.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.epoch.subscribe()
    }
}
