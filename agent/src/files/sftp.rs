//! The requests of one SFTP connection, answered from the exports.

mod connection;

pub(crate) use connection::serve;

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{self, Dir, OFlags};
use rustix::io::Errno;
use traffic_core::sftp::{
    Answers, Attributes, MAX_READ, NameEntry, Operation, StatusCode, open, parse,
};

use crate::files::export::Exports;
use crate::files::operations::{attributes_of, directory_attributes, set_attributes_of};
use crate::files::path::{absolute, normalised};

/// Open handles of one connection.
pub(crate) const MAX_HANDLES: usize = 1024;
/// Open directories of one connection; each has a buffer.
const MAX_DIRECTORIES: usize = 64;
/// Names in one answer.
const MAX_NAMES: usize = 100;
/// Extensions that are offered, as stock agents offer them, and `fsync`.
const EXTENSIONS: [(&str, &str); 4] = [
    ("posix-rename@openssh.com", "1"),
    ("statvfs@openssh.com", "2"),
    ("hardlink@openssh.com", "1"),
    ("fsync@openssh.com", "1"),
];

/// The state of a connection: its open handles.
pub(crate) struct Session<'e> {
    exports: &'e Exports,
    handles: HashMap<u32, Handle>,
    next: u32,
}

enum Handle {
    File {
        fd: OwnedFd,
        append: bool,
    },
    Directory {
        entries: Option<Dir>,
        synthetic: Vec<Vec<u8>>,
    },
}

/// A request that failed, with the status that says why.
#[derive(Debug)]
pub(crate) struct RequestError(StatusCode, String);

impl From<Errno> for RequestError {
    fn from(errno: Errno) -> Self {
        let code = match errno {
            // Version 3 of the protocol has few words for errors; the text says the rest.
            Errno::NOENT | Errno::NOTDIR => StatusCode::NoSuchFile,
            Errno::ACCESS | Errno::PERM | Errno::ROFS => StatusCode::PermissionDenied,
            Errno::NOSYS | Errno::OPNOTSUPP => StatusCode::Unsupported,
            _ => StatusCode::Failure,
        };
        Self(code, io::Error::from(errno).to_string())
    }
}

type RequestResult<T = ()> = Result<T, RequestError>;

impl<'e> Session<'e> {
    pub(crate) fn new(exports: &'e Exports) -> Self {
        Self {
            exports,
            handles: HashMap::new(),
            next: 0,
        }
    }

    /// Answers one packet. A packet that cannot be answered for lack of a request number is passed
    /// over.
    pub(crate) fn answer(&mut self, packet: &[u8], out: &mut Vec<u8>) {
        let mut answers = Answers(out);
        let request = match parse(packet) {
            Ok(request) => request,
            Err(fault) => {
                if let Some(id) = fault.id {
                    answers.status(id, StatusCode::BadMessage, &fault.to_string());
                }
                return;
            }
        };
        let id = request.id;
        if let Err(RequestError(code, text)) = self.perform(id, request.operation, &mut answers) {
            answers.status(id, code, &text);
        }
    }

    fn perform(
        &mut self,
        id: u32,
        operation: Operation<'_>,
        out: &mut Answers<'_>,
    ) -> RequestResult {
        match operation {
            Operation::Init(_) => out.version(&EXTENSIONS),
            Operation::Open {
                path,
                flags,
                attributes,
            } => {
                let handle = self.open(path, flags, attributes)?;
                out.handle(id, &handle);
            }
            Operation::Read {
                handle,
                offset,
                length,
            } => {
                return self.read(id, handle, offset, length, out);
            }
            Operation::Write {
                handle,
                offset,
                data,
            } => {
                self.write(handle, offset, data)?;
                out.status(id, StatusCode::Ok, "");
            }
            Operation::OpenDir(path) => {
                let handle = self.open_directory(path)?;
                out.handle(id, &handle);
            }
            Operation::ReadDir(handle) => return self.read_directory(id, handle, out),
            Operation::LStat(path) => out.attributes(id, &self.exports.attributes(path, false)?),
            Operation::Stat(path) => out.attributes(id, &self.exports.attributes(path, true)?),
            Operation::FStat(handle) => {
                let (fd, _) = self.file(handle)?;
                out.attributes(id, &attributes_of(&fs::fstat(fd)?));
            }
            Operation::RealPath(path) => name_alone(id, &absolute(&normalised(path)), out),
            Operation::ReadLink(path) => name_alone(id, &self.exports.read_link(path)?, out),
            Operation::StatVfs(path) => out.extended(id, &self.exports.figures(path)?),
            other => {
                self.change(other)?;
                out.status(id, StatusCode::Ok, "");
            }
        }
        Ok(())
    }

    /// Operations that are answered with a bare status.
    fn change(&mut self, operation: Operation<'_>) -> RequestResult {
        let exports = self.exports;
        match operation {
            Operation::Close(handle) => {
                let number = number_of(handle)?;
                self.handles.remove(&number).map(drop).ok_or_else(no_handle)
            }
            Operation::SetStat(path, attributes) => Ok(exports.set_attributes(path, attributes)?),
            Operation::FSetStat(handle, attributes) => {
                let (fd, _) = self.file(handle)?;
                Ok(set_attributes_of(fd, attributes)?)
            }
            Operation::Remove(path) => Ok(exports.remove(path, fs::AtFlags::empty())?),
            Operation::RemoveDir(path) => Ok(exports.remove(path, fs::AtFlags::REMOVEDIR)?),
            Operation::MakeDir(path, attributes) => Ok(exports.make_directory(path, attributes)?),
            Operation::Rename(from, to) => Ok(exports.rename(from, to, false)?),
            Operation::PosixRename(from, to) => Ok(exports.rename(from, to, true)?),
            Operation::SymLink { target, link } => Ok(exports.link_symbolically(target, link)?),
            Operation::HardLink(from, to) => Ok(exports.link(from, to)?),
            Operation::FSync(handle) => Ok(fs::fsync(self.file(handle)?.0)?),
            _ => {
                let text = "this operation is not offered".to_owned();
                Err(RequestError(StatusCode::Unsupported, text))
            }
        }
    }

    fn open(&mut self, path: &[u8], flags: u32, attributes: Attributes) -> RequestResult<[u8; 4]> {
        let has = |flag| flags & flag != 0;
        // Clients append without asking to write.
        let mut how = match (has(open::READ), has(open::WRITE) || has(open::APPEND)) {
            (_, false) => OFlags::RDONLY,
            (false, true) => OFlags::WRONLY,
            (true, true) => OFlags::RDWR,
        };
        for (wanted, flag) in [
            (open::APPEND, OFlags::APPEND),
            (open::CREATE, OFlags::CREATE),
            (open::EXCLUSIVE, OFlags::EXCL),
        ] {
            if has(wanted) {
                how |= flag;
            }
        }
        let fd = self
            .exports
            .open_file(path, how, has(open::TRUNCATE), attributes)?;
        self.keep(Handle::File {
            fd,
            // Kept, because `pwrite` ignores the position of a file that is open for appending.
            append: has(open::APPEND),
        })
    }

    fn keep(&mut self, handle: Handle) -> RequestResult<[u8; 4]> {
        let directories = self
            .handles
            .values()
            .filter(|h| matches!(h, Handle::Directory { .. }));
        let full = self.handles.len() >= MAX_HANDLES
            || matches!(handle, Handle::Directory { .. }) && directories.count() >= MAX_DIRECTORIES;
        if full {
            let text = format!(
                "too many open handles: {MAX_HANDLES} files and {MAX_DIRECTORIES} directories"
            );
            return Err(RequestError(StatusCode::Failure, text));
        }
        // After 2^32 handles numbers come again, and some may be open still.
        while self.handles.contains_key(&self.next) {
            self.next = self.next.wrapping_add(1);
        }
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        self.handles.insert(number, handle);
        Ok(number.to_be_bytes())
    }

    fn file(&self, handle: &[u8]) -> RequestResult<(&OwnedFd, bool)> {
        match self.handles.get(&number_of(handle)?) {
            Some(Handle::File { fd, append }) => Ok((fd, *append)),
            _ => Err(no_handle()),
        }
    }

    fn read(
        &self,
        id: u32,
        handle: &[u8],
        offset: u64,
        length: u32,
        out: &mut Answers<'_>,
    ) -> RequestResult {
        let (fd, _) = self.file(handle)?;
        // A client may ask for 4 GiB; short answers are allowed.
        let wanted = usize::try_from(length).unwrap_or(MAX_READ).min(MAX_READ);
        match out.data(id, wanted, |room| rustix::io::pread(fd, room, offset))? {
            // Nothing read is the end: the protocol has no empty answer.
            0 => Err(RequestError(
                StatusCode::EndOfFile,
                "end of file".to_owned(),
            )),
            _ => Ok(()),
        }
    }

    fn write(&self, handle: &[u8], mut offset: u64, mut data: &[u8]) -> RequestResult {
        let (fd, append) = self.file(handle)?;
        while !data.is_empty() {
            let written = if append {
                rustix::io::write(fd, data)?
            } else {
                rustix::io::pwrite(fd, data, offset)?
            };
            // The loop would not end.
            if written == 0 {
                return Err(Errno::IO.into());
            }
            data = data.get(written..).unwrap_or_default();
            offset += written as u64;
        }
        Ok(())
    }

    fn open_directory(&mut self, path: &[u8]) -> RequestResult<[u8; 4]> {
        let (entries, synthetic) = self.exports.open_directory(path)?;
        self.keep(Handle::Directory { entries, synthetic })
    }

    fn read_directory(&mut self, id: u32, handle: &[u8], out: &mut Answers<'_>) -> RequestResult {
        let number = number_of(handle)?;
        let Some(Handle::Directory { entries, synthetic }) = self.handles.get_mut(&number) else {
            return Err(no_handle());
        };
        let mut found: Vec<(Vec<u8>, Attributes)> = Vec::new();
        // Mounts first, and once: drained, they are not told again in the next answer.
        for name in synthetic.drain(..) {
            found.push((name, directory_attributes()));
        }
        if let Some(entries) = entries {
            while found.len() < MAX_NAMES {
                let Some(entry) = entries.read() else { break };
                let name = entry?.file_name().to_owned();
                // A name that is gone again has no attributes.
                let stat = fs::statat(entries.fd()?, &name, fs::AtFlags::SYMLINK_NOFOLLOW);
                let attributes = stat.map(|s| attributes_of(&s)).unwrap_or_default();
                found.push((name.into_bytes(), attributes));
            }
        }
        if found.is_empty() {
            return Err(RequestError(
                StatusCode::EndOfFile,
                "no more entries".to_owned(),
            ));
        }
        let names: Vec<_> = found
            .iter()
            .map(|(name, attributes)| NameEntry {
                name,
                attributes: *attributes,
            })
            .collect();
        out.names(id, &names);
        Ok(())
    }
}

fn number_of(handle: &[u8]) -> RequestResult<u32> {
    let bytes: [u8; 4] = handle.try_into().map_err(|_| no_handle())?;
    Ok(u32::from_be_bytes(bytes))
}

fn name_alone(id: u32, name: &[u8], out: &mut Answers<'_>) {
    let attributes = Attributes::default();
    out.names(id, &[NameEntry { name, attributes }]);
}

fn no_handle() -> RequestError {
    RequestError(StatusCode::Failure, "no such handle is open".to_owned())
}
