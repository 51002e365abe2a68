//! The folder that `--mount` names, and whether it can take a mount.

use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::mount::mounted::{has_lost_its_server, is_mounted, listed_path, unmount};
use crate::report::note;
use crate::{Failure, live, local};

/// Program that mounts.
pub(crate) const SSHFS: &str = "sshfs";
/// Remedy where a folder cannot take a mount.
const OTHER: &str = "name a folder of yours that is empty or not there yet";

/// Folder that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// None: nothing is mounted.
    Nowhere,
    /// A new folder.
    Anywhere,
    /// This one.
    In(PathBuf),
}

impl std::str::FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "" => Err("nothing follows --mount=; name a folder, or write true or false".into()),
            "false" => Ok(Self::Nowhere),
            "true" => Ok(Self::Anywhere),
            folder => Ok(Self::In(folder.into())),
        }
    }
}

impl Wanted {
    /// Checks that mounting is possible, before anything is created. A mount of the folder whose
    /// sshfs is gone is taken away.
    ///
    /// # Errors
    /// sshfs is missing, or the folder cannot take a mount; the text has the remedy.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        if *self == Self::Nowhere {
            return Ok(());
        }
        if !local::is_in_path(SSHFS.as_ref()) {
            return Err(Failure::Failed(
                "--mount: sshfs is not in PATH; apt-get install sshfs (Debian, Ubuntu), dnf install \
                 fuse-sshfs (Fedora), or leave --mount out"
                    .into(),
            ));
        }
        // Where what a killed run leaves behind is recorded.
        live::folder().map_err(|error| {
            Failure::Failed(format!(
                "--mount: {error}; set XDG_RUNTIME_DIR to a folder of yours"
            ))
        })?;
        let checked = match self {
            Self::In(folder) => check_place(folder),
            _ => local::check_writable(&std::env::temp_dir())
                .map_err(|why| format!("{why}; TMPDIR says where new folders are made")),
        };
        checked.map_err(|why| match self {
            Self::In(folder) => Failure::Failed(format!("--mount {}: {why}", folder.display())),
            _ => Failure::Failed(format!("--mount: {why}")),
        })
    }
}

/// Checks that a folder can take a mount, or can be made.
fn check_place(folder: &Path) -> Result<(), String> {
    free(&listed_path(folder))?;
    match fs::read_dir(folder).map(|mut entries| entries.next().is_none()) {
        Ok(true) => local::check_writable(folder).map_err(|why| format!("{why}; {OTHER}")),
        Ok(false) => Err(format!("the folder is not empty; {OTHER}")),
        // Also if a part of the path is one.
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            Err(format!("a file is there and no folder; {OTHER}"))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if fs::symlink_metadata(folder).is_ok() {
                return Err(format!("a link that leads nowhere; {OTHER}"));
            }
            let mut above = folder.ancestors().skip(1);
            let above = above.find(|it| it.as_os_str().is_empty() || it.exists());
            local::check_writable(above.unwrap_or(folder)).map_err(|why| format!("{why}; {OTHER}"))
        }
        Err(error) => Err(format!("{error}; {OTHER}")),
    }
}

/// Checks that nothing is mounted at a folder, as the system lists it, and takes away what has lost
/// its server: nobody can use that, and the run that left it may have kept its record elsewhere.
fn free(folder: &Path) -> Result<(), String> {
    if !is_mounted(folder) {
        return Ok(());
    }
    let at = folder.display();
    let remedy = format!("fusermount3 -u {at}, or umount {at} as root, unmounts it");
    if !has_lost_its_server(folder) {
        return Err(format!(
            "something is mounted there already; {OTHER}; {remedy}"
        ));
    }
    unmount(folder);
    if is_mounted(folder) {
        return Err(format!(
            "a mount is there whose sshfs has ended, and it cannot be unmounted; {remedy}"
        ));
    }
    note(format_args!("Unmounted {at}, whose sshfs had ended"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_is_named_made_or_none() {
        assert_eq!("true".parse(), Ok(Wanted::Anywhere));
        assert_eq!("false".parse(), Ok(Wanted::Nowhere));
        assert_eq!("/mnt/x".parse(), Ok(Wanted::In("/mnt/x".into())));
        assert!("".parse::<Wanted>().is_err());
    }
}
