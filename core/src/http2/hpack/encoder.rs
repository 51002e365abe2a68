//! Writes header blocks.

use crate::http2::hpack::fields::{Field, Form, StaticRef};
use crate::http2::hpack::huffman;
use crate::http2::hpack::integer;
use crate::http2::hpack::static_table;
use crate::http2::hpack::table::Table;
use crate::http2::hpack::{DEFAULT_TABLE, ENTRY_OVERHEAD, MAX_TABLE};

/// Representation of strings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Strings {
    /// Plain: for a peer that is near.
    Raw,
    /// In the Huffman code where that is shorter.
    Shorter,
}

/// One direction's encoder. Fields are represented as their sender has represented them, as far as
/// the table of this direction's reader allows.
#[derive(Clone, Debug)]
pub struct Encoder {
    table: Table,
    strings: Strings,
    /// Sizes of the table that the reader is yet to be told: the smallest since the last block, and
    /// the last.
    resized: Option<(usize, usize)>,
}

impl Default for Encoder {
    /// An encoder for a reader that is far away, with an empty table.
    fn default() -> Self {
        Self {
            table: Table::new(DEFAULT_TABLE),
            strings: Strings::Shorter,
            resized: None,
        }
    }
}

impl Encoder {
    /// An encoder for a reader that is near and has this table already.
    pub(super) fn with_table(table: Table) -> Self {
        Self {
            table,
            strings: Strings::Raw,
            resized: None,
        }
    }

    /// Bytes on the heap.
    #[must_use]
    pub fn heap(&self) -> usize {
        self.table.heap()
    }

    /// Selects the representation of strings: in the Huffman code where that is shorter, or plain.
    pub(super) fn shorten(&mut self, shorter: bool) {
        self.strings = if shorter {
            Strings::Shorter
        } else {
            Strings::Raw
        };
    }

    /// Makes the table as large as told, or as large as is worth it; the reader is told in the next
    /// block.
    pub fn resize(&mut self, size: usize) {
        let size = size.min(MAX_TABLE);
        if size != self.table.max() {
            let smallest = self
                .resized
                .map_or(size, |(smallest, _)| smallest.min(size));
            self.resized = Some((smallest, size));
            self.table.resize(size);
        }
    }

    /// Takes note of the largest table that the reader has, which it may change.
    pub fn allow(&mut self, most: usize) {
        self.resize(most.min(DEFAULT_TABLE));
    }

    /// Appends a block of fields to `out`.
    pub fn encode<'f>(&mut self, fields: impl Iterator<Item = Field<'f>>, out: &mut Vec<u8>) {
        self.announce(out);
        fields.for_each(|field| self.field(field, out));
    }

    /// Begins a block with the size of the table, where the reader is yet to be told.
    pub(super) fn announce(&mut self, out: &mut Vec<u8>) {
        if let Some((smallest, last)) = self.resized.take() {
            if smallest < last {
                encode_size(smallest, out);
            }
            encode_size(last, out);
        }
    }

    fn field(&mut self, field: Field<'_>, out: &mut Vec<u8>) {
        let size = field.name.len() + field.value.len() + ENTRY_OVERHEAD;
        let (bits, pattern) = match (field.form, field.known) {
            (Form::Indexed, StaticRef::Whole(index)) => {
                return integer::encode(index.into(), 7, 0x80, out);
            }
            (Form::Never, _) => (4, 0x10),
            (Form::Plain, _) => (4, 0),
            // It would empty the table.
            _ if size > self.table.max() => (4, 0),
            _ => match self.table.find(field.name, field.value) {
                Some(index) => return integer::encode(index, 7, 0x80, out),
                None => (6, 0x40),
            },
        };
        let index = match field.known {
            StaticRef::Name(index) | StaticRef::Whole(index) => Some(usize::from(index)),
            StaticRef::None => self.find_name(field.name),
        };
        integer::encode(index.unwrap_or(0), bits, pattern, out);
        if index.is_none() {
            string(field.name, self.strings, out);
        }
        string(field.value, self.strings, out);
        if bits == 6 {
            self.table.insert(field.name, field.value);
        }
    }

    fn find_name(&self, name: &[u8]) -> Option<usize> {
        static_table::find_name(name).or_else(|| self.table.find_name(name))
    }
}

/// Appends a change of the table's size.
pub(super) fn encode_size(size: usize, out: &mut Vec<u8>) {
    integer::encode(size, 5, 0x20, out);
}

/// Appends a field in a form that neither needs nor changes the reader's table.
pub fn encode_without_table(field: Field<'_>, out: &mut Vec<u8>) {
    let pattern = match (field.form, field.known) {
        (Form::Indexed, StaticRef::Whole(index)) => {
            return integer::encode(index.into(), 7, 0x80, out);
        }
        (Form::Never, _) => 0x10,
        _ => 0,
    };
    let index = match field.known {
        StaticRef::Name(index) | StaticRef::Whole(index) => Some(usize::from(index)),
        StaticRef::None => static_table::find_name(field.name),
    };
    integer::encode(index.unwrap_or(0), 4, pattern, out);
    if index.is_none() {
        string(field.name, Strings::Raw, out);
    }
    string(field.value, Strings::Raw, out);
}

fn string(text: &[u8], strings: Strings, out: &mut Vec<u8>) {
    let shorter = match strings {
        Strings::Raw => None,
        Strings::Shorter => Some(huffman::encoded_len(text)).filter(|len| *len < text.len()),
    };
    if let Some(len) = shorter {
        integer::encode(len, 7, 0x80, out);
        huffman::encode(text, out);
    } else {
        integer::encode(text.len(), 7, 0, out);
        out.extend_from_slice(text);
    }
}
