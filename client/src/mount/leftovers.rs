//! Records of mounts, so that the next run can take away what a killed one left behind. A record is
//! a file that its process holds locked: whoever can lock it knows that the process is gone.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use crate::live;
use crate::mount::mounted::{is_mounted, unmount};
use crate::report::note;

/// Ending of the records' names.
const EXTENSION: &str = "mount";
/// First byte of a record whose folder was made for the mount, and of others.
const MADE: u8 = b'+';
const FOUND: u8 = b'=';

/// Record of a mount of this process.
#[derive(Debug)]
pub(crate) struct Record {
    path: PathBuf,
    root: PathBuf,
    is_made: bool,
    /// Holds the lock.
    _file: File,
}

impl Record {
    /// Writes the record of a mount at `root`; `is_made` says that the folder is ours.
    ///
    /// # Errors
    /// There is no place for it.
    pub(crate) fn write(root: &Path, is_made: bool) -> io::Result<Self> {
        Self::write_in(&live::folder()?, root, is_made)
    }

    fn write_in(folder: &Path, root: &Path, is_made: bool) -> io::Result<Self> {
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(&[if is_made { MADE } else { FOUND }])?;
        file.write_all(root.as_os_str().as_bytes())?;
        // Locked before it can be found.
        file.as_file().lock()?;
        let path = file.path().with_extension(EXTENSION);
        let file = file.persist(&path).map_err(|error| error.error)?;
        Ok(Self {
            path,
            root: root.to_owned(),
            is_made,
            _file: file,
        })
    }

    /// Removes the folder, if it is ours and empty, and the record.
    pub(crate) fn clean_up(&self) {
        take_away(&self.root, self.is_made);
        let _ = fs::remove_file(&self.path);
    }
}

/// What a process that is gone has left.
#[derive(Debug)]
struct Leftover {
    root: PathBuf,
    is_unmounted: bool,
}

/// Unmounts what processes that are gone have left, and says so.
pub(crate) fn take_away_all() {
    let Ok(folder) = live::folder() else {
        return;
    };
    for Leftover { root, is_unmounted } in take_away_in(&folder) {
        let at = root.display();
        match is_unmounted {
            true => note(format_args!(
                "Unmounted {at}, left behind by an intercept that was killed"
            )),
            false => note(format_args!(
                "{at}, left behind by an intercept that was killed, cannot be unmounted; \
                 fusermount3 -u {at}, or umount {at} as root, unmounts it"
            )),
        }
    }
}

/// Returns what had still been mounted.
fn take_away_in(folder: &Path) -> Vec<Leftover> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let records = entries.map(|entry| entry.path());
    let records = records.filter(|path| path.extension().is_some_and(|it| it == EXTENSION));
    records.filter_map(|path| take_away_one(&path)).collect()
}

fn take_away_one(record: &Path) -> Option<Leftover> {
    let file = File::open(record).ok()?;
    // Its process lives.
    file.try_lock().ok()?;
    let text = fs::read(record).ok()?;
    let found = text.split_first().and_then(|(kind, root)| {
        let root = PathBuf::from(std::ffi::OsString::from_vec(root.to_vec()));
        let was_mounted = is_mounted(&root);
        take_away(&root, *kind == MADE);
        let is_unmounted = !is_mounted(&root);
        was_mounted.then_some(Leftover { root, is_unmounted })
    });
    // A later run may be able to.
    if found.as_ref().is_none_or(|it| it.is_unmounted) {
        let _ = fs::remove_file(record);
    }
    found
}

fn take_away(root: &Path, is_made: bool) {
    if is_mounted(root) {
        unmount(root);
    }
    if is_made {
        // An empty folder only.
        let _ = fs::remove_dir(root);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_taken_away_once_its_process_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let (made, found) = (folder.path().join("made"), folder.path().join("found"));
        let full = folder.path().join("full");
        for root in [&made, &found, &full] {
            fs::create_dir(root).unwrap();
        }
        fs::write(full.join("file"), "").unwrap();
        let records = [(&made, true), (&found, false), (&full, true)]
            .map(|(root, is_made)| Record::write_in(folder.path(), root, is_made).unwrap());
        take_away_in(folder.path());
        assert!(made.exists(), "its process lives");
        assert!(records.iter().all(|record| record.path.exists()));

        // As when the process is killed: the lock is gone, the file stays.
        let paths = records.map(|record| record.path);
        assert!(take_away_in(folder.path()).is_empty(), "none was mounted");
        assert!(!made.exists() && found.exists() && full.join("file").exists());
        assert!(paths.iter().all(|path| !path.exists()));
    }
}
