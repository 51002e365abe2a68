//! Reads header blocks (RFC 7541 section 3.2).

use crate::http2::hpack::error::HpackError;
use crate::http2::hpack::fields::{Field, FieldList, Form, StaticRef};
use crate::http2::hpack::huffman;
use crate::http2::hpack::integer;
use crate::http2::hpack::static_table;
use crate::http2::hpack::table::Table;
use crate::http2::hpack::{DEFAULT_TABLE, MAX_TABLE};

/// One direction's decoder.
#[derive(Clone, Debug)]
pub struct Decoder {
    table: Table,
    /// The most that an encoder may make of the table.
    limit: usize,
}

impl Default for Decoder {
    /// A decoder that follows whatever table two others have agreed on, up to [`MAX_TABLE`].
    fn default() -> Self {
        Self::new(MAX_TABLE)
    }
}

impl Decoder {
    /// A decoder whose peer was allowed a table of `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            table: Table::new(DEFAULT_TABLE.min(limit)),
            limit: limit.min(MAX_TABLE),
        }
    }

    /// Bytes on the heap.
    #[must_use]
    pub fn heap(&self) -> usize {
        self.table.heap()
    }

    /// Appends the fields of a block to `into`.
    ///
    /// # Errors
    /// The block can't be read, and neither can later ones.
    pub fn decode(&mut self, block: &[u8], into: &mut FieldList) -> Result<(), HpackError> {
        self.run(block, Some(into), None)
    }

    /// Decodes like [`Self::decode`], and puts the earlier table into `before` where the block has
    /// changed it.
    pub(super) fn decode_keeping(
        &mut self,
        block: &[u8],
        into: &mut FieldList,
        before: &mut Option<Table>,
    ) -> Result<(), HpackError> {
        self.run(block, Some(into), Some(before))
    }

    /// Takes note of what a block does to the table, and of nothing else.
    ///
    /// # Errors
    /// Those of [`Self::decode`], but text that comes into no table is not looked at.
    pub fn follow(&mut self, block: &[u8]) -> Result<(), HpackError> {
        self.run(block, None, None)
    }

    /// Reads the first field of the next block, without taking note of the block; nothing where
    /// that can't be read.
    pub fn peek(&self, block: &[u8], into: &mut FieldList) {
        let mut rest = Reader(block);
        while let Some(first) = rest.0.first().copied() {
            // What can't be read is found out when the block is.
            let _ = match first {
                0x80.. => rest.integer(7).and_then(|i| self.indexed(i, Some(into))),
                0x20..0x40 => match rest.integer(5) {
                    Ok(_) => continue,
                    Err(_) => return,
                },
                _ => self.peek_literal(first, &mut rest, into),
            };
            return;
        }
    }

    fn peek_literal(
        &self,
        first: u8,
        rest: &mut Reader<'_>,
        into: &mut FieldList,
    ) -> Result<(), HpackError> {
        let index = rest.integer(if first & 0x40 != 0 { 6 } else { 4 })?;
        let name = match index {
            0 => Some(rest.text()?),
            _ => None,
        };
        let value = rest.text()?;
        self.literal(Form::Plain, index, name, value, Some(into))
    }

    pub(super) fn table(&self) -> &Table {
        &self.table
    }

    fn run(
        &mut self,
        block: &[u8],
        mut into: Option<&mut FieldList>,
        mut before: Option<&mut Option<Table>>,
    ) -> Result<(), HpackError> {
        let mut rest = Reader(block);
        while let Some(first) = rest.0.first().copied() {
            if first & 0x80 != 0 {
                let index = rest.integer(7)?;
                self.indexed(index, into.as_deref_mut())?;
                continue;
            }
            if first & 0xe0 == 0x20 {
                let size = rest.integer(5)?;
                // Behind a field it is malformed, and its reader's to judge: some take it.
                if size > self.limit {
                    return Err(HpackError::TableSize);
                }
                self.keep(&mut before);
                self.table.resize(size);
                continue;
            }
            let (form, bits) = match first & 0xf0 {
                0x40.. => (Form::Incremental, 6),
                0x10 => (Form::Never, 4),
                _ => (Form::Plain, 4),
            };
            let index = rest.integer(bits)?;
            let name = match index {
                0 => Some(rest.text()?),
                _ => None,
            };
            let value = rest.text()?;
            if form == Form::Incremental {
                self.keep(&mut before);
                self.incremental(index, name, value, into.as_deref_mut())?;
            } else {
                self.literal(form, index, name, value, into.as_deref_mut())?;
            }
        }
        Ok(())
    }

    fn keep(&self, before: &mut Option<&mut Option<Table>>) {
        if let Some(before) = before {
            before.get_or_insert_with(|| self.table.clone());
        }
    }

    fn indexed(&self, index: usize, into: Option<&mut FieldList>) -> Result<(), HpackError> {
        let (name, value) = self.table.get(index).ok_or(HpackError::Index)?;
        if let Some(list) = into {
            let known = match u8::try_from(index) {
                Ok(index) if usize::from(index) <= static_table::LEN => StaticRef::Whole(index),
                _ => StaticRef::None,
            };
            let form = Form::Indexed;
            list.push(Field {
                name,
                value,
                form,
                known,
            });
        }
        Ok(())
    }

    fn incremental(
        &mut self,
        index: usize,
        name: Option<Text<'_>>,
        value: Text<'_>,
        into: Option<&mut FieldList>,
    ) -> Result<(), HpackError> {
        let start = self.table.tail().len();
        match name {
            Some(name) => name.append_to(self.table.tail())?,
            None if self.table.append_name(index) => {}
            None => return Err(HpackError::Index),
        }
        let name = self.table.tail().len() - start;
        value.append_to(self.table.tail())?;
        if let Some(list) = into {
            let tail = self.table.tail().get(start..).unwrap_or_default();
            let (name, value) = tail.split_at_checked(name).unwrap_or_default();
            list.push(Field {
                name,
                value,
                form: Form::Incremental,
                known: name_ref(index),
            });
        }
        self.table.commit(start, name);
        Ok(())
    }

    fn literal(
        &self,
        form: Form,
        index: usize,
        name: Option<Text<'_>>,
        value: Text<'_>,
        into: Option<&mut FieldList>,
    ) -> Result<(), HpackError> {
        let known = match name {
            None => Some(self.table.get(index).ok_or(HpackError::Index)?.0),
            Some(_) => None,
        };
        let Some(list) = into else { return Ok(()) };
        let start = list.tail().len();
        match (known, name) {
            (Some(known), _) => list.tail().extend_from_slice(known),
            (None, Some(name)) => name.append_to(list.tail())?,
            (None, None) => return Err(HpackError::Index),
        }
        let name = list.tail().len() - start;
        value.append_to(list.tail())?;
        list.commit(start, name, form, name_ref(index));
        Ok(())
    }
}

fn name_ref(index: usize) -> StaticRef {
    match u8::try_from(index) {
        Ok(index @ 1..) if usize::from(index) <= static_table::LEN => StaticRef::Name(index),
        _ => StaticRef::None,
    }
}

/// The unread rest of a block.
struct Reader<'b>(&'b [u8]);

impl<'b> Reader<'b> {
    fn integer(&mut self, bits: u32) -> Result<usize, HpackError> {
        let (value, used) = integer::decode(self.0, bits)?;
        self.0 = self.0.get(used..).unwrap_or_default();
        Ok(value)
    }

    fn text(&mut self) -> Result<Text<'b>, HpackError> {
        let huffman = self.0.first().ok_or(HpackError::Truncated)? & 0x80 != 0;
        let length = self.integer(7)?;
        let (bytes, rest) = self
            .0
            .split_at_checked(length)
            .ok_or(HpackError::Truncated)?;
        self.0 = rest;
        Ok(Text { bytes, huffman })
    }
}

/// A string as it stands in a block.
#[derive(Clone, Copy)]
struct Text<'b> {
    bytes: &'b [u8],
    huffman: bool,
}

impl Text<'_> {
    fn append_to(self, out: &mut Vec<u8>) -> Result<(), HpackError> {
        if self.huffman {
            return huffman::decode(self.bytes, out).map_err(|_| HpackError::Huffman);
        }
        out.extend_from_slice(self.bytes);
        Ok(())
    }
}
