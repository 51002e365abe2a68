//! Gives back what only the start needed: the pages of code that parsed the command line and the configuration and
//! built everything stay mapped for ever otherwise, and are most of what an idle agent seems to use.
// `madvise` is unsafe in general, because it can throw away data. Code of a file that nobody has written to is read
// again from the page cache when it is next run, so nothing can be lost here.
#![allow(unsafe_code)]

use std::ffi::c_void;

use rustix::mm::{Advice, madvise};

/// Unmaps the pages of all executable code; what is still in use comes back with its next use, from the page cache.
/// Nothing happens where `/proc` is not to be read.
pub(super) fn forget() {
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else { return };
    for (start, len) in maps.lines().filter_map(code) {
        // SAFETY: the range is a private, never writable mapping of a file, as the kernel has just said; mappings of
        // code are not taken away while the program runs. Dropped pages are read from the file again.
        let _ = unsafe { madvise(start as *mut c_void, len, Advice::LinuxDontNeed) };
    }
}

/// Start and length of a line that describes code of a file.
fn code(line: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let is_code = fields.next()? == "r-xp";
    let is_of_file = fields.nth(3)?.starts_with('/');
    let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    (is_code && is_of_file).then_some((start, end.checked_sub(start)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_files_is_found_in_the_list_of_mappings() {
        let file = "7f0000001000-7f0000003000 r-xp 00001000 fe:00 10 /usr/lib/libc.so.6";
        assert_eq!(code(file), Some((0x7f00_0000_1000, 0x2000)));
        for other in [
            "7f0000001000-7f0000003000 r--p 00001000 fe:00 10 /usr/lib/libc.so.6",
            "7f0000001000-7f0000003000 rw-p 00001000 fe:00 10 /usr/lib/libc.so.6",
            "7ffd00001000-7ffd00003000 r-xp 00000000 00:00 0 [vdso]",
            "7f0000001000-7f0000003000 r-xp 00000000 00:00 0",
            "",
        ] {
            assert_eq!(code(other), None, "{other}");
        }
    }

    #[test]
    fn the_program_goes_on_without_its_pages() {
        forget();
        assert_eq!("still here".to_uppercase(), "STILL HERE");
    }
}
