//! Programs of iptables: finding and running one of them.
//!
//! They are run without a shell and with what they need to work as any user and on a read-only file
//! system.

use std::ffi::OsString;
use std::io::Write as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::MemfdFlags;

use super::flavour::Flavour;
use crate::failure::Failure;
use crate::rule::Family;

const LOCK_FILE: &str = "/run/xtables.lock";
const PLACES: &str = "/usr/sbin:/sbin:/usr/local/sbin:/usr/bin:/bin";

/// Output of the program, and its success.
pub(super) struct Answer {
    pub(super) ok: bool,
    pub(super) output: String,
    pub(super) complaint: String,
}

/// Program that was found in the image.
pub(super) struct IptablesProgram {
    path: PathBuf,
    flavour: Flavour,
}

impl IptablesProgram {
    /// `what` is `save` or `restore`. Errors name what was looked for.
    pub(super) fn find(flavour: Flavour, family: Family, what: &str) -> Result<Self, Failure> {
        let base = if family == Family::V4 {
            "iptables"
        } else {
            "ip6tables"
        };
        let exact = format!("{base}-{}-{what}", flavour.word());
        let plain = format!("{base}-{what}");
        if let Some(path) = in_path(&exact) {
            return Ok(Self { path, flavour });
        }
        // An image may have one flavour only, under the plain name.
        let path = in_path(&plain).filter(|path| flavour_of(path) == Some(flavour));
        path.map(|path| Self { path, flavour }).ok_or_else(|| {
            Failure::Unusable(format!(
                "no program {exact}, and no {plain} of that flavour, in the image"
            ))
        })
    }

    /// Runs it with these arguments and this input, to its end.
    pub(super) fn run(&self, arguments: &[&str], input: &str) -> Result<Answer, Failure> {
        let failed =
            |error: std::io::Error| Failure::Unusable(format!("{}: {error}", self.path.display()));
        let lock = self.lock_file();
        let mut command = Command::new(&self.path);
        command.args(arguments).env("LC_ALL", "C");
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some((_, path)) = &lock {
            command.env("XTABLES_LOCKFILE", path);
        }
        let mut child = command.spawn().map_err(failed)?;
        // It reads all its input before it prints; one that stops reading says why on its own.
        if let Some(mut stdin) = child.stdin.take() {
            let _ = stdin.write_all(input.as_bytes());
        }
        let done = child.wait_with_output().map_err(failed)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        let mut complaint = text(&done.stderr);
        if complaint.is_empty() && !done.status.success() {
            complaint = done.status.to_string();
        }
        Ok(Answer {
            ok: done.status.success(),
            output: text(&done.stdout),
            complaint,
        })
    }

    /// The program's name, for messages.
    pub(super) fn name(&self) -> String {
        self.path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default()
    }

    /// The legacy flavour insists on a lock file. Where its usual one cannot be opened, a file in
    /// memory serves: our runs exclude each other by other means, and nobody else is in this file
    /// system.
    fn lock_file(&self) -> Option<(OwnedFd, OsString)> {
        let usable = || {
            std::fs::OpenOptions::new()
                .append(true)
                .create(true)
                .open(LOCK_FILE)
                .is_ok()
        };
        if self.flavour == Flavour::Nft
            || std::env::var_os("XTABLES_LOCKFILE").is_some()
            || usable()
        {
            return None;
        }
        let fd = rustix::fs::memfd_create("xtables.lock", MemfdFlags::empty()).ok()?;
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        Path::new(&path).exists().then(|| (fd, path.into()))
    }
}

fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(PLACES.split(':'))
        .filter(|place| !place.is_empty())
        .map(|place| Path::new(place).join(name))
        .find(|it| it.is_file())
}

/// Flavour of a program of the plain name; those from before the split say nothing and are legacy.
fn flavour_of(path: &Path) -> Option<Flavour> {
    let done = Command::new(path)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .ok()?;
    let version = String::from_utf8_lossy(&done.stdout).into_owned();
    let flavour = if version.contains("nf_tables") {
        Flavour::Nft
    } else {
        Flavour::Legacy
    };
    done.status.success().then_some(flavour)
}
