//! Header sections of one direction on their way to a reader. As long as all of them go on as they
//! came, the reader's table is the sender's, and blocks are the sender's bytes. From the first that
//! is withheld or changed on, the two differ, and blocks are written anew.

use crate::http2::hpack::decoder::Decoder;
use crate::http2::hpack::encoder::Encoder;
use crate::http2::hpack::error::HpackError;
use crate::http2::hpack::fields::{Field, FieldList};
use crate::http2::hpack::table::Table;

/// A sender's decoder, and an encoder for the reader once it needs one.
#[derive(Debug, Default)]
pub struct Recoder {
    decoder: Decoder,
    /// The sender's table before the section that was read last, where that has changed it.
    before: Option<Table>,
    encoder: Option<Box<Encoder>>,
}

impl Recoder {
    /// Takes note of what a block does to the table; the block goes on as it is.
    ///
    /// # Errors
    /// The block can't be read, and neither can later ones.
    pub fn follow(&mut self, block: &[u8]) -> Result<(), HpackError> {
        self.before = None;
        self.decoder.follow(block)
    }

    /// Reads a block, of which it is not known yet if it goes on.
    ///
    /// # Errors
    /// The block can't be read, and neither can later ones.
    pub fn read(&mut self, block: &[u8], into: &mut FieldList) -> Result<(), HpackError> {
        self.before = None;
        if self.is_verbatim() {
            self.decoder.decode_keeping(block, into, &mut self.before)
        } else {
            self.decoder.decode(block, into)
        }
    }

    /// Reads the first field of the next block, without taking note of the block; nothing where
    /// that can't be read.
    pub fn peek(&self, block: &[u8], into: &mut FieldList) {
        self.decoder.peek(block, into);
    }

    /// Returns true if the block that was read last may go on as it came.
    #[must_use]
    pub fn is_verbatim(&self) -> bool {
        self.encoder.is_none()
    }

    /// The block that was read last does not go on.
    pub fn withhold(&mut self) {
        self.encoder();
    }

    /// Writes a block for the reader, instead of the one that was read last or beside it.
    pub fn encode<'f>(&mut self, fields: impl Iterator<Item = Field<'f>>, out: &mut Vec<u8>) {
        self.encoder().encode(fields, out);
    }

    /// Bytes on the heap.
    #[must_use]
    pub fn heap(&self) -> usize {
        let encoder = self.encoder.as_ref();
        self.decoder.heap() + encoder.map_or(0, |e| size_of::<Encoder>() + e.heap())
    }

    fn encoder(&mut self) -> &mut Encoder {
        let table = self.decoder.table();
        // The sender keeps to what the reader allows, so its changes of size hold for both.
        let max = table.max();
        let before = self.before.take();
        let encoder = self.encoder.get_or_insert_with(|| {
            let known = before.unwrap_or_else(|| table.clone());
            Box::new(Encoder::with_table(known))
        });
        encoder.resize(max);
        encoder
    }
}
