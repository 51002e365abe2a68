//! Commands with a data connection: files both ways, and listings.

use std::os::fd::OwnedFd;

use rustix::fs::{self, AtFlags, Dir, FileType, OFlags};
use traffic_core::sftp::Attributes;

use super::control::FtpReply;
use super::data::{Passive, Transfer, TransferBreak};
use super::listing::Form;
use super::{CommandError, CommandResult, FtpSession, is_kind};
use crate::files::export::Exports;
use crate::files::operations::{attributes_of, directory_attributes};

/// Bytes that are read and sent at once.
const CHUNK: usize = 64 * 1024;

/// How a transfer ended: the other end, or the file's own trouble.
type Transferred = Result<(), TransferError>;

enum TransferError {
    Broken(TransferBreak),
    Refused(CommandError),
}

impl From<TransferBreak> for TransferError {
    fn from(broken: TransferBreak) -> Self {
        Self::Broken(broken)
    }
}

impl From<rustix::io::Errno> for TransferError {
    fn from(errno: rustix::io::Errno) -> Self {
        Self::Refused(errno.into())
    }
}

impl FtpSession<'_> {
    pub(super) fn retrieve(&mut self, path: &[u8]) -> CommandResult {
        let passive = self.take_passive()?;
        let start = std::mem::take(&mut self.restart);
        let path = self.path(path);
        let how = OFlags::RDONLY;
        let file = self
            .exports
            .open_file(&path, how, false, Attributes::default())?;
        self.transfer(&passive, |transfer| send_file(transfer, &file, start))
    }

    /// Receives a file, from the position of a REST on: what was there behind it is cut off, which
    /// is how the stock client cuts files.
    pub(super) fn store(&mut self, path: &[u8], append: bool) -> CommandResult {
        let passive = self.take_passive()?;
        let start = std::mem::take(&mut self.restart);
        let path = self.path(path);
        let mut how = OFlags::WRONLY | OFlags::CREATE;
        if append {
            how |= OFlags::APPEND;
        }
        let truncate = start == 0 && !append;
        let file = self
            .exports
            .open_file(&path, how, truncate, Attributes::default())?;
        if !truncate && !append {
            fs::ftruncate(&file, start)?;
            fs::seek(&file, fs::SeekFrom::Start(start))?;
        }
        self.transfer(&passive, |transfer| receive_file(transfer, &file))
    }

    pub(super) fn list(&mut self, path: Option<&[u8]>, form: Form) -> CommandResult {
        let passive = self.take_passive()?;
        self.restart = 0;
        let path = self.path(path.unwrap_or_default());
        let exports = self.exports;
        let attributes = exports.attributes(&path, true)?;
        if form != Form::Facts && !is_kind(&attributes, FileType::Directory) {
            let name = path.rsplit(|b| *b == b'/').next().unwrap_or_default();
            let mut line = Vec::new();
            form.write(name, &attributes, &mut line);
            return self.transfer(&passive, |transfer| Ok(transfer.send(&line)?));
        }
        let (entries, further) = exports.open_directory(&path)?;
        self.transfer(&passive, |transfer| {
            let mut lines = Vec::new();
            for name in further {
                form.write(&name, &directory_attributes(), &mut lines);
            }
            if let Some(entries) = entries {
                send_entries(transfer, exports, (&path, entries), form, &mut lines)?;
            }
            Ok(transfer.send(&lines)?)
        })
    }

    fn take_passive(&mut self) -> CommandResult<Passive> {
        let missing = || CommandError::Refused(FtpReply::line(425, "say EPSV or PASV first"));
        self.passive.take().ok_or_else(missing)
    }

    fn transfer(
        &mut self,
        passive: &Passive,
        carry: impl FnOnce(&mut Transfer<'_>) -> Transferred,
    ) -> CommandResult {
        self.control.reply(&FtpReply::line(150, "here it comes"))?;
        let Ok(data) = passive.accept() else {
            return Ok(FtpReply::line(425, "no data connection came in time"));
        };
        match carry(&mut Transfer::new(data, &mut self.control)) {
            Ok(()) => Ok(FtpReply::line(226, "done")),
            Err(TransferError::Refused(failed)) => Err(failed),
            Err(TransferError::Broken(TransferBreak::Aborted)) => {
                self.control.reply(&FtpReply::line(426, "aborted"))?;
                Ok(FtpReply::line(226, "aborted"))
            }
            Err(TransferError::Broken(TransferBreak::Data)) => {
                Ok(FtpReply::line(426, "the data connection was lost"))
            }
            Err(TransferError::Broken(TransferBreak::Control)) => {
                Err(std::io::Error::from(std::io::ErrorKind::ConnectionAborted).into())
            }
        }
    }
}

fn send_file(transfer: &mut Transfer<'_>, file: &OwnedFd, mut at: u64) -> Transferred {
    let mut chunk = vec![0; CHUNK];
    loop {
        match rustix::io::pread(file, &mut chunk, at)? {
            0 => return Ok(()),
            n => {
                transfer.send(chunk.get(..n).unwrap_or_default())?;
                at += n as u64;
            }
        }
    }
}

fn receive_file(transfer: &mut Transfer<'_>, file: &OwnedFd) -> Transferred {
    let mut chunk = vec![0; CHUNK];
    loop {
        let n = transfer.receive(&mut chunk)?;
        let mut rest = chunk.get(..n).unwrap_or_default();
        if rest.is_empty() {
            return Ok(());
        }
        while !rest.is_empty() {
            match rustix::io::write(file, rest)? {
                // The loop would not end.
                0 => return Err(rustix::io::Errno::IO.into()),
                written => rest = rest.get(written..).unwrap_or_default(),
            }
        }
    }
}

/// Sends the entries of a directory; of a link that leads somewhere, what it leads to.
fn send_entries(
    transfer: &mut Transfer<'_>,
    exports: &Exports,
    (path, mut entries): (&[u8], Dir),
    form: Form,
    lines: &mut Vec<u8>,
) -> Transferred {
    while let Some(entry) = entries.read() {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        // A name that is gone again is not listed.
        let Ok(stat) = fs::statat(entries.fd()?, name, AtFlags::SYMLINK_NOFOLLOW) else {
            continue;
        };
        let mut attributes = attributes_of(&stat);
        if is_kind(&attributes, FileType::Symlink) {
            let whole = [path, b"/", name.to_bytes()].concat();
            attributes = exports.attributes(&whole, true).unwrap_or(attributes);
        }
        form.write(name.to_bytes(), &attributes, lines);
        if lines.len() >= CHUNK {
            transfer.send(lines)?;
            lines.clear();
        }
    }
    Ok(())
}
