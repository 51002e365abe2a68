//! Tables of x_tables, where the legacy flavour of iptables keeps its rules, read and changed by
//! socket options. No program is needed, and no right but NET_ADMIN.

mod blob;

use std::path::Path;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::failure::Failure;
use crate::ours::{self, Seen};
use crate::permission::Need;
use crate::rule::Family;
use crate::system;
use blob::{Blob, Layout};

/// `IPT_SO_SET_REPLACE`, and `IPT_SO_GET_INFO` for reading; IPv6 uses the same numbers.
const INFO_OR_REPLACE: i32 = 64;
/// `IPT_SO_GET_ENTRIES`, and `IPT_SO_SET_ADD_COUNTERS` for writing.
const ENTRIES_OR_COUNTERS: i32 = 65;
/// Length of a table's name in the kernel's structures.
const NAME_LENGTH: usize = 32;
/// Length of `struct ipt_getinfo`.
const INFO_LENGTH: usize = 84;
/// Length of `struct ipt_get_entries` in front of the entries.
const ENTRIES_HEADER: usize = 40;
/// Length of `struct ipt_replace` in front of the entries.
const REPLACE_HEADER: usize = 96;
/// Place of the pointer to the old counters in `struct ipt_replace`.
const COUNTERS_AT: usize = 88;
/// Limit of attempts at a table that others change meanwhile.
const MAX_ATTEMPTS: usize = 20;

/// A table as it was read.
pub struct Table {
    family: Family,
    name: &'static str,
    blob: Blob,
}

/// Presence of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Presence {
    Yes,
    No,
    /// Not known by looking: the table itself has to be asked for.
    Unknown,
}

/// Looks into the list of tables: asking for a table would create it.
fn presence(family: Family, table: &str) -> Presence {
    let path = match family {
        Family::V4 => "/proc/net/ip_tables_names",
        Family::V6 => "/proc/net/ip6_tables_names",
    };
    match std::fs::read_to_string(path) {
        Ok(names) if names.lines().any(|name| name == table) => Presence::Yes,
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Presence::Unknown,
        // An image may be run without that file system at all.
        Err(_) if !Path::new("/proc/self").exists() => Presence::Unknown,
        _ => Presence::No,
    }
}

/// Reads a table; none when there is no such table.
pub fn read(family: Family, name: &'static str) -> Result<Option<Table>, Failure> {
    if presence(family, name) == Presence::No {
        return Ok(None);
    }
    let unanswered = |errno: Errno| {
        let text = format!("the x_tables table {name} of {family} could not be read: {errno}");
        match errno {
            Errno::PERM | Errno::ACCESS => denied(text),
            _ => Failure::Unanswered(text),
        }
    };
    match read_table(family, name) {
        Ok(table) => Ok(Some(table)),
        // The kernel has no x_tables, or no such table after all.
        Err(Errno::NOPROTOOPT | Errno::NOENT | Errno::AFNOSUPPORT | Errno::PROTONOSUPPORT) => {
            Ok(None)
        }
        Err(errno) => Err(unanswered(errno)),
    }
}

/// Tells a missing right from a kernel that refuses all the same.
fn denied(text: String) -> Failure {
    match crate::permission::check(Need::NetAdmin) {
        Err(denied) => Failure::NotPermitted(denied),
        Ok(()) => Failure::Unanswered(text),
    }
}

fn open(family: Family) -> Result<std::os::fd::OwnedFd, Errno> {
    let family = match family {
        Family::V4 => AddressFamily::INET,
        Family::V6 => AddressFamily::INET6,
    };
    rustix::net::socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
}

fn read_table(family: Family, name: &'static str) -> Result<Table, Errno> {
    let socket = open(family)?;
    for _ in 0..MAX_ATTEMPTS {
        let mut info = vec![0; INFO_LENGTH];
        info[..name.len()].copy_from_slice(name.as_bytes());
        let level = Layout::of(family).level;
        system::get_option(&socket, level, INFO_OR_REPLACE, &mut info)?;
        let size = blob::read32(&info, INFO_LENGTH - 4).unwrap_or(0);
        let mut entries = vec![0; ENTRIES_HEADER + usize::try_from(size).unwrap_or(0)];
        entries[..name.len()].copy_from_slice(name.as_bytes());
        entries[NAME_LENGTH..NAME_LENGTH + 4].copy_from_slice(&size.to_ne_bytes());
        match system::get_option(&socket, level, ENTRIES_OR_COUNTERS, &mut entries) {
            // It has grown or shrunk between the two questions.
            Err(Errno::AGAIN) => {}
            Err(errno) => return Err(errno),
            Ok(_) => {
                let blob = Blob::parse(
                    Layout::of(family),
                    &info[NAME_LENGTH..INFO_LENGTH],
                    entries.split_off(ENTRIES_HEADER),
                );
                let blob = blob.ok_or(Errno::BADMSG)?;
                return Ok(Table { family, name, blob });
            }
        }
    }
    Err(Errno::AGAIN)
}

impl Table {
    /// Rules of the table, without policies and the ends of chains.
    pub fn rules(&self) -> Vec<Seen> {
        self.blob.rules()
    }

    /// True when a rule of the table hands packets to this target.
    pub fn has_target(&self, name: &str) -> bool {
        self.blob.targets().any(|target| target == name)
    }

    /// True when the table has a chain of this name.
    pub fn has_chain(&self, name: &str) -> bool {
        self.blob.chains().any(|chain| chain == name)
    }

    /// Number of rules of ours.
    pub fn own_rules(&self) -> usize {
        ours::ours(&self.rules()).iter().filter(|it| **it).count()
    }

    /// True when a chain of ours, with rules or without, or a rule of ours is there.
    pub fn has_ours(&self) -> bool {
        self.own_rules() > 0 || self.blob.chains().any(ours::is_own_chain)
    }

    /// Number of rules of others.
    pub fn foreign_rules(&self) -> usize {
        self.rules().len() - self.own_rules()
    }
}

/// Takes our chains and rules out of the `nat` table of a family. Says whether there were any.
pub fn remove(family: Family) -> Result<bool, Failure> {
    for _ in 0..MAX_ATTEMPTS {
        let Some(table) = read(family, "nat")? else {
            return Ok(false);
        };
        if !table.has_ours() {
            return Ok(false);
        }
        match table.replace(&table.blob.without_ours()) {
            Ok(()) => return Ok(true),
            // The table is not the one that was read.
            Err(Errno::AGAIN) => {}
            Err(errno) => {
                let text = format!(
                    "{} rules of ours are left in the x_tables table nat of {family}: the kernel \
                     refused their removal: {errno}",
                    table.own_rules()
                );
                return Err(Failure::Refused(text));
            }
        }
    }
    Err(Failure::Refused(format!(
        "rules of ours are left in the x_tables table nat of {family}: others kept changing the \
         table"
    )))
}

impl Table {
    /// Puts `new` in the place of this table, and gives the rules their counts back.
    fn replace(&self, new: &blob::Rest) -> Result<(), Errno> {
        let old_count = self.blob.len();
        let mut value = vec![0; REPLACE_HEADER];
        value[..self.name.len()].copy_from_slice(self.name.as_bytes());
        let mut at = NAME_LENGTH;
        let numbers = [new.valid_hooks, new.count, new.size()];
        for number in numbers.iter().chain(&new.hook_entry).chain(&new.underflow) {
            value[at..at + 4].copy_from_slice(&number.to_ne_bytes());
            at += 4;
        }
        let count = u32::try_from(old_count).unwrap_or(u32::MAX);
        value[at..at + 4].copy_from_slice(&count.to_ne_bytes());
        value.extend_from_slice(&new.entries);
        let mut counters = vec![0u64; 2 * old_count];
        let socket = open(self.family)?;
        let level = Layout::of(self.family).level;
        system::replace_option(
            &socket,
            level,
            INFO_OR_REPLACE,
            &mut value,
            COUNTERS_AT,
            &mut counters,
        )?;
        self.add_counters(&socket, new, &counters);
        Ok(())
    }

    /// Counts are for people: a kernel that refuses them is no failure.
    fn add_counters(&self, socket: &std::os::fd::OwnedFd, new: &blob::Rest, counters: &[u64]) {
        let mut value = vec![0; ENTRIES_HEADER];
        value[..self.name.len()].copy_from_slice(self.name.as_bytes());
        value[NAME_LENGTH..NAME_LENGTH + 4].copy_from_slice(&new.count.to_ne_bytes());
        for at in &new.kept {
            for half in [2 * at, 2 * at + 1] {
                let number = counters.get(half).copied().unwrap_or(0);
                value.extend_from_slice(&number.to_ne_bytes());
            }
        }
        let level = Layout::of(self.family).level;
        let _ = system::set_option(socket, level, ENTRIES_OR_COUNTERS, &value);
    }
}
