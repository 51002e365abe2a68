//! Files the agent leaves for other programs of the pod, below `/tmp/agent`. `/tmp` may be shared
//! with others: nothing they have put there is followed, written into, or made accessible.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

/// Mode of the files: others only read them, such as a readiness probe of another user.
const FILE_MODE: Mode = Mode::from_raw_mode(0o644);
/// Mode of their folder.
const FOLDER_MODE: Mode = Mode::from_raw_mode(0o755);

/// Writes a file, as a whole or not at all, in a folder of ours, which is made if it is missing.
///
/// # Errors
/// The kernel's, or what is wrong with the folder.
pub fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let folder = open_folder(folder)?;
    let fresh = format!(".{}.{}", name.to_string_lossy(), std::process::id());
    // Left behind by a process of the same number, or put there by somebody else.
    let _ = rustix::fs::unlinkat(&folder, &fresh, rustix::fs::AtFlags::empty());
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::openat(&folder, &fresh, flags, FILE_MODE)?);
    // The umask may have taken the others' right to read.
    rustix::fs::fchmod(&file, FILE_MODE)?;
    file.write_all(content)?;
    // Renamed into place, so that readers never see half of it; a link of that name is replaced.
    rustix::fs::renameat(&folder, &fresh, &folder, name)?;
    Ok(())
}

/// Opens the folder, which must be a real one that only we or root may change.
fn open_folder(path: &Path) -> io::Result<std::os::fd::OwnedFd> {
    if let Some(above) = path.parent() {
        std::fs::create_dir_all(above)?;
    }
    match rustix::fs::mkdirat(CWD, path, FOLDER_MODE) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(|error| {
        if error == Errno::LOOP || error == Errno::NOTDIR {
            io::Error::other("the folder is a link or no folder; remove it")
        } else {
            error.into()
        }
    })?;
    let found = rustix::fs::fstat(&folder)?;
    let us = rustix::process::geteuid().as_raw();
    if found.st_uid == us {
        // Earlier versions made it writable for everybody.
        if Mode::from_raw_mode(found.st_mode) & Mode::from_raw_mode(0o022) != Mode::empty() {
            rustix::fs::fchmod(&folder, FOLDER_MODE)?;
        }
    } else if found.st_uid != 0 {
        return Err(io::Error::other(format!(
            "the folder belongs to user {}, not to {us} or root; remove it",
            found.st_uid
        )));
    }
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    use super::*;

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().mode() & 0o7777
    }

    #[test]
    fn files_are_for_others_to_read_and_replaced_as_a_whole() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("tmp/agent/ready");
        for text in ["one", "two"] {
            write(&file, text.as_bytes()).unwrap();
            assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
            assert_eq!(mode(&file), 0o644);
            assert_eq!(mode(file.parent().unwrap()), 0o755);
        }
        assert_eq!(
            std::fs::read_dir(file.parent().unwrap()).unwrap().count(),
            1
        );
    }

    #[test]
    fn links_are_replaced_and_never_followed() {
        let root = tempfile::tempdir().unwrap();
        let (victim, folder) = (root.path().join("victim"), root.path().join("agent"));
        std::fs::write(&victim, "secret").unwrap();
        std::fs::set_permissions(&victim, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::create_dir(&folder).unwrap();
        for name in ["ready".to_owned(), format!(".ready.{}", std::process::id())] {
            symlink(&victim, folder.join(name)).unwrap();
        }
        write(&folder.join("ready"), b"new").unwrap();
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "secret");
        assert_eq!(mode(&victim), 0o600);
        assert!(!folder.join("ready").is_symlink());
        assert_eq!(
            std::fs::read_to_string(folder.join("ready")).unwrap(),
            "new"
        );
    }

    #[test]
    fn a_folder_that_is_not_ours_is_refused_and_one_open_to_all_is_closed() {
        let root = tempfile::tempdir().unwrap();
        let (elsewhere, linked) = (root.path().join("elsewhere"), root.path().join("agent"));
        std::fs::create_dir(&elsewhere).unwrap();
        symlink(&elsewhere, &linked).unwrap();
        let refused = write(&linked.join("ready"), b"").unwrap_err().to_string();
        assert!(refused.contains("link"), "{refused}");
        assert_eq!(std::fs::read_dir(&elsewhere).unwrap().count(), 0);
        std::fs::set_permissions(&elsewhere, std::fs::Permissions::from_mode(0o777)).unwrap();
        write(&elsewhere.join("ready"), b"").unwrap();
        assert_eq!(mode(&elsewhere), 0o755);
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&elsewhere, Some(12345), None).unwrap();
            let refused = write(&elsewhere.join("ready"), b"")
                .unwrap_err()
                .to_string();
            assert!(refused.contains("12345"), "{refused}");
        }
    }
}
