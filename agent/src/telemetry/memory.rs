//! The memory budget: how much memory this process may take, how much it has taken, and if there is
//! room for one more connection. An allocation that fails aborts the process and every connection
//! with it, so new ones are refused before.

use std::cell::RefCell;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Part of the limit that is kept for connections that are open already: one eighth.
const RESERVE_SHARE: u64 = 8;
/// Largest reserve.
const MAX_RESERVE: u64 = 16 << 20;
/// Memory that a connection may still take after it has been accepted: a head, buffers both ways.
const ROOM_PER_CONNECTION: u64 = 64 * 1024;
/// Age at which a connection has taken what it takes.
const YOUNG_AGE: Duration = Duration::from_secs(1);
/// Connections accepted between two looks while there is plenty of room.
const CONNECTIONS_PER_LOOK: u32 = 16;

/// The budget of this process; a limit of zero is none.
#[derive(Debug, Default)]
pub struct MemoryBudget {
    /// Limit of resident memory.
    resident: AtomicU64,
    /// Limit of the address space.
    address_space: AtomicU64,
}

/// The budget, for all ports and threads.
pub static BUDGET: MemoryBudget = MemoryBudget {
    resident: AtomicU64::new(0),
    address_space: AtomicU64::new(0),
};

thread_local! {
    static LOOK: RefCell<MemoryUse> = const { RefCell::new(MemoryUse::new()) };
}

/// A worker's last look at the process's memory, and whom it has accepted since.
struct MemoryUse {
    statm: Option<File>,
    /// Connections that may be accepted without another look.
    unseen: u32,
    /// Connections accepted in the present and in the previous period.
    young: (u32, u32),
    period_began: Option<Instant>,
}

impl MemoryBudget {
    /// Sets the limits: of resident memory, `configured` or that of the cgroup, and of the address
    /// space.
    pub fn set(&self, configured: u64) {
        let resident = match configured {
            0 => cgroup_limit().unwrap_or(0),
            configured => configured,
        };
        let space = rustix::process::getrlimit(rustix::process::Resource::As).current;
        self.resident.store(resident, Ordering::Relaxed);
        self.address_space
            .store(space.unwrap_or(0), Ordering::Relaxed);
    }

    /// Returns true if there is room for one more connection, which is then counted as accepted.
    pub fn has_room(&self) -> bool {
        let limits = [&self.address_space, &self.resident].map(|l| l.load(Ordering::Relaxed));
        if limits == [0, 0] {
            return true;
        }
        LOOK.with_borrow_mut(|look| look.admits(limits))
    }
}

impl MemoryUse {
    const fn new() -> Self {
        Self {
            statm: None,
            unseen: 0,
            young: (0, 0),
            period_began: None,
        }
    }

    fn admits(&mut self, limits: [u64; 2]) -> bool {
        let now = Instant::now();
        if self
            .period_began
            .is_none_or(|began| now - began >= YOUNG_AGE)
        {
            self.young = (0, self.young.0);
            self.period_began = Some(now);
            self.unseen = 0;
        }
        if self.unseen == 0 {
            let Some(used) = self.used() else {
                return true;
            };
            let young = u64::from(self.young.0) + u64::from(self.young.1);
            let rooms = limits.iter().zip(used).filter(|(limit, _)| **limit > 0);
            let rooms = rooms.map(|(limit, used)| {
                let reserve = (limit / RESERVE_SHARE).min(MAX_RESERVE);
                let kept = reserve + (young + 1) * ROOM_PER_CONNECTION;
                limit.saturating_sub(used).saturating_sub(kept)
            });
            let room = rooms.min().unwrap_or(u64::MAX);
            if room == 0 {
                return false;
            }
            // The nearer the limit, the sooner the next look.
            let fit = room / (4 * ROOM_PER_CONNECTION);
            self.unseen = u32::try_from(fit)
                .unwrap_or(u32::MAX)
                .min(CONNECTIONS_PER_LOOK);
        }
        self.unseen = self.unseen.saturating_sub(1);
        self.young.0 = self.young.0.saturating_add(1);
        true
    }

    /// Address space and resident memory in bytes.
    fn used(&mut self) -> Option<[u64; 2]> {
        if self.statm.is_none() {
            self.statm = File::open("/proc/self/statm").ok();
        }
        let mut text = [0; 128];
        let n = self.statm.as_ref()?.read_at(&mut text, 0).ok()?;
        let text = std::str::from_utf8(text.get(..n)?).ok()?;
        let page = rustix::param::page_size() as u64;
        let mut pages = text.split_ascii_whitespace().map(str::parse::<u64>);
        let mut next = || Some(pages.next()?.ok()? * page);
        Some([next()?, next()?])
    }
}

/// The memory limit of the process's cgroup; none outside of a container.
fn cgroup_limit() -> Option<u64> {
    let files = [
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    ];
    let texts = files
        .iter()
        .filter_map(|file| std::fs::read_to_string(file).ok());
    let limits = texts.filter_map(|text| text.trim().parse::<u64>().ok());
    // The first version says "none" by a number that no machine has.
    limits.filter(|limit| *limit < 1 << 50).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_kept_for_young_connections_and_a_reserve() {
        let mut look = MemoryUse::new();
        let [_, resident] = look.used().unwrap();
        assert!(resident > 1 << 20, "{resident}");
        // Far from the limit, and far beyond it.
        assert!(look.admits([0, resident * 100 + (1 << 30)]));
        let mut look = MemoryUse::new();
        assert!(!look.admits([0, resident / 2]));
        // Room for some: all of the room is given to those accepted just now, and then no more.
        let mut look = MemoryUse::new();
        let limit = (resident + 32 * ROOM_PER_CONNECTION) * RESERVE_SHARE / (RESERVE_SHARE - 1);
        let admitted = (0..1000).filter(|_| look.admits([0, limit])).count();
        assert!((1..=33).contains(&admitted), "{admitted}");
    }

    #[test]
    fn without_a_limit_there_is_always_room() {
        let budget = MemoryBudget::default();
        assert!((0..100_000).all(|_| budget.has_room()));
    }
}
