//! Counts and state of one intercept, shared by the successive tables that route it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};

use crate::routing::copy_pause::CopyPause;
use crate::routing::dial_memory::DialMemory;

/// The way of an intercept's last tunnel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum TunnelPath {
    /// No tunnel opened yet.
    #[default]
    None = 0,
    /// Tunnel through the traffic-manager.
    Manager = 1,
    /// A workstation that is attached to this agent.
    Direct = 2,
}

impl TunnelPath {
    /// The word shown by the admin.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Manager => "manager",
            Self::Direct => "direct",
        }
    }
}

/// Counts of an intercept's rule, and the memory of its workstation's dials.
#[derive(Debug, Default)]
pub struct Stats {
    /// Requests (or connections) it decided.
    pub hits: AtomicU64,
    /// Requests that looked at it and went elsewhere, without those of the current table that no
    /// rule has matched: [`RouteTable::misses`](crate::routing::RouteTable::misses) has all.
    pub misses: AtomicU64,
    /// Requests it decided that went to the app, because no workstation could be reached.
    pub failed_open: AtomicU64,
    /// Copies for its workstation that were given up: not reached, too slow, or lost on the way.
    pub copies_dropped: AtomicU64,
    /// Connections that carry copies to its workstation, or are to.
    pub copy_lanes: AtomicUsize,
    /// Connections on which an answer to a copy is overdue.
    pub copies_unanswered: AtomicUsize,
    /// Pause of its copies.
    pub copy_pause: CopyPause,
    /// Bytes of copies that wait for its workstation.
    pub copy_bytes: AtomicUsize,
    /// Seconds since the Unix epoch of the last hit; 0 for never.
    pub last_match: AtomicU64,
    /// Results of earlier dials to the workstation.
    pub dials: Arc<DialMemory>,
    tunnel: AtomicU8,
}

impl Stats {
    /// Counts a hit at `now_unix` (seconds since the epoch).
    pub fn hit(&self, now_unix: u64) {
        self.hits.fetch_add(1, Ordering::Relaxed);
        self.last_match.store(now_unix, Ordering::Relaxed);
    }

    /// Notes how the last tunnel was opened.
    pub fn set_tunnel(&self, path: TunnelPath) {
        self.tunnel.store(path as u8, Ordering::Relaxed);
    }

    /// Returns the path of the last tunnel.
    #[must_use]
    pub fn tunnel(&self) -> TunnelPath {
        match self.tunnel.load(Ordering::Relaxed) {
            1 => TunnelPath::Manager,
            2 => TunnelPath::Direct,
            _ => TunnelPath::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_of_a_tunnel_reads_back_as_it_was_set() {
        let stats = Stats::default();
        for path in [TunnelPath::None, TunnelPath::Manager, TunnelPath::Direct] {
            stats.set_tunnel(path);
            assert_eq!(stats.tunnel(), path);
        }
    }
}
