//! Memory of the process from `/proc/self/statm` (proc(5)), in bytes.

/// Sizes in bytes; zero if `/proc` cannot be read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// Virtual size.
    pub virtual_size: u64,
    /// Resident set.
    pub resident: u64,
    /// Data and stack segments.
    pub data: u64,
}

/// Reads the current sizes.
#[must_use]
pub fn read() -> Memory {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let page = rustix::param::page_size() as u64;
    let mut pages = text
        .split_ascii_whitespace()
        .map(|n| n.parse::<u64>().unwrap_or(0) * page);
    let mut at = |n| pages.nth(n).unwrap_or(0);
    Memory {
        virtual_size: at(0),
        resident: at(0),
        data: at(3),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_running_process_occupies_memory() {
        let m = super::read();
        assert!(
            m.resident > 100_000 && m.virtual_size >= m.resident && m.data > 0,
            "{m:?}"
        );
    }
}
