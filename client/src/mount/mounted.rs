//! What is mounted on this machine. A look at it never touches the mount itself: one whose server is
//! gone would hold whoever does.

use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Duration;
use std::{fs, io};

/// Linux' list of mounts; other systems have none.
const MOUNTS: &str = "/proc/self/mountinfo";
/// Time for a mount to answer.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);
/// Programs that unmount for a user, and their options: at once, whoever still uses it.
const UNMOUNTERS: [(&str, &str); 3] = [
    ("fusermount3", "-uz"),
    ("fusermount", "-uz"),
    ("umount", "-f"),
];

/// Returns true if something is mounted at a folder, whose path is canonical.
pub(crate) fn is_mounted(folder: &Path) -> bool {
    match fs::read(MOUNTS) {
        Ok(list) => is_listed(&list, folder),
        Err(_) => {
            let device = |path: &Path| fs::metadata(path).map(|it| it.dev()).ok();
            folder
                .parent()
                .is_some_and(|parent| device(parent) != device(folder))
        }
    }
}

/// Returns the path of a folder as the system lists it, without links. What is mounted there is not
/// looked at.
pub(crate) fn listed_path(folder: &Path) -> PathBuf {
    let below = || {
        let parent = match folder.parent()? {
            parent if parent.as_os_str().is_empty() => Path::new("."),
            parent => parent,
        };
        Some(parent.canonicalize().ok()?.join(folder.file_name()?))
    };
    let whole = folder.canonicalize().ok();
    whole.or_else(below).unwrap_or_else(|| folder.to_owned())
}

/// Returns true if the program that serves a mount has ended. One that lives and does not answer
/// would hold whoever asks, so a thread of its own does.
pub(crate) fn has_lost_its_server(folder: &Path) -> bool {
    let (answer_tx, answer_rx) = sync_channel(1);
    let folder = folder.to_owned();
    let asking = thread::Builder::new().spawn(move || {
        let error = fs::metadata(folder).err();
        let _ = answer_tx.send(error.map(|error| error.kind()));
    });
    asking.is_ok() && answer_rx.recv_timeout(LOOK_TIMEOUT) == Ok(Some(io::ErrorKind::NotConnected))
}

fn is_listed(list: &[u8], folder: &Path) -> bool {
    let wanted = escaped(folder.as_os_str().as_bytes());
    // The fifth field is where.
    let mut lines = list.split(|b| *b == b'\n');
    lines.any(|line| line.split(|b| *b == b' ').nth(4) == Some(&wanted))
}

/// Returns a path as the list writes it.
fn escaped(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for byte in path {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' => out.extend(format!("\\{byte:03o}").bytes()),
            _ => out.push(*byte),
        }
    }
    out
}

/// Unmounts a folder, by whichever program is there and can.
pub(crate) fn unmount(folder: &Path) {
    for (program, option) in UNMOUNTERS {
        let mut command = Command::new(program);
        command.arg(option).arg(folder);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        if command.status().is_ok_and(|status| status.success()) {
            return;
        }
    }
    tracing::debug!(folder = %folder.display(), "cannot be unmounted");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_found_by_its_whole_path() {
        let list = b"1 2 0:3 / /proc rw - proc proc rw\n\
                     4 2 0:5 / /tmp/a\\040b rw - fuse.sshfs 127.0.0.1:/x rw\n";
        assert!(is_listed(list, Path::new("/proc")));
        assert!(is_listed(list, Path::new("/tmp/a b")));
        for other in ["/tmp", "/tmp/a", "/pro", "/"] {
            assert!(!is_listed(list, Path::new(other)), "{other}");
        }
        assert!(!is_mounted(&std::env::temp_dir().join("nothing is there")));
    }
}
