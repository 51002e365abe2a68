//! Errors of a header block that leave the state of the decoder unknown.

/// Error of a header block. Later blocks of its connection can't be read either.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HpackError {
    /// It ends within a field.
    #[error("the header block ends within a field")]
    Truncated,
    /// A number is larger than any real one.
    #[error("a number in the header block is too large")]
    Integer,
    /// An index is zero or beyond both tables.
    #[error("the header block has an index beyond its tables")]
    Index,
    /// A string is none of the Huffman code.
    #[error("a string in the header block is malformed")]
    Huffman,
    /// The table is to become larger than its reader allows.
    #[error("the header block makes the table larger than was allowed")]
    TableSize,
    /// The table is to become larger than what is followed here, as its reader allows.
    #[error("the header block makes the table larger than it can be followed")]
    TableNotFollowed,
}
