//! Requests of a client, parsed from the bytes of one packet.

use super::{Attributes, HAS_EXTENDED, HAS_MODE, HAS_OWNER, HAS_SIZE, HAS_TIMES};

/// A request with the number that its answer carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request<'p> {
    /// Number chosen by the client; 0 for INIT, which has none.
    pub id: u32,
    /// The operation and its arguments.
    pub operation: Operation<'p>,
}

/// Operations of protocol version 3. Paths and handles are bytes as received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation<'p> {
    /// Start of a session, with the client's version.
    Init(u32),
    /// Opens a file.
    Open {
        /// The path.
        path: &'p [u8],
        /// Flags, see [`super::open`].
        flags: u32,
        /// Attributes of a file that is created.
        attributes: Attributes,
    },
    /// Closes a handle.
    Close(&'p [u8]),
    /// Reads from a file.
    Read {
        /// Handle of the file.
        handle: &'p [u8],
        /// Position of the first byte.
        offset: u64,
        /// Number of bytes wanted.
        length: u32,
    },
    /// Writes to a file.
    Write {
        /// Handle of the file.
        handle: &'p [u8],
        /// Position of the first byte.
        offset: u64,
        /// The bytes.
        data: &'p [u8],
    },
    /// Attributes of a path, links not followed.
    LStat(&'p [u8]),
    /// Attributes of an open file.
    FStat(&'p [u8]),
    /// Changes attributes of a path.
    SetStat(&'p [u8], Attributes),
    /// Changes attributes of an open file.
    FSetStat(&'p [u8], Attributes),
    /// Opens a directory.
    OpenDir(&'p [u8]),
    /// Reads entries of a directory.
    ReadDir(&'p [u8]),
    /// Removes a file.
    Remove(&'p [u8]),
    /// Makes a directory.
    MakeDir(&'p [u8], Attributes),
    /// Removes a directory.
    RemoveDir(&'p [u8]),
    /// Canonical form of a path.
    RealPath(&'p [u8]),
    /// Attributes of a path, links followed.
    Stat(&'p [u8]),
    /// Renames; fails where the new name exists.
    Rename(&'p [u8], &'p [u8]),
    /// Target of a symbolic link.
    ReadLink(&'p [u8]),
    /// Makes a symbolic link. Implementations send the target first, against the draft.
    SymLink {
        /// Text of the link.
        target: &'p [u8],
        /// Path of the link.
        link: &'p [u8],
    },
    /// `posix-rename@openssh.com`: renames over an existing name.
    PosixRename(&'p [u8], &'p [u8]),
    /// `statvfs@openssh.com`: figures of a file system.
    StatVfs(&'p [u8]),
    /// `hardlink@openssh.com`: makes a second name.
    HardLink(&'p [u8], &'p [u8]),
    /// `fsync@openssh.com`: writes a file's data to its medium.
    FSync(&'p [u8]),
    /// An operation or extension that is not known.
    Unknown,
}

/// A packet that does not follow the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("SFTP packet of type {kind}: {problem}")]
pub struct BadPacket {
    /// Type byte; 0 where there is none.
    pub kind: u8,
    /// Request number, where it could be read.
    pub id: Option<u32>,
    /// The fault.
    pub problem: &'static str,
}

/// Parses one packet, its length field removed.
///
/// # Errors
/// The packet is empty, or ends within a field. With a request number it can be answered.
pub fn parse(packet: &[u8]) -> Result<Request<'_>, BadPacket> {
    let Some((&kind, rest)) = packet.split_first() else {
        let problem = "it is empty";
        return Err(BadPacket {
            kind: 0,
            id: None,
            problem,
        });
    };
    let mut fields = Fields(rest);
    let short = |id| BadPacket {
        kind,
        id,
        problem: "it ends within a field",
    };
    let first = fields.number().ok_or(short(None))?;
    // INIT has its version where all others have their number.
    if kind == 1 {
        return Ok(Request {
            id: 0,
            operation: Operation::Init(first),
        });
    }
    let operation = operation(kind, &mut fields).ok_or(short(Some(first)))?;
    Ok(Request {
        id: first,
        operation,
    })
}

fn operation<'p>(kind: u8, fields: &mut Fields<'p>) -> Option<Operation<'p>> {
    Some(match kind {
        3 => Operation::Open {
            path: fields.string()?,
            flags: fields.number()?,
            attributes: fields.attributes()?,
        },
        4 => Operation::Close(fields.string()?),
        5 => Operation::Read {
            handle: fields.string()?,
            offset: fields.long()?,
            length: fields.number()?,
        },
        6 => Operation::Write {
            handle: fields.string()?,
            offset: fields.long()?,
            data: fields.string()?,
        },
        7 => Operation::LStat(fields.string()?),
        8 => Operation::FStat(fields.string()?),
        9 => Operation::SetStat(fields.string()?, fields.attributes()?),
        10 => Operation::FSetStat(fields.string()?, fields.attributes()?),
        11 => Operation::OpenDir(fields.string()?),
        12 => Operation::ReadDir(fields.string()?),
        13 => Operation::Remove(fields.string()?),
        14 => Operation::MakeDir(fields.string()?, fields.attributes()?),
        15 => Operation::RemoveDir(fields.string()?),
        16 => Operation::RealPath(fields.string()?),
        17 => Operation::Stat(fields.string()?),
        18 => Operation::Rename(fields.string()?, fields.string()?),
        19 => Operation::ReadLink(fields.string()?),
        20 => Operation::SymLink {
            target: fields.string()?,
            link: fields.string()?,
        },
        // Extensions share a type and are told apart by name.
        200 => extension(fields)?,
        // Answered with "unsupported", as the draft asks, so that clients fall back.
        _ => Operation::Unknown,
    })
}

fn extension<'p>(fields: &mut Fields<'p>) -> Option<Operation<'p>> {
    Some(match fields.string()? {
        b"posix-rename@openssh.com" => Operation::PosixRename(fields.string()?, fields.string()?),
        b"statvfs@openssh.com" => Operation::StatVfs(fields.string()?),
        b"hardlink@openssh.com" => Operation::HardLink(fields.string()?, fields.string()?),
        b"fsync@openssh.com" => Operation::FSync(fields.string()?),
        _ => Operation::Unknown,
    })
}

/// Unread fields of a packet.
struct Fields<'p>(&'p [u8]);

impl<'p> Fields<'p> {
    fn number(&mut self) -> Option<u32> {
        let (bytes, rest) = self.0.split_first_chunk::<4>()?;
        self.0 = rest;
        Some(u32::from_be_bytes(*bytes))
    }

    fn long(&mut self) -> Option<u64> {
        let (bytes, rest) = self.0.split_first_chunk::<8>()?;
        self.0 = rest;
        Some(u64::from_be_bytes(*bytes))
    }

    fn string(&mut self) -> Option<&'p [u8]> {
        let length = usize::try_from(self.number()?).ok()?;
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    fn attributes(&mut self) -> Option<Attributes> {
        let flags = self.number()?;
        let has = |flag| flags & flag != 0;
        let mut found = Attributes::default();
        if has(HAS_SIZE) {
            found.size = Some(self.long()?);
        }
        if has(HAS_OWNER) {
            found.owner = Some((self.number()?, self.number()?));
        }
        if has(HAS_MODE) {
            found.mode = Some(self.number()?);
        }
        if has(HAS_TIMES) {
            found.times = Some((self.number()?, self.number()?));
        }
        if has(HAS_EXTENDED) {
            for _ in 0..self.number()? {
                self.string()?;
                self.string()?;
            }
        }
        Some(found)
    }
}
