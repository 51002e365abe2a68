//! SFTP version 3 on the wire (draft-ietf-secsh-filexfer-02): requests are parsed from packets
//! without copying file data, answers are appended to an output buffer. File names are bytes, since
//! a volume may hold names that are no UTF-8; that is why no library's codec stands here.

mod answer;
mod request;

pub use answer::{Answers, NameEntry};
pub use request::{BadPacket, Operation, Request, parse};

/// Protocol version that is spoken.
pub const VERSION: u32 = 3;
/// Largest packet that is accepted or sent, in bytes after the length field.
pub const MAX_PACKET: usize = 256 * 1024;
/// Largest number of bytes in the answer to one READ; a short read is legal.
pub const MAX_READ: usize = 64 * 1024;

/// Open flags of an OPEN request (section 6.3).
pub mod open {
    /// Open for reading.
    pub const READ: u32 = 1;
    /// Open for writing.
    pub const WRITE: u32 = 2;
    /// Write at the end of the file.
    pub const APPEND: u32 = 4;
    /// Create the file if it is missing.
    pub const CREATE: u32 = 8;
    /// Cut the file to no bytes.
    pub const TRUNCATE: u32 = 16;
    /// Fail if the file exists.
    pub const EXCLUSIVE: u32 = 32;
}

/// Status of an answer (section 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusCode {
    /// The request succeeded.
    Ok = 0,
    /// No more bytes or directory entries.
    EndOfFile = 1,
    /// The path does not exist.
    NoSuchFile = 2,
    /// The caller may not do this.
    PermissionDenied = 3,
    /// Another failure, named by the message.
    Failure = 4,
    /// The packet does not follow the protocol.
    BadMessage = 5,
    /// The operation is not offered.
    Unsupported = 8,
}

/// File attributes; absent ones are left as they are, or not reported (section 5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Size in bytes.
    pub size: Option<u64>,
    /// Owner and group.
    pub owner: Option<(u32, u32)>,
    /// Mode with file type bits.
    pub mode: Option<u32>,
    /// Access and modification time in seconds since 1970.
    pub times: Option<(u32, u32)>,
}

const HAS_SIZE: u32 = 1;
const HAS_OWNER: u32 = 2;
const HAS_MODE: u32 = 4;
const HAS_TIMES: u32 = 8;
const HAS_EXTENDED: u32 = 0x8000_0000;

#[cfg(test)]
mod tests;
