//! The folder that `--mount` names, and whether it can take a mount.

use std::io;
use std::path::PathBuf;

use crate::Failure;

/// Program that mounts.
pub(crate) const SSHFS: &str = "sshfs";

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
    /// Checks that mounting is possible, before anything is created.
    ///
    /// # Errors
    /// sshfs is missing, or the folder cannot take a mount; the text has the remedy.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        let failed = |text: String| Err(Failure::Failed(text));
        if *self == Self::Nowhere {
            return Ok(());
        }
        if !is_in_path(SSHFS) {
            return failed(
                "--mount: sshfs is not in PATH; apt-get install sshfs (Debian, Ubuntu), dnf install \
                 fuse-sshfs (Fedora), or leave --mount out"
                    .into(),
            );
        }
        let Self::In(folder) = self else {
            return Ok(());
        };
        match std::fs::read_dir(folder).map(|mut entries| entries.next().is_none()) {
            Ok(true) => Ok(()),
            Ok(false) => failed(format!(
                "--mount {}: the folder is not empty; name an empty or a new one",
                folder.display()
            )),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => failed(format!("--mount {}: {error}", folder.display())),
        }
    }
}

fn is_in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
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
