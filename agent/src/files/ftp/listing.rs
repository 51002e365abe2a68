//! Lines of directory listings.

use std::time::{Duration, UNIX_EPOCH};

use rustix::fs::FileType;
use traffic_core::sftp::Attributes;

use crate::telemetry::access_log::format::rfc3339;

const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];

/// The form of a listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Facts of RFC 3659, for programs.
    Facts,
    /// As `ls -l` prints it.
    Long,
    /// Names alone.
    Names,
}

impl Form {
    /// Appends the line of one entry. A name with a line end is left out: it would read as two
    /// entries, and no command can name it.
    pub(super) fn write(self, name: &[u8], attributes: &Attributes, out: &mut Vec<u8>) {
        if name.iter().any(|b| matches!(b, b'\r' | b'\n')) {
            return;
        }
        match self {
            Self::Facts => out.extend(facts(attributes).into_bytes()),
            Self::Long => out.extend(long(attributes).into_bytes()),
            Self::Names => {}
        }
        out.extend(name);
        out.extend(b"\r\n");
    }
}

fn facts(attributes: &Attributes) -> String {
    let mode = attributes.mode.unwrap_or_default();
    let kind = match FileType::from_raw_mode(mode) {
        FileType::RegularFile => "file",
        FileType::Directory => "dir",
        // One that leads nowhere: others are listed as what they lead to.
        FileType::Symlink => "OS.unix=slink",
        _ => "OS.unix=special",
    };
    let size = attributes.size.unwrap_or_default();
    let time = time_of(attributes);
    format!("type={kind};size={size};modify={time}; ")
}

/// Time of the last change: year to second without any mark between.
pub(super) fn time_of(attributes: &Attributes) -> String {
    let written = written_time(attributes);
    let digits = written.chars().filter(char::is_ascii_digit);
    digits.take(14).collect()
}

fn written_time(attributes: &Attributes) -> String {
    let (_, changed) = attributes.times.unwrap_or_default();
    rfc3339(UNIX_EPOCH + Duration::from_secs(u64::from(changed)))
}

fn long(attributes: &Attributes) -> String {
    let mode = attributes.mode.unwrap_or_default();
    let kind = match FileType::from_raw_mode(mode) {
        FileType::Directory => 'd',
        FileType::Symlink => 'l',
        _ => '-',
    };
    let rights: String = "rwxrwxrwx"
        .chars()
        .zip((0..9).rev())
        .map(|(right, bit)| if mode >> bit & 1 == 1 { right } else { '-' })
        .collect();
    let (user, group) = attributes.owner.unwrap_or_default();
    let size = attributes.size.unwrap_or_default();
    let written = written_time(attributes);
    let field = |from, to| written.get(from..to).unwrap_or_default();
    let month = field(5, 7).parse::<usize>().unwrap_or_default();
    let month = MONTHS.get(month.wrapping_sub(1)).unwrap_or(&"Jan");
    let (day, year) = (field(8, 10), field(0, 4));
    format!("{kind}{rights} 1 {user} {group} {size} {month} {day}  {year} ")
}
