//! Memory of copies on their way to workstations, bounded for each wiretap and in all. Bytes are
//! counted from the moment they are copied until gRPC has taken them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use traffic_core::routing::Stats;

/// Bytes that wait for one wiretap's workstation; copies beyond are dropped.
pub const MAX_COPY_BYTES_OF_WIRETAP: usize = 2 * 1024 * 1024;
/// Bytes that wait for all wiretaps' workstations; copies beyond are dropped.
pub const MAX_COPY_BYTES: usize = 6 * 1024 * 1024;

static IN_ALL: AtomicUsize = AtomicUsize::new(0);

/// Bytes of a copy, counted until dropped.
#[derive(Debug)]
pub struct CopiedBytes {
    bytes: Bytes,
    counted: usize,
    stats: Arc<Stats>,
}

impl CopiedBytes {
    /// Counts `bytes` of a new piece; `None` if there is no room for it.
    #[must_use]
    pub fn admit(bytes: Bytes, stats: &Arc<Stats>) -> Option<Self> {
        Self::moved(bytes, stats).if_admitted()
    }

    /// Counts `size` bytes that are kept elsewhere; `None` if there is no room for them.
    #[must_use]
    pub fn reserve(size: usize, stats: &Arc<Stats>) -> Option<Self> {
        Self::count(Bytes::new(), size, stats).if_admitted()
    }

    fn if_admitted(self) -> Option<Self> {
        let counted = self;
        let of_wiretap = counted.stats.copy_bytes.load(Ordering::Relaxed);
        let in_all = IN_ALL.load(Ordering::Relaxed);
        let fits = of_wiretap <= MAX_COPY_BYTES_OF_WIRETAP && in_all <= MAX_COPY_BYTES;
        fits.then_some(counted)
    }

    /// Counts `bytes` that were admitted in another form.
    #[must_use]
    pub fn moved(bytes: Bytes, stats: &Arc<Stats>) -> Self {
        let size = bytes.len();
        Self::count(bytes, size, stats)
    }

    fn count(bytes: Bytes, counted: usize, stats: &Arc<Stats>) -> Self {
        stats.copy_bytes.fetch_add(counted, Ordering::Relaxed);
        IN_ALL.fetch_add(counted, Ordering::Relaxed);
        Self {
            bytes,
            counted,
            stats: Arc::clone(stats),
        }
    }
}

impl AsRef<[u8]> for CopiedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for CopiedBytes {
    fn drop(&mut self) {
        let n = self.counted;
        self.stats.copy_bytes.fetch_sub(n, Ordering::Relaxed);
        IN_ALL.fetch_sub(n, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_beyond_the_bound_of_its_wiretap_is_refused_until_others_are_gone() {
        let (one, other) = (Arc::default(), Arc::default());
        let piece = || Bytes::from(vec![0; MAX_COPY_BYTES_OF_WIRETAP / 2]);
        let first = CopiedBytes::admit(piece(), &one).unwrap();
        let second = CopiedBytes::admit(piece(), &one).unwrap();
        assert!(CopiedBytes::admit(piece(), &one).is_none());
        assert!(CopiedBytes::admit(piece(), &other).is_some());
        drop((first, second));
        assert!(CopiedBytes::admit(piece(), &one).is_some());
        assert_eq!(one.copy_bytes.load(Ordering::Relaxed), 0);
    }
}
