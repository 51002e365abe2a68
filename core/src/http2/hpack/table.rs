//! The dynamic table (RFC 7541 section 2.3.2).

use std::collections::VecDeque;

use crate::http2::hpack::ENTRY_OVERHEAD;
use crate::http2::hpack::static_table;

/// Text of dropped entries beyond which the rest is moved to the front.
const MOST_DROPPED: usize = 1024;

/// Entries that come and go, the newest first. An empty table holds no memory.
#[derive(Clone, Debug)]
pub(super) struct Table {
    /// Text of the entries, the oldest first, behind text of some that were dropped. At its end an
    /// entry may be under construction.
    text: Vec<u8>,
    /// Bytes removed from the front of `text`, modulo 2^32.
    removed: u32,
    entries: VecDeque<TableEntry>,
    size: usize,
    max: usize,
}

#[derive(Clone, Copy, Debug)]
struct TableEntry {
    /// Start of its text, counted as [`Table::removed`] is.
    at: u32,
    // Tables are no larger than 64 KiB, overhead included.
    name: u16,
    value: u16,
}

impl TableEntry {
    fn size(self) -> usize {
        usize::from(self.name) + usize::from(self.value) + ENTRY_OVERHEAD
    }
}

impl Table {
    pub(super) fn new(max: usize) -> Self {
        Self {
            text: Vec::new(),
            removed: 0,
            entries: VecDeque::new(),
            size: 0,
            max,
        }
    }

    /// The size beyond which entries are dropped.
    pub(super) fn max(&self) -> usize {
        self.max
    }

    /// Bytes on the heap.
    pub(super) fn heap(&self) -> usize {
        self.text.capacity() + self.entries.capacity() * size_of::<TableEntry>()
    }

    /// The entry of an index, which counts from 1 through the static table first.
    pub(super) fn get(&self, index: usize) -> Option<(&[u8], &[u8])> {
        if index <= static_table::LEN {
            return static_table::get(index);
        }
        self.read(*self.entries.get(index - static_table::LEN - 1)?)
    }

    fn read(&self, entry: TableEntry) -> Option<(&[u8], &[u8])> {
        let at = entry.at.wrapping_sub(self.removed) as usize;
        let text = self.text.get(at..)?;
        let (name, text) = text.split_at_checked(entry.name.into())?;
        Some((name, text.get(..entry.value.into())?))
    }

    /// The index of the newest entry that is this very field.
    pub(super) fn find(&self, name: &[u8], value: &[u8]) -> Option<usize> {
        self.position(|entry| {
            usize::from(entry.name) == name.len()
                && usize::from(entry.value) == value.len()
                && self.read(entry) == Some((name, value))
        })
    }

    /// The index of the newest entry with this name.
    pub(super) fn find_name(&self, name: &[u8]) -> Option<usize> {
        self.position(|entry| {
            usize::from(entry.name) == name.len()
                && self.read(entry).is_some_and(|(known, _)| known == name)
        })
    }

    fn position(&self, wanted: impl Fn(TableEntry) -> bool) -> Option<usize> {
        let at = self.entries.iter().position(|entry| wanted(*entry))?;
        Some(static_table::LEN + 1 + at)
    }

    /// The text behind all entries, where a new one is put together: name and value, one behind the
    /// other. [`Self::commit`] makes an entry of it.
    pub(super) fn tail(&mut self) -> &mut Vec<u8> {
        &mut self.text
    }

    /// Appends the name of an entry to the tail; `false` where there is no such entry.
    pub(super) fn append_name(&mut self, index: usize) -> bool {
        if let Some((name, _)) = static_table::get(index) {
            self.text.extend_from_slice(name);
            return true;
        }
        let dynamic = index.checked_sub(static_table::LEN + 1);
        let Some(entry) = dynamic.and_then(|at| self.entries.get(at).copied()) else {
            return false;
        };
        let at = entry.at.wrapping_sub(self.removed) as usize;
        self.text
            .extend_from_within(at..at + usize::from(entry.name));
        true
    }

    /// Makes an entry of the tail, which begins at `start`, and drops old ones for it. One that is
    /// larger than the table empties it (RFC 7541 section 4.4).
    pub(super) fn commit(&mut self, start: usize, name: usize) {
        let value = self.text.len() - start - name;
        let size = name + value + ENTRY_OVERHEAD;
        let (true, Ok(name), Ok(value)) = (size <= self.max, name.try_into(), value.try_into())
        else {
            self.clear();
            return;
        };
        self.make_room(self.max - size);
        let at = (start as u32).wrapping_add(self.removed);
        self.entries.push_front(TableEntry { at, name, value });
        self.size += size;
        self.forget_dropped();
    }

    /// Puts a field in.
    pub(super) fn insert(&mut self, name: &[u8], value: &[u8]) {
        let start = self.text.len();
        self.text.extend_from_slice(name);
        self.text.extend_from_slice(value);
        self.commit(start, name.len());
    }

    /// Changes the size beyond which entries are dropped.
    pub(super) fn resize(&mut self, max: usize) {
        self.max = max;
        self.make_room(max);
        if self.entries.is_empty() {
            self.clear();
        }
    }

    fn make_room(&mut self, most: usize) {
        while self.size > most {
            let Some(entry) = self.entries.pop_back() else {
                return;
            };
            self.size -= entry.size();
        }
    }

    fn clear(&mut self) {
        let max = self.max;
        *self = Self::new(max);
    }

    /// Moves the text of living entries to the front when there is much dead text before it.
    fn forget_dropped(&mut self) {
        let Some(oldest) = self.entries.back() else {
            return;
        };
        let dropped = oldest.at.wrapping_sub(self.removed);
        if dropped as usize > MOST_DROPPED && dropped as usize > self.text.len() / 2 {
            self.text.drain(..dropped as usize);
            self.removed = self.removed.wrapping_add(dropped);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_entry_may_take_its_name_from_one_that_it_drops() {
        let mut table = Table::new(70);
        table.insert(b"name-of-both", b"1");
        let start = table.tail().len();
        assert!(table.append_name(62));
        let name = table.tail().len() - start;
        table.tail().extend_from_slice(b"two");
        table.commit(start, name);
        assert_eq!(table.get(62), Some((&b"name-of-both"[..], &b"two"[..])));
        assert_eq!(table.get(63), None);
        assert!(!table.append_name(63) && !table.append_name(0));
    }

    proptest! {
        #[test]
        fn it_behaves_like_a_plain_list(
            steps in proptest::collection::vec((0usize..6, 0usize..60, 0usize..200, any::<u8>()), 1..200),
        ) {
            let mut table = Table::new(4096);
            let (mut plain, mut max) = (Vec::<(Vec<u8>, Vec<u8>)>::new(), 4096);
            for (what, name, value, byte) in steps {
                if what == 0 {
                    max = value * 30;
                    table.resize(max);
                } else {
                    let field = (vec![byte; name], vec![!byte; value * what]);
                    table.insert(&field.0, &field.1);
                    plain.insert(0, field);
                }
                while plain.iter().map(|(n, v)| n.len() + v.len() + 32).sum::<usize>() > max {
                    plain.pop();
                }
                for (at, (name, value)) in plain.iter().enumerate() {
                    prop_assert_eq!(table.get(62 + at), Some((&name[..], &value[..])));
                }
                prop_assert_eq!(table.get(62 + plain.len()), None);
                if let Some((name, value)) = plain.last() {
                    let at = plain.iter().position(|f| (&f.0, &f.1) == (name, value));
                    prop_assert_eq!(table.find(name, value), at.map(|at| 62 + at));
                    let at = plain.iter().position(|f| f.0 == *name);
                    prop_assert_eq!(table.find_name(name), at.map(|at| 62 + at));
                }
                prop_assert!(table.text.len() <= 2 * 6_000 + MOST_DROPPED);
            }
        }
    }
}
