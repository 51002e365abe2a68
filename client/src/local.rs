//! This machine: the address that requests are delivered to, and files that only its user reads.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::Path;

use rustix::fs::Access;
use rustix::io::Errno;

use crate::Failure;

/// The address of a local server by host and port.
pub(crate) async fn resolve(host: &str, port: u16) -> Result<SocketAddr, Failure> {
    let found = tokio::net::lookup_host((host, port)).await;
    let found = found.map_err(|error| {
        Failure::Failed(format!(
            "--address {host}: {error}; name a host or an IP address"
        ))
    })?;
    let addresses: Vec<SocketAddr> = found
        .map(|address| SocketAddr::new(address.ip().to_canonical(), port))
        .collect();
    // Names such as localhost mean both families; servers for development mostly listen on the
    // older one.
    let chosen = addresses
        .iter()
        .find(|address| address.is_ipv4())
        .or(addresses.first());
    chosen
        .copied()
        .ok_or_else(|| Failure::Failed(format!("--address {host} has no address")))
}

/// Checks that files and folders can be made in a folder; an empty path is the current one.
///
/// # Errors
/// They cannot; the text names the folder.
pub(crate) fn check_writable(folder: &Path) -> Result<(), String> {
    let folder = match folder.as_os_str().is_empty() {
        true => Path::new("."),
        false => folder,
    };
    let named = folder.display();
    match fs::metadata(folder) {
        Ok(found) if found.is_dir() => {}
        Ok(_) => return Err(format!("{named} is a file and no folder")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(format!("the folder {named} is not there"));
        }
        Err(error) => return Err(format!("the folder {named}: {error}")),
    }
    // Asks the kernel, which also knows of file systems that are for reading only.
    rustix::fs::access(folder, Access::WRITE_OK | Access::EXEC_OK).map_err(|error| match error {
        Errno::ACCESS => format!("you may not write into the folder {named}"),
        error => format!(
            "the folder {named} cannot be written: {}",
            io::Error::from(error)
        ),
    })
}

/// Returns true if a program of this name is in a folder of PATH.
pub(crate) fn is_in_path(program: &OsStr) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| is_executable(&folder.join(program)))
}

/// Returns true if this is a file that its user may execute.
pub(crate) fn is_executable(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, Access::EXEC_OK).is_ok()
}

/// Writes a file readable only by its owner, because an app's environment often holds secrets. It
/// is made anew and takes the place of what has that name, a link or a file open to others.
pub(crate) fn write_secret(path: &Path, text: &str) -> std::io::Result<()> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    // Opened with `O_EXCL` and mode 0600.
    let mut file = tempfile::NamedTempFile::new_in(folder.unwrap_or(Path::new(".")))?;
    file.write_all(text.as_bytes())?;
    file.persist(path)?;
    Ok(())
}
