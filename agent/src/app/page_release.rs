//! Releases memory pages used only during start-up: code and tables that parsed command line and
//! configuration, built everything and met the manager would stay mapped, and are most of an idle
//! agent's resident memory.
//!
//! Measured gain (benches/README.md): idle resident memory 11.2 MiB without a release, 9.5 with one
//! of code alone, 2 to 6 with constants and the later ones. The self-test takes 2.9 MiB of that back,
//! and 3 of 16 kB for each of the first 1 000 TLS connections.
// `madvise` is unsafe in general, because it can discard data. Pages of a file that cannot have
// been written are read again from the page cache on their next use, so nothing is lost here.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::sync::Arc;
use std::time::Duration;

use rustix::mm::{Advice, madvise};

use crate::proxy::context::PortContext;
use crate::ready::Ready;
use crate::tls;

/// Delays of the releases: when everything is listening, when the manager was met, and when the
/// first snapshots are through.
const RELEASE_DELAYS: [Duration; 3] = [
    Duration::ZERO,
    Duration::from_millis(300),
    Duration::from_secs(10),
];

/// Releases start-up pages in steps. If TLS is terminated here, a handshake self-test runs first,
/// and its server pages are loaded again once the agent is ready, so that the first caller does not
/// wait. While the manager is not reached that warm-up is skipped to keep resident memory low.
pub(crate) async fn release_startup_pages(ports: Vec<Arc<PortContext>>, ready: Ready) {
    let tls: Vec<_> = ports
        .iter()
        .filter_map(|port| Some((port.container_port, port.tls.as_ref()?)))
        .collect();
    let warn = |port, error| {
        tracing::warn!(port, %error,
        "TLS self-test failed: handshakes with callers would fail")
    };
    for (port, tls) in &tls {
        tls.self_test().unwrap_or_else(|error| warn(*port, error));
    }
    let hello = if tls.is_empty() {
        Vec::new()
    } else {
        tls::server::accept::hello().unwrap_or_default()
    };
    for after in RELEASE_DELAYS {
        tokio::time::sleep(after).await;
        drop_clean_pages();
        for (port, tls) in tls.iter().filter(|_| ready.is_ready()) {
            tls.warm_up(&hello)
                .unwrap_or_else(|error| warn(*port, error));
        }
    }
}

/// Drops all clean pages of code and constants; pages still in use are reloaded from the page
/// cache. Does nothing if `/proc` cannot be read.
fn drop_clean_pages() {
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else {
        return;
    };
    for (start, len) in maps.lines().filter_map(unwritten) {
        // SAFETY: the range is a private mapping of a part of a program's file that is never
        // written to, not by the dynamic linker either, and such mappings are not taken away while
        // the program runs. Dropped pages are read from the file again.
        let _ = unsafe { madvise(start as *mut c_void, len, Advice::LinuxDontNeed) };
    }
}

/// Returns start and length if a line describes the code of a file or the constants at its
/// beginning. Other read-only parts may have been written before the linker relocated them.
fn unwritten(line: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let (access, offset) = (fields.next()?, fields.next()?);
    let is_unwritten = access == "r-xp" || access == "r--p" && offset.bytes().all(|b| b == b'0');
    let is_of_program = fields.nth(2)?.starts_with('/');
    let (start, end) = (
        usize::from_str_radix(start, 16).ok()?,
        usize::from_str_radix(end, 16).ok()?,
    );
    (is_unwritten && is_of_program).then_some((start, end.checked_sub(start)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_has_written_to_is_found_in_the_list_of_mappings() {
        for file in [
            "7f0000001000-7f0000003000 r-xp 00001000 fe:00 10 /usr/lib/libc.so.6",
            "7f0000001000-7f0000003000 r--p 00000000 fe:00 10 /usr/lib/libc.so.6",
        ] {
            assert_eq!(unwritten(file), Some((0x7f00_0000_1000, 0x2000)), "{file}");
        }
        for other in [
            "7f0000001000-7f0000003000 r--p 00001000 fe:00 10 /usr/lib/libc.so.6",
            "7f0000001000-7f0000003000 rw-p 00001000 fe:00 10 /usr/lib/libc.so.6",
            "7ffd00001000-7ffd00003000 r-xp 00000000 00:00 0 [vdso]",
            "7f0000001000-7f0000003000 r-xp 00000000 00:00 0",
            "",
        ] {
            assert_eq!(unwritten(other), None, "{other}");
        }
    }

    #[test]
    fn the_program_goes_on_without_its_pages() {
        drop_clean_pages();
        assert_eq!("still here".to_uppercase(), "STILL HERE");
    }
}
