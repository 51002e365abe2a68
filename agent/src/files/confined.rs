//! Path resolution that never leaves a root directory. The kernel does it (`openat2` with
//! `RESOLVE_IN_ROOT`): absolute links and `..` are taken as the app's container would take them,
//! and neither a link nor a race with a rename leads outside.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{self, CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Attempts at a path while others rename in it; the kernel asks to try again then.
const MAX_ATTEMPTS: usize = 16;

/// A directory that paths are resolved in.
#[derive(Debug)]
pub(crate) struct Root(Option<OwnedFd>);

/// An open file or directory and its path in the agent.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) fd: OwnedFd,
    path: Vec<u8>,
}

impl Root {
    /// Opens a directory. A missing one is an empty root: a container without volumes.
    ///
    /// # Errors
    /// The directory cannot be opened, or the kernel has no `openat2`.
    pub(crate) fn open_or_empty(directory: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = match fs::open(directory, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(Self(None)),
            other => Self(Some(other?)),
        };
        root.open(&[], flags, Mode::empty())?;
        Ok(root)
    }

    /// Opens the path made of `elements`.
    ///
    /// # Errors
    /// Those of `openat2`.
    pub(crate) fn open(
        &self,
        elements: &[Vec<u8>],
        flags: OFlags,
        mode: Mode,
    ) -> Result<Found, Errno> {
        let root = self.0.as_ref().ok_or(Errno::NOENT)?;
        let path = match elements {
            [] => b".".to_vec(),
            _ => elements.join(&b'/'),
        };
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let flags = flags | OFlags::CLOEXEC;
        for _ in 0..MAX_ATTEMPTS {
            match fs::openat2(root, &path[..], flags, mode, resolve) {
                Err(Errno::AGAIN) => {}
                other => return Found::new(other?),
            }
        }
        Err(Errno::AGAIN)
    }
}

impl Found {
    fn new(fd: OwnedFd) -> Result<Self, Errno> {
        let path = fs::readlinkat(CWD, proc_path(&fd), Vec::new())?.into_bytes();
        Ok(Self { fd, path })
    }

    /// Elements of the path below `root`.
    pub(crate) fn below_root(&self, root: &Root) -> Vec<Vec<u8>> {
        let Some(fd) = &root.0 else { return Vec::new() };
        let Ok(root) = fs::readlinkat(CWD, proc_path(fd), Vec::new()) else {
            return Vec::new();
        };
        let root = root.as_bytes();
        let below = self.path.strip_prefix(root).unwrap_or(&self.path);
        crate::files::path::normalised(below)
    }
}

/// Path by which a descriptor's file can be named, for calls that take no descriptor opened with
/// `O_PATH`.
pub(crate) fn proc_path(fd: &impl AsFd) -> std::path::PathBuf {
    let number = fd.as_fd().as_raw_fd().to_string();
    Path::new("/proc/self/fd").join(std::ffi::OsStr::from_bytes(number.as_bytes()))
}
