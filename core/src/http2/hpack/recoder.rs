//! Header sections of one direction on their way to a reader. As long as all of them go on as they
//! came, the reader's table is the sender's, and blocks are the sender's bytes. From the first that
//! is withheld or changed on, the two differ, and blocks are written anew.

use crate::http2::hpack::decoder::Decoder;
use crate::http2::hpack::encoder::{Encoder, encode_size};
use crate::http2::hpack::error::HpackError;
use crate::http2::hpack::fields::{Field, FieldList};
use crate::http2::hpack::table::Table;
use crate::http2::hpack::{DEFAULT_TABLE, MAX_TABLE};

/// Text of a section beyond which it is written in the Huffman code: readers have limits for what
/// comes, many at 64 KiB.
const MAX_RAW: usize = 8 * 1024;

/// A sender's decoder, and an encoder for the reader once it needs one.
#[derive(Debug, Default)]
pub struct Recoder {
    decoder: Decoder,
    /// The sender's table before the section that was read last, where that has changed it.
    before: Option<Table>,
    encoder: Option<Box<Encoder>>,
    /// The largest table that the reader has.
    most: Option<usize>,
    /// The reader expects to be told of this size by the next block, whoever writes it.
    owed: Option<usize>,
    /// The reader has been told of it by a block of ours, or was to be told by the block that was
    /// read last.
    told: Option<usize>,
}

impl Recoder {
    /// Takes note of what a block does to the table; the block goes on as it is.
    ///
    /// # Errors
    /// The block can't be read, and neither can later ones.
    pub fn follow(&mut self, block: &[u8]) -> Result<(), HpackError> {
        (self.before, self.owed, self.told) = (None, None, None);
        let followed = self.decoder.follow(block);
        followed.map_err(|error| self.judge(error))
    }

    /// Reads a block, of which it is not known yet if it goes on.
    ///
    /// # Errors
    /// The block can't be read, and neither can later ones.
    pub fn read(&mut self, block: &[u8], into: &mut FieldList) -> Result<(), HpackError> {
        self.before = None;
        self.told = smaller(self.told, self.owed.take());
        let read = if self.is_verbatim() {
            self.decoder.decode_keeping(block, into, &mut self.before)
        } else {
            self.decoder.decode(block, into)
        };
        read.map_err(|error| self.judge(error))
    }

    /// A table that is too large may be what the reader allows.
    fn judge(&self, error: HpackError) -> HpackError {
        match error {
            HpackError::TableSize if self.most.unwrap_or(DEFAULT_TABLE) > MAX_TABLE => {
                HpackError::TableNotFollowed
            }
            error => error,
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

    /// Takes note of the largest table that the reader has from now on. One that makes it smaller
    /// expects to be told so by the next block (RFC 7541 section 4.2): by the sender's own, or by
    /// one of ours that comes before it.
    pub fn limit(&mut self, size: usize) {
        self.most = Some(size);
        if size >= self.decoder.table().max() {
            return;
        }
        match &mut self.encoder {
            Some(encoder) => encoder.resize(size),
            None => self.owed = smaller(self.owed, Some(size)),
        }
    }

    /// Begins a block that is written beside those of the sender and leaves the table alone.
    pub fn announce(&mut self, out: &mut Vec<u8>) {
        if let Some(encoder) = &mut self.encoder {
            encoder.announce(out);
        } else if let Some(size) = self.owed.take() {
            self.told = smaller(self.told, Some(size));
            encode_size(size, out);
        }
    }

    /// Writes a block for the reader, instead of the one that was read last or beside it.
    pub fn encode<'f>(
        &mut self,
        fields: impl Iterator<Item = Field<'f>> + Clone,
        out: &mut Vec<u8>,
    ) {
        let text: usize = fields.clone().map(|f| f.name.len() + f.value.len()).sum();
        let encoder = self.encoder();
        // What its sender has made shorter must not become too long for the reader.
        encoder.shorten(text > MAX_RAW);
        encoder.encode(fields, out);
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
        let max = self.most.map_or(table.max(), |most| most.min(table.max()));
        let before = self.before.take();
        let smallest = smaller(self.told.take(), self.owed.take());
        let encoder = self.encoder.get_or_insert_with(|| {
            let known = before.unwrap_or_else(|| table.clone());
            Box::new(Encoder::with_table(known))
        });
        if let Some(smallest) = smallest {
            encoder.resize(smallest);
        }
        encoder.resize(max);
        encoder
    }
}

/// The smaller of two sizes, where there are any.
fn smaller(one: Option<usize>, other: Option<usize>) -> Option<usize> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}
