//! Places for lanes, whose number is bounded, and the addresses they take.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};

use traffic_core::routing::Stats;

/// Lanes to one wiretap's workstation; copies that would need a further one are dropped.
pub const MAX_LANES_OF_WIRETAP: usize = 64;
/// Lanes in all.
pub const MAX_LANES: usize = 256;
/// Connections to one wiretap's workstation on which an answer is overdue; with more it counts as
/// one that does not keep up.
const MAX_UNANSWERED: usize = 8;
/// Source ports under which copies reach workstations. Those of callers lie above, so that no copy
/// is taken for a caller's own connection.
const SOURCE_PORTS: u16 = 1023;

static OPEN_LANES: AtomicUsize = AtomicUsize::new(0);
static NEXT_SOURCE: AtomicU16 = AtomicU16::new(0);

/// A lane's place among those allowed, until dropped.
#[derive(Debug)]
pub(super) struct LaneSlot(Arc<Stats>);

impl LaneSlot {
    pub(super) fn take(stats: &Arc<Stats>) -> Option<Self> {
        let of_wiretap = stats.copy_lanes.fetch_add(1, Ordering::Relaxed);
        let in_all = OPEN_LANES.fetch_add(1, Ordering::Relaxed);
        let slot = Self(Arc::clone(stats));
        (of_wiretap < MAX_LANES_OF_WIRETAP && in_all < MAX_LANES).then_some(slot)
    }
}

impl Drop for LaneSlot {
    fn drop(&mut self) {
        self.0.copy_lanes.fetch_sub(1, Ordering::Relaxed);
        OPEN_LANES.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Returns the source port of the next lane.
pub(super) fn next_source_port() -> u16 {
    NEXT_SOURCE.fetch_add(1, Ordering::Relaxed) % SOURCE_PORTS + 1
}

/// A connection on which an answer is overdue, until dropped.
#[derive(Debug)]
pub(super) struct Overdue(Arc<Stats>);

impl Overdue {
    /// Counts one more; `None` if there are too many.
    pub(super) fn begin(stats: &Arc<Stats>) -> Option<Self> {
        let before = stats.copies_unanswered.fetch_add(1, Ordering::Relaxed);
        let overdue = Self(Arc::clone(stats));
        (before < MAX_UNANSWERED).then_some(overdue)
    }
}

impl Drop for Overdue {
    fn drop(&mut self) {
        self.0.copies_unanswered.fetch_sub(1, Ordering::Relaxed);
    }
}
