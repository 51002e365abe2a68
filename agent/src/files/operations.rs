//! Operations on the paths of clients, whatever protocol they speak. Each opens what it needs below
//! a root first and asks the policy of the place that was found, so that a link cannot lead around
//! it.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    self, AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, RenameFlags, Stat, Timespec, Timestamps,
    Uid,
};
use rustix::io::Errno;
use traffic_core::sftp::Attributes;
use traffic_proto::sidecar::MountPolicy;

use crate::files::confined::{Found, proc_path};
use crate::files::export::{Exports, Location, Place};

/// Mode bits that a client may set: no set-uid and no set-gid bit.
const SETTABLE_MODE: u32 = 0o1777;

type FileResult<T = ()> = Result<T, Errno>;

/// A directory and a name in it.
struct Entry {
    parent: Found,
    name: Vec<u8>,
}

impl Exports {
    pub(crate) fn open_file(
        &self,
        path: &[u8],
        how: OFlags,
        truncate: bool,
        attributes: Attributes,
    ) -> FileResult<OwnedFd> {
        // Without waiting for the other end of a named pipe, and without a terminal's control.
        let how = how | OFlags::NONBLOCK | OFlags::NOCTTY;
        let creates = how.contains(OFlags::CREATE);
        let exclusive = how.contains(OFlags::EXCL);
        let how = how - OFlags::CREATE - OFlags::EXCL;
        let location = self.locate(path)?;
        if !exclusive {
            match location.root.open(&location.below, how, Mode::empty()) {
                Err(Errno::NOENT) if creates => {}
                found => return opened(&location, found?, how, truncate),
            }
        }
        // A link whose target is missing is not followed: its target may be read-only.
        let entry = self.entry(path)?;
        let how = how | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(attributes.mode.unwrap_or(0o644) & SETTABLE_MODE);
        fs::openat(&entry.parent.fd, &entry.name[..], how, mode)
    }

    pub(crate) fn attributes(&self, path: &[u8], follow: bool) -> FileResult<Attributes> {
        let location = match self.find(path) {
            Place::Virtual(_) => return Ok(directory_attributes()),
            Place::Missing => return Err(Errno::NOENT),
            Place::Real(location) => location,
        };
        let link = if follow {
            OFlags::empty()
        } else {
            OFlags::NOFOLLOW
        };
        match open_visible(&location, OFlags::PATH | link) {
            // A directory that exists only as the parent of further roots.
            Err(_) if !location.further.is_empty() => Ok(directory_attributes()),
            found => Ok(attributes_of(&fs::fstat(&found?.fd)?)),
        }
    }

    /// Opens a directory for listing: its entries, and the names that are shown in it besides.
    pub(crate) fn open_directory(&self, path: &[u8]) -> FileResult<(Option<Dir>, Vec<Vec<u8>>)> {
        let location = match self.find(path) {
            Place::Missing => return Err(Errno::NOENT),
            Place::Virtual(names) => return Ok((None, names)),
            Place::Real(location) => location,
        };
        let how = OFlags::RDONLY | OFlags::DIRECTORY;
        let found = match open_visible(&location, how) {
            // A folder that holds mounts is listed even where the agent cannot see the folder
            // itself.
            Err(_) if !location.further.is_empty() => None,
            other => Some(other?),
        };
        let entries = found.map(|found| Dir::new(found.fd)).transpose()?;
        Ok((entries, location.further))
    }

    pub(crate) fn read_link(&self, path: &[u8]) -> FileResult<Vec<u8>> {
        let location = self.locate(path)?;
        let found = open_visible(&location, OFlags::PATH | OFlags::NOFOLLOW)?;
        Ok(fs::readlinkat(&found.fd, "", Vec::new())?.into_bytes())
    }

    pub(crate) fn figures(&self, path: &[u8]) -> FileResult<[u64; 11]> {
        let location = self.locate(path)?;
        let found = open_visible(&location, OFlags::PATH)?;
        let s = fs::fstatvfs(&found.fd)?;
        Ok([
            s.f_bsize,
            s.f_frsize,
            s.f_blocks,
            s.f_bfree,
            s.f_bavail,
            s.f_files,
            s.f_ffree,
            s.f_favail,
            s.f_fsid,
            s.f_flag.bits(),
            s.f_namemax,
        ])
    }

    pub(crate) fn set_attributes(&self, path: &[u8], attributes: Attributes) -> FileResult {
        let location = self.locate(path)?;
        let found = open_visible(&location, OFlags::PATH)?;
        writable(&location, &found)?;
        if attributes.size.is_some() {
            let how = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
            let file = location.root.open(&location.below, how, Mode::empty())?;
            writable(&location, &file)?;
            if !is_regular(&fs::fstat(&file.fd)?) {
                return Err(Errno::ACCESS);
            }
            return set_attributes_of(&file.fd, attributes);
        }
        set_attributes_of(&found.fd, attributes)
    }

    pub(crate) fn remove(&self, path: &[u8], flags: AtFlags) -> FileResult {
        let entry = self.entry(path)?;
        fs::unlinkat(&entry.parent.fd, &entry.name[..], flags)
    }

    pub(crate) fn make_directory(&self, path: &[u8], attributes: Attributes) -> FileResult {
        let entry = self.entry(path)?;
        let mode = Mode::from_raw_mode(attributes.mode.unwrap_or(0o755) & SETTABLE_MODE);
        fs::mkdirat(&entry.parent.fd, &entry.name[..], mode)
    }

    pub(crate) fn rename(&self, from: &[u8], to: &[u8], replace: bool) -> FileResult {
        let (from, to) = (self.entry(from)?, self.entry(to)?);
        let flags = if replace {
            RenameFlags::empty()
        } else {
            RenameFlags::NOREPLACE
        };
        let (old, new) = (&from.name[..], &to.name[..]);
        match fs::renameat_with(&from.parent.fd, old, &to.parent.fd, new, flags) {
            // File systems that cannot refuse to replace in one step.
            Err(Errno::INVAL | Errno::NOSYS) if !replace => {
                if fs::statat(&to.parent.fd, new, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
                    return Err(Errno::EXIST);
                }
                fs::renameat(&from.parent.fd, old, &to.parent.fd, new)
            }
            other => other,
        }
    }

    pub(crate) fn link_symbolically(&self, target: &[u8], link: &[u8]) -> FileResult {
        let entry = self.entry(link)?;
        fs::symlinkat(target, &entry.parent.fd, &entry.name[..])
    }

    pub(crate) fn link(&self, from: &[u8], to: &[u8]) -> FileResult {
        let (from, to) = (self.entry(from)?, self.entry(to)?);
        // Without following: a link to a link stays in the volume.
        let (old, new) = (&from.name[..], &to.name[..]);
        fs::linkat(&from.parent.fd, old, &to.parent.fd, new, AtFlags::empty())
    }

    fn locate(&self, path: &[u8]) -> FileResult<Location<'_>> {
        match self.find(path) {
            Place::Real(location) => Ok(location),
            Place::Virtual(_) => Err(Errno::ACCESS),
            Place::Missing => Err(Errno::NOENT),
        }
    }

    /// The directory that holds a path's last element, which may be changed there.
    fn entry(&self, path: &[u8]) -> FileResult<Entry> {
        let mut location = self.locate(path)?;
        // The root of an export itself is nobody's to remove or to rename.
        let name = location.below.pop().ok_or(Errno::ACCESS)?;
        let parent = open_visible(&location, OFlags::PATH | OFlags::DIRECTORY)?;
        writable(&location, &parent)?;
        Ok(Entry { parent, name })
    }
}

/// Opens a place that its policy shows to workstations.
fn open_visible(location: &Location<'_>, how: OFlags) -> FileResult<Found> {
    let found = location.root.open(&location.below, how, Mode::empty())?;
    visible(location, &found)?;
    Ok(found)
}

/// Changes the attributes of an open file, a link not followed any further.
pub(crate) fn set_attributes_of(fd: &OwnedFd, attributes: Attributes) -> FileResult {
    if let Some(size) = attributes.size {
        fs::ftruncate(fd, size)?;
    }
    let path = proc_path(fd);
    if let Some(mode) = attributes.mode {
        let mode = Mode::from_raw_mode(mode & SETTABLE_MODE);
        fs::chmodat(CWD, &path, mode, AtFlags::empty())?;
    }
    if let Some((user, group)) = attributes.owner {
        let owner = (Some(Uid::from_raw(user)), Some(Gid::from_raw(group)));
        fs::chownat(fd.as_fd(), "", owner.0, owner.1, AtFlags::EMPTY_PATH)?;
    }
    if let Some((access, modification)) = attributes.times {
        let at = |seconds: u32| Timespec {
            tv_sec: i64::from(seconds),
            tv_nsec: 0,
        };
        let times = Timestamps {
            last_access: at(access),
            last_modification: at(modification),
        };
        fs::utimensat(CWD, &path, &times, AtFlags::empty())?;
    }
    Ok(())
}

/// Attributes of a directory that exists only in the listing.
pub(crate) fn directory_attributes() -> Attributes {
    Attributes {
        size: Some(0),
        owner: Some((0, 0)),
        mode: Some(0o040_755),
        times: Some((0, 0)),
    }
}

fn visible(location: &Location<'_>, found: &Found) -> FileResult {
    match location.policy_of(found) {
        MountPolicy::Remote | MountPolicy::RemoteReadonly => Ok(()),
        MountPolicy::Local | MountPolicy::Ignore => Err(Errno::NOENT),
    }
}

fn writable(location: &Location<'_>, found: &Found) -> FileResult {
    match location.policy_of(found) {
        MountPolicy::RemoteReadonly => Err(Errno::ROFS),
        _ => Ok(()),
    }
}

/// Admits a file that was opened, by its policy and its kind; cuts it where that is wanted.
fn opened(
    location: &Location<'_>,
    found: Found,
    how: OFlags,
    truncate: bool,
) -> FileResult<OwnedFd> {
    visible(location, &found)?;
    if how.intersects(OFlags::WRONLY | OFlags::RDWR) {
        writable(location, &found)?;
    }
    if !is_regular(&fs::fstat(&found.fd)?) {
        return Err(Errno::ACCESS);
    }
    if truncate {
        fs::ftruncate(&found.fd, 0)?;
    }
    Ok(found.fd)
}

/// Attributes as the protocol has them; times before 1970 or after 2106 are cut to its range.
pub(crate) fn attributes_of(stat: &Stat) -> Attributes {
    let time = |seconds: i64| u32::try_from(seconds.max(0)).unwrap_or(u32::MAX);
    Attributes {
        size: Some(u64::try_from(stat.st_size).unwrap_or_default()),
        owner: Some((stat.st_uid, stat.st_gid)),
        mode: Some(stat.st_mode),
        times: Some((time(stat.st_atime), time(stat.st_mtime))),
    }
}

/// Returns true for a file that may be read and written: no device, socket or named pipe, which
/// could block a thread or reach beyond the volume.
fn is_regular(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}
