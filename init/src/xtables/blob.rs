//! Layout of an x_tables table: entries one behind the other, jumps as byte offsets between them.
//! Pure.
//!
//! Layout of `linux/netfilter/x_tables.h`, `ip_tables.h` and `ip6_tables.h` on 64-bit machines. An
//! entry is a fixed part, matches and a target; each chain of the user's begins with an entry whose
//! target `ERROR` holds its name and ends with one that returns.

use crate::family::Family;
use crate::ours::{self, Seen};
use crate::rule::Owner;

/// Number of hooks of a table.
const HOOKS: usize = 5;
const HOOK_NAMES: [&str; HOOKS] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
/// Length of the header of a match or a target: its size, name and revision.
const PART_HEADER: usize = 32;
const PART_NAME: std::ops::Range<usize> = 2..31;
/// Verdict that leaves the chain.
const RETURN: i32 = -5;

/// Places of the fields that differ between the families.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    /// Level of the socket options.
    pub(super) level: i32,
    /// Length of an entry's fixed part.
    fixed: usize,
    /// Place of the target's offset; the next entry's follows it.
    target_offset: usize,
}

impl Layout {
    pub(super) fn of(family: Family) -> Self {
        match family {
            Family::V4 => Self {
                level: 0,
                fixed: 112,
                target_offset: 88,
            },
            Family::V6 => Self {
                level: 41,
                fixed: 168,
                target_offset: 140,
            },
        }
    }
}

/// Role of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Role {
    /// First entry of a user's chain.
    Head,
    /// Rule.
    Rule,
    /// Policy of a hook's chain, end of a user's chain, end of the table.
    End,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    offset: usize,
    length: usize,
    /// Offset of the target in the table.
    target: usize,
    target_name: String,
    chain: String,
    role: Role,
}

/// Entries of a table, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Blob {
    layout: Layout,
    valid_hooks: u32,
    hook_entry: [u32; HOOKS],
    underflow: [u32; HOOKS],
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

/// Entries that stay when ours are taken away, ready to replace the table.
pub(super) struct Rest {
    pub(super) valid_hooks: u32,
    pub(super) hook_entry: [u32; HOOKS],
    pub(super) underflow: [u32; HOOKS],
    pub(super) count: u32,
    pub(super) entries: Vec<u8>,
    /// Numbers of the entries in the old table.
    pub(super) kept: Vec<usize>,
}

impl Rest {
    pub(super) fn size(&self) -> u32 {
        u32::try_from(self.entries.len()).unwrap_or(u32::MAX)
    }
}

pub(super) fn read32(bytes: &[u8], at: usize) -> Option<u32> {
    let end = at.checked_add(4)?;
    Some(u32::from_ne_bytes(bytes.get(at..end)?.try_into().ok()?))
}

fn read16(bytes: &[u8], at: usize) -> Option<usize> {
    let end = at.checked_add(2)?;
    let number = u16::from_ne_bytes(bytes.get(at..end)?.try_into().ok()?);
    Some(number.into())
}

fn name_at(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|it| *it == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

impl Blob {
    /// Reads `info` (hooks, their entries and policies) and the entries; none when they do not fit
    /// together.
    pub(super) fn parse(layout: Layout, info: &[u8], bytes: Vec<u8>) -> Option<Self> {
        let valid_hooks = read32(info, 0)?;
        let (mut hook_entry, mut underflow) = ([0; HOOKS], [0; HOOKS]);
        for hook in 0..HOOKS {
            hook_entry[hook] = read32(info, 4 + 4 * hook)?;
            underflow[hook] = read32(info, 4 + 4 * (HOOKS + hook))?;
        }
        let mut blob = Self {
            layout,
            valid_hooks,
            hook_entry,
            underflow,
            bytes,
            entries: Vec::new(),
        };
        blob.entries = blob.read_entries()?;
        Some(blob)
    }

    fn read_entries(&self) -> Option<Vec<Entry>> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut offset = 0;
        let mut chain = String::new();
        while offset < self.bytes.len() {
            let target = read16(&self.bytes, offset + self.layout.target_offset)?;
            let length = read16(&self.bytes, offset + self.layout.target_offset + 2)?;
            // Among others a length of zero, which would loop here for ever.
            if target < self.layout.fixed || length < target + PART_HEADER {
                return None;
            }
            let target = offset + target;
            let part = self.bytes.get(target..offset + length)?;
            let target_name = name_at(&part[PART_NAME]);
            let mut role = Role::Rule;
            if target_name == "ERROR" {
                chain = name_at(&part[PART_HEADER..]);
                role = Role::Head;
                // The entry before was the end of another chain.
                if let Some(last) = entries.last_mut() {
                    last.role = Role::End;
                }
            } else if let Some(hook) = self.hook_at(&self.hook_entry, offset) {
                HOOK_NAMES[hook].clone_into(&mut chain);
            }
            // A hook's policy is an entry like any other; only the table's head tells where it
            // stands.
            if role == Role::Rule && self.hook_at(&self.underflow, offset).is_some() {
                role = Role::End;
            }
            entries.push(Entry {
                offset,
                length,
                target,
                target_name,
                chain: chain.clone(),
                role,
            });
            offset += length;
        }
        // The table ends with an entry that belongs to no chain.
        if let Some(last) = entries.last_mut() {
            last.role = Role::End;
        }
        Some(entries)
    }

    fn hook_at(&self, offsets: &[u32; HOOKS], offset: usize) -> Option<usize> {
        (0..HOOKS).find(|hook| {
            self.valid_hooks & (1 << hook) != 0 && usize::try_from(offsets[*hook]) == Ok(offset)
        })
    }

    /// Number of entries.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Names of the chains of users.
    pub(super) fn chains(&self) -> impl Iterator<Item = &str> {
        let heads = self.entries.iter().filter(|it| it.role == Role::Head);
        heads.map(|it| it.chain.as_str())
    }

    /// Names of the targets of all rules; the standard one has no name.
    pub(super) fn targets(&self) -> impl Iterator<Item = &str> {
        let rules = self.entries.iter().filter(|it| it.role == Role::Rule);
        rules.map(|it| it.target_name.as_str())
    }

    /// Rules in their order.
    pub(super) fn rules(&self) -> Vec<Seen> {
        let rules = self.entries.iter().filter(|it| it.role == Role::Rule);
        rules.map(|it| self.seen(it)).collect()
    }

    fn seen(&self, entry: &Entry) -> Seen {
        let verdict = self.verdict(entry);
        let jump = verdict.and_then(|it| usize::try_from(it).ok());
        let (owner, plain) = self.owner(entry);
        Seen {
            chain: entry.chain.clone(),
            jump: jump.and_then(|at| self.chain_at(at)).map(str::to_owned),
            owner: owner.map(|(owner, _)| owner),
            returns_owner: plain
                && verdict == Some(RETURN)
                && owner.is_some_and(|(_, inverted)| !inverted),
        }
    }

    /// Verdict of a standard target: negative, or the offset of the entry to go on at.
    fn verdict(&self, entry: &Entry) -> Option<i32> {
        // The standard target is the one without a name.
        let end = entry.target + PART_HEADER + 4;
        if !entry.target_name.is_empty() || end > entry.offset + entry.length {
            return None;
        }
        read32(&self.bytes, entry.target + PART_HEADER).map(u32::cast_signed)
    }

    fn chain_at(&self, offset: usize) -> Option<&str> {
        let entry = self.entries.iter().find(|it| it.offset == offset)?;
        Some(&entry.chain)
    }

    /// Owner that an entry tests for and whether it is the exception; and whether it tests for
    /// nothing else but the transport and its ports.
    fn owner(&self, entry: &Entry) -> (Option<(Owner, bool)>, bool) {
        let (mut owner, mut plain) = (None, true);
        let mut at = entry.offset + self.layout.fixed;
        while at + PART_HEADER <= entry.target {
            // A size below the header's would not come forward.
            let size = read16(&self.bytes, at).unwrap_or(0).max(PART_HEADER);
            let Some(part) = self.bytes.get(at..(at + size).min(entry.target)) else {
                break;
            };
            match name_at(&part[PART_NAME]).as_str() {
                "owner" => owner = ours::owner_in_match(&part[PART_HEADER..]),
                // A transport with its ports comes as a match, too.
                "tcp" | "udp" => {}
                _ => plain = false,
            }
            at += size;
        }
        (owner, plain)
    }

    /// Entries that stay without ours.
    pub(super) fn without_ours(&self) -> Rest {
        let goes = self.ours();
        let (mut entries, mut kept) = (Vec::new(), Vec::new());
        for (number, entry) in self.entries.iter().enumerate() {
            if goes[number] {
                continue;
            }
            let start = entries.len();
            entries.extend_from_slice(&self.bytes[entry.offset..entry.offset + entry.length]);
            if let Some(verdict) = self.verdict(entry)
                && let Ok(old) = u32::try_from(verdict)
            {
                // Offsets of jumps count from the table's beginning, so they move with what goes
                // before them.
                let at = start + entry.target - entry.offset + PART_HEADER;
                entries[at..at + 4].copy_from_slice(&self.moved(&goes, old).to_ne_bytes());
            }
            kept.push(number);
        }
        let at_hooks = |offsets: &[u32; HOOKS]| {
            let mut moved = *offsets;
            for hook in (0..HOOKS).filter(|hook| self.valid_hooks & (1 << hook) != 0) {
                moved[hook] = self.moved(&goes, offsets[hook]);
            }
            moved
        };
        Rest {
            valid_hooks: self.valid_hooks,
            hook_entry: at_hooks(&self.hook_entry),
            underflow: at_hooks(&self.underflow),
            count: u32::try_from(kept.len()).unwrap_or(u32::MAX),
            entries,
            kept,
        }
    }

    /// Tells which entries are ours.
    fn ours(&self) -> Vec<bool> {
        let mut of_rule = ours::ours(&self.rules()).into_iter();
        let is_ours = |entry: &Entry| {
            // `ours` speaks of rules only, so its answers are taken one for each rule.
            let rule = entry.role == Role::Rule && of_rule.next().unwrap_or(false);
            rule || ours::is_own_chain(&entry.chain)
        };
        self.entries.iter().map(is_ours).collect()
    }

    /// Offset of an entry, or of the next that stays, once those that go are gone.
    fn moved(&self, goes: &[bool], old: u32) -> u32 {
        let before = self.entries.iter().zip(goes);
        let length: usize = before
            .filter(|(entry, goes)| u32::try_from(entry.offset).is_ok_and(|it| it < old) && !**goes)
            .map(|(entry, _)| entry.length)
            .sum();
        u32::try_from(length).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Entry without matches and with a standard target.
    fn entry(layout: Layout, verdict: i32) -> Vec<u8> {
        let mut bytes = vec![0; layout.fixed];
        let length = u16::try_from(layout.fixed + PART_HEADER + 8).unwrap();
        let target = u16::try_from(layout.fixed).unwrap();
        bytes[layout.target_offset..layout.target_offset + 2]
            .copy_from_slice(&target.to_ne_bytes());
        bytes[layout.target_offset + 2..layout.target_offset + 4]
            .copy_from_slice(&length.to_ne_bytes());
        let mut part = vec![0; PART_HEADER + 8];
        part[..2].copy_from_slice(&40u16.to_ne_bytes());
        part[PART_HEADER..PART_HEADER + 4].copy_from_slice(&verdict.to_ne_bytes());
        bytes.extend(part);
        bytes
    }

    /// Entry whose target `ERROR` holds a name.
    fn named(layout: Layout, name: &str) -> Vec<u8> {
        let mut bytes = vec![0; layout.fixed];
        let length = u16::try_from(layout.fixed + 64).unwrap();
        let target = u16::try_from(layout.fixed).unwrap();
        bytes[layout.target_offset..layout.target_offset + 2]
            .copy_from_slice(&target.to_ne_bytes());
        bytes[layout.target_offset + 2..layout.target_offset + 4]
            .copy_from_slice(&length.to_ne_bytes());
        let mut part = vec![0; 64];
        part[..2].copy_from_slice(&64u16.to_ne_bytes());
        part[2..7].copy_from_slice(b"ERROR");
        part[PART_HEADER..PART_HEADER + name.len()].copy_from_slice(name.as_bytes());
        bytes.extend(part);
        bytes
    }

    /// Table with one hook, `OUTPUT`, that jumps to our chain and then to another's.
    fn table(layout: Layout) -> Blob {
        let rule = entry(layout, -2).len();
        let head = named(layout, "x").len();
        let (ours, theirs) = (3 * rule + head, 5 * rule + 2 * head);
        let jump = |to: usize| entry(layout, i32::try_from(to).unwrap());
        let parts = [
            jump(ours),
            jump(theirs),
            entry(layout, -2),
            named(layout, "TEL_OUTPUT_TCP"),
            entry(layout, -2),
            entry(layout, RETURN),
            named(layout, "OTHER"),
            entry(layout, -2),
            entry(layout, RETURN),
            named(layout, "ERROR"),
        ];
        let mut info = vec![0; 44];
        info[..4].copy_from_slice(&(1u32 << 3).to_ne_bytes());
        let policy = u32::try_from(2 * rule).unwrap();
        info[4 + 4 * (HOOKS + 3)..8 + 4 * (HOOKS + 3)].copy_from_slice(&policy.to_ne_bytes());
        Blob::parse(layout, &info, parts.concat()).unwrap()
    }

    #[test]
    fn ours_go_and_the_jumps_of_others_lead_to_the_same_chains() {
        for family in Family::ALL {
            let layout = Layout::of(family);
            let blob = table(layout);
            let seen = blob.rules();
            let jumps: Vec<_> = seen.iter().map(|it| it.jump.as_deref()).collect();
            assert_eq!(jumps, [Some("TEL_OUTPUT_TCP"), Some("OTHER"), None, None]);
            let rest = blob.without_ours();
            assert_eq!(rest.kept, [1, 2, 6, 7, 8, 9]);
            let info: Vec<u8> = [rest.valid_hooks]
                .iter()
                .chain(&rest.hook_entry)
                .chain(&rest.underflow)
                .flat_map(|number| number.to_ne_bytes())
                .collect();
            let left = Blob::parse(layout, &info, rest.entries).unwrap();
            let seen = left.rules();
            assert_eq!(seen.len(), 2);
            assert_eq!(
                (seen[0].chain.as_str(), seen[0].jump.as_deref()),
                ("OUTPUT", Some("OTHER"))
            );
            assert_eq!(left.without_ours().kept.len(), left.len());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(
            info in proptest::collection::vec(any::<u8>(), 0..60),
            bytes in proptest::collection::vec(any::<u8>(), 0..600),
            at in 0usize..2000,
            byte: u8,
        ) {
            for family in Family::ALL {
                let layout = Layout::of(family);
                if let Some(blob) = Blob::parse(layout, &info, bytes.clone()) {
                    let _ = (blob.rules(), blob.without_ours().size());
                }
                // A table that is right but for one byte.
                let mut spoiled = table(layout);
                let at = at % spoiled.bytes.len();
                spoiled.bytes[at] = byte;
                if let Some(blob) = Blob::parse(layout, &[0; 44], spoiled.bytes) {
                    let _ = (blob.rules(), blob.without_ours().size());
                }
            }
        }
    }
}
