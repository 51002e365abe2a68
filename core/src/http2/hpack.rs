//! HPACK (RFC 7541), kept as it comes: order, repetition, representation and odd bytes of fields
//! survive a decode and an encode, which the types of HTTP libraries do not allow. Tables, integers
//! and lists are bounded; nothing a peer sends makes this panic.

mod decoder;
mod encoder;
mod error;
mod fields;
mod huffman;
mod integer;
mod recoder;
mod static_table;
mod table;
#[cfg(test)]
mod tests;

pub use decoder::Decoder;
pub use encoder::{Encoder, encode_without_table};
pub use error::HpackError;
pub use fields::{Field, FieldList, Form, StaticRef};
pub use recoder::Recoder;

/// The table size that holds until an encoder says another one (RFC 9113 section 6.5.2).
pub const DEFAULT_TABLE: usize = 4096;

/// The largest table that is followed. A peer may allow more, and an encoder may use it, but then
/// nobody here knows what its indexes mean.
pub const MAX_TABLE: usize = 64 * 1024;

/// The largest header list that is kept, counted as RFC 9113 section 6.5.2 does: what Go's servers
/// take.
pub const MAX_LIST: usize = 1 << 20;

/// Size of an entry beyond its text (RFC 7541 section 4.1).
const ENTRY_OVERHEAD: usize = 32;
