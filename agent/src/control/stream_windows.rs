//! Windows of the tunnels in one workstation's connection. What a workstation sends ahead of a slow
//! reader waits in this process, in the HTTP/2 library. A few busy tunnels have windows that keep a long
//! way full; where many have something unread at a time they share what those few would have, so callers
//! that read nothing cost little. No window becomes so small that a tunnel stands still whose reader reads.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use h2::{FlowControl, RecvStream};
use tokio::time::Instant;

/// Bytes a workstation may send into one tunnel ahead of its reader.
pub(crate) const STREAM_WINDOW: u32 = 256 * 1024;
/// The same where many tunnels have something unread.
pub(crate) const MIN_STREAM_WINDOW: u32 = 32 * 1024;
/// Windows of all tunnels with something unread, until each has the least.
pub(crate) const SHARED_WINDOWS: u32 = 2 * 1024 * 1024;
/// Unread bytes from which on a tunnel takes part in the sharing: half of the least window.
const MIN_UNREAD: usize = 16 * 1024;
/// Least time between two looks at the tunnels of a connection.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);
/// The same for each tunnel, so that looking stays below a hundredth of the time.
const PER_TUNNEL_LOOK_INTERVAL: Duration = Duration::from_micros(10);
/// Time without need of small windows after which they become larger: callers that read nothing do not
/// come alone.
const RAISE_DELAY: Duration = Duration::from_secs(10);

/// Number of tunnels of all workstations that have something unread; cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct UnreadTunnels(Arc<AtomicUsize>);

/// The open tunnels of one connection; cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct ConnectionTunnels(Arc<Mutex<BTreeMap<u32, FlowControl>>>);

impl ConnectionTunnels {
    fn open(&self) -> MutexGuard<'_, BTreeMap<u32, FlowControl>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a tunnel counted until what is returned is dropped, which is to be before its stream.
    pub(crate) fn enter(&self, stream: &mut RecvStream) -> CountedTunnel {
        let flow = stream.flow_control().clone();
        let id = flow.stream_id().as_u32();
        self.open().insert(id, flow);
        CountedTunnel {
            tunnels: self.clone(),
            id,
        }
    }

    /// The number of tunnels, and of those that have something unread.
    fn count(&self) -> (usize, usize) {
        let open = self.open();
        let unread = |flow: &&FlowControl| flow.used_capacity() >= MIN_UNREAD;
        (open.len(), open.values().filter(unread).count())
    }
}

/// A tunnel's place among the open ones.
pub(crate) struct CountedTunnel {
    tunnels: ConnectionTunnels,
    id: u32,
}

impl Drop for CountedTunnel {
    fn drop(&mut self) {
        self.tunnels.open().remove(&self.id);
    }
}

/// The window of a connection's tunnels, as it has been said to the workstation.
pub(crate) struct StreamWindows {
    tunnels: ConnectionTunnels,
    window: u32,
    next_look: Instant,
    /// Time at which a window as small as this was wanted last.
    wanted_at: Instant,
    /// This connection's part of `in_all`.
    unread: usize,
    in_all: UnreadTunnels,
}

impl StreamWindows {
    /// Windows of a new connection, which are [`STREAM_WINDOW`].
    pub(crate) fn new(in_all: UnreadTunnels) -> Self {
        let now = Instant::now();
        Self {
            tunnels: ConnectionTunnels::default(),
            window: STREAM_WINDOW,
            next_look: now,
            wanted_at: now,
            unread: 0,
            in_all,
        }
    }

    pub(crate) fn tunnels(&self) -> &ConnectionTunnels {
        &self.tunnels
    }

    /// The window that the workstation is to be told of, if another is wanted. To be asked whenever
    /// something may have come.
    pub(crate) fn poll_change(&mut self) -> Option<u32> {
        let now = Instant::now();
        if now < self.next_look {
            return None;
        }
        let (open, unread) = self.tunnels.count();
        let pause = PER_TUNNEL_LOOK_INTERVAL * u32::try_from(open).unwrap_or(u32::MAX);
        self.next_look = now + LOOK_INTERVAL.max(pause);
        self.change(now, unread)
    }

    fn change(&mut self, now: Instant, unread: usize) -> Option<u32> {
        let wanted = window_of_each(self.share(unread));
        if wanted <= self.window {
            self.wanted_at = now;
        }
        let may_grow = now.duration_since(self.wanted_at) >= RAISE_DELAY;
        (wanted < self.window || wanted > self.window && may_grow).then_some(wanted)
    }

    /// The workstation is being told.
    pub(crate) fn changed(&mut self, window: u32) {
        self.window = window;
    }

    /// Takes note of this connection's tunnels with something unread, and returns the number of all.
    fn share(&mut self, unread: usize) -> usize {
        let all = &self.in_all.0;
        let before = std::mem::replace(&mut self.unread, unread);
        all.fetch_add(unread, Ordering::Relaxed);
        all.fetch_sub(before, Ordering::Relaxed) - before
    }
}

impl Drop for StreamWindows {
    fn drop(&mut self) {
        self.share(0);
    }
}

/// A power of two, so that it does not change with each tunnel.
fn window_of_each(unread: usize) -> u32 {
    let sharing = u32::try_from(unread).unwrap_or(u32::MAX).max(1);
    let share = (SHARED_WINDOWS / sharing).clamp(MIN_STREAM_WINDOW, STREAM_WINDOW);
    1 << share.ilog2()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_tunnels_have_whole_windows_and_many_share() {
        for (unread, window) in [
            (0, 256),
            (8, 256),
            (9, 128),
            (16, 128),
            (17, 64),
            (60, 32),
            (usize::MAX, 32),
        ] {
            assert_eq!(window_of_each(unread), window * 1024, "{unread}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn windows_shrink_at_once_and_grow_when_small_ones_have_not_been_wanted_for_a_while() {
        let mut windows = StreamWindows::new(UnreadTunnels::default());
        let begin = Instant::now();
        let at = |millis| begin + Duration::from_millis(millis);
        assert_eq!(windows.change(at(0), 8), None);
        assert_eq!(windows.change(at(1), 60), Some(MIN_STREAM_WINDOW));
        assert_eq!(windows.change(at(2), 60), Some(MIN_STREAM_WINDOW), "unsaid");
        windows.changed(MIN_STREAM_WINDOW);
        assert_eq!(windows.change(at(3), 0), None);
        assert_eq!(windows.change(at(5_000), 60), None);
        assert_eq!(windows.change(at(14_999), 0), None);
        assert_eq!(windows.change(at(15_000), 0), Some(STREAM_WINDOW));
    }

    #[tokio::test(start_paused = true)]
    async fn tunnels_of_other_workstations_count_until_their_connection_is_gone() {
        let all = UnreadTunnels::default();
        let mut windows = StreamWindows::new(all.clone());
        let mut other = StreamWindows::new(all.clone());
        let now = Instant::now();
        assert_eq!(other.change(now, 60), Some(MIN_STREAM_WINDOW));
        assert_eq!(windows.change(now, 1), Some(MIN_STREAM_WINDOW));
        drop(other);
        assert_eq!(windows.change(now, 1), None);
        drop(windows);
        assert_eq!(all.0.load(Ordering::Relaxed), 0);
    }
}
