//! Answers to a client, appended to one output buffer.

use super::{Attributes, HAS_MODE, HAS_OWNER, HAS_SIZE, HAS_TIMES, StatusCode, VERSION};

/// One entry of a NAME answer.
#[derive(Clone, Copy, Debug)]
pub struct NameEntry<'n> {
    /// File name, or the whole path for REALPATH and READLINK.
    pub name: &'n [u8],
    /// Attributes, where they are reported.
    pub attributes: Attributes,
}

/// Encoder of answers. Every method appends one whole packet with its length field.
#[derive(Debug)]
pub struct Answers<'b>(pub &'b mut Vec<u8>);

impl Answers<'_> {
    /// Answers INIT with the version and the extensions, each a name and its version.
    pub fn version(&mut self, extensions: &[(&str, &str)]) {
        self.packet(2, |out| {
            number(out, VERSION);
            for (name, version) in extensions {
                string(out, name.as_bytes());
                string(out, version.as_bytes());
            }
        });
    }

    /// Answers with a status and a message for people.
    pub fn status(&mut self, id: u32, code: StatusCode, message: &str) {
        self.packet(101, |out| {
            number(out, id);
            number(out, code as u32);
            string(out, message.as_bytes());
            string(out, b"en");
        });
    }

    /// Answers with a handle.
    pub fn handle(&mut self, id: u32, handle: &[u8]) {
        self.packet(102, |out| {
            number(out, id);
            string(out, handle);
        });
    }

    /// Answers with up to `length` bytes that `read` puts into the buffer it is given.
    ///
    /// # Errors
    /// Those of `read`; nothing is appended then, nor when it reads no byte, which gives `Ok(0)`.
    pub fn data<E>(
        &mut self,
        id: u32,
        length: usize,
        read: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<usize, E> {
        let start = self.0.len();
        // Length, type, request number, and the length of the data.
        const HEAD: usize = 4 + 1 + 4 + 4;
        self.0.resize(start + HEAD + length, 0);
        let room = self.0.get_mut(start + HEAD..).unwrap_or_default();
        let read = read(room);
        let Ok(n @ 1..) = read else {
            self.0.truncate(start);
            return read;
        };
        self.0.truncate(start + HEAD + n);
        let mut head = Vec::with_capacity(HEAD);
        number(&mut head, length_field(HEAD - 4 + n));
        head.push(103);
        number(&mut head, id);
        number(&mut head, length_field(n));
        if let Some(place) = self.0.get_mut(start..start + HEAD) {
            place.copy_from_slice(&head);
        }
        Ok(n)
    }

    /// Answers with names.
    pub fn names(&mut self, id: u32, entries: &[NameEntry<'_>]) {
        self.packet(104, |out| {
            number(out, id);
            number(out, length_field(entries.len()));
            for entry in entries {
                string(out, entry.name);
                // The long form is for people; clients take the attributes.
                string(out, entry.name);
                attributes(out, &entry.attributes);
            }
        });
    }

    /// Answers with attributes.
    pub fn attributes(&mut self, id: u32, found: &Attributes) {
        self.packet(105, |out| {
            number(out, id);
            attributes(out, found);
        });
    }

    /// Answers `statvfs@openssh.com` with its eleven figures.
    pub fn extended(&mut self, id: u32, figures: &[u64]) {
        self.packet(201, |out| {
            number(out, id);
            for figure in figures {
                out.extend_from_slice(&figure.to_be_bytes());
            }
        });
    }

    fn packet(&mut self, kind: u8, fill: impl FnOnce(&mut Vec<u8>)) {
        let start = self.0.len();
        self.0.extend_from_slice(&[0, 0, 0, 0, kind]);
        fill(self.0);
        let length = length_field(self.0.len() - start - 4);
        if let Some(place) = self.0.get_mut(start..start + 4) {
            place.copy_from_slice(&length.to_be_bytes());
        }
    }
}

/// A length as the wire has it; answers are far below its limit.
fn length_field(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

fn number(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_be_bytes());
}

fn string(out: &mut Vec<u8>, bytes: &[u8]) {
    number(out, length_field(bytes.len()));
    out.extend_from_slice(bytes);
}

fn attributes(out: &mut Vec<u8>, found: &Attributes) {
    let flag = |present: bool, flag| if present { flag } else { 0 };
    number(
        out,
        flag(found.size.is_some(), HAS_SIZE)
            | flag(found.owner.is_some(), HAS_OWNER)
            | flag(found.mode.is_some(), HAS_MODE)
            | flag(found.times.is_some(), HAS_TIMES),
    );
    if let Some(size) = found.size {
        out.extend_from_slice(&size.to_be_bytes());
    }
    if let Some((user, group)) = found.owner {
        number(out, user);
        number(out, group);
    }
    if let Some(mode) = found.mode {
        number(out, mode);
    }
    if let Some((access, modification)) = found.times {
        number(out, access);
        number(out, modification);
    }
}
