//! Programs of iptables: finding and running one of them.
//!
//! They are run without a shell and with what they need to work as any user and on a read-only file
//! system.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::MemfdFlags;

use super::file_lock;
use super::flavour::Flavour;
use crate::failure::Failure;
use crate::rule::Family;
use crate::signals;

const PLACES: &str = "/usr/sbin:/sbin:/usr/local/sbin:/usr/bin:/bin";
/// Time for one run of a program, the wait for its lock included.
const RUN_TIMEOUT: Duration = Duration::from_secs(40);
const MAX_POLL_INTERVAL: Duration = Duration::from_millis(10);

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
    /// Finds the program; `what` is `save` or `restore`. Errors name what was looked for.
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
            Failure::Absent(format!(
                "no program {exact}, and no {plain} of that flavour, in the image"
            ))
        })
    }

    /// Runs it with these arguments and this input, to its end. Files in memory stand for pipes, so
    /// that neither side waits for the other.
    ///
    /// Errors: it cannot be started, does not end in time, or a signal came; it is ended then.
    pub(super) fn run(&self, arguments: &[&str], input: &str) -> Result<Answer, Failure> {
        let failed =
            |error: std::io::Error| Failure::Refused(format!("{}: {error}", self.path.display()));
        let mut stdin = memory_file("input").map_err(failed)?;
        stdin.write_all(input.as_bytes()).map_err(failed)?;
        stdin.rewind().map_err(failed)?;
        let mut stdout = memory_file("output").map_err(failed)?;
        let mut stderr = memory_file("errors").map_err(failed)?;
        let lock = self.lock_file();
        let mut command = Command::new(&self.path);
        command.args(arguments).env("LC_ALL", "C");
        command
            .stdin(stdin)
            .stdout(stdout.try_clone().map_err(failed)?)
            .stderr(stderr.try_clone().map_err(failed)?);
        if let Some((_, path)) = &lock {
            command.env(file_lock::VARIABLE, path);
        }
        let child = command.spawn().map_err(failed)?;
        let status = self.end_of(child)?;
        let output = text_of(&mut stdout).map_err(failed)?;
        let mut complaint = text_of(&mut stderr).map_err(failed)?;
        if complaint.is_empty() && !status.success() {
            complaint = status.to_string();
        }
        Ok(Answer {
            ok: status.success(),
            output,
            complaint,
        })
    }

    /// Waits for the program to end.
    fn end_of(&self, mut child: Child) -> Result<ExitStatus, Failure> {
        let start = Instant::now();
        let mut pause = Duration::from_micros(200);
        loop {
            let ended = child.try_wait();
            let failure = match ended {
                Ok(Some(status)) => return Ok(status),
                Err(error) => Failure::Refused(format!("{}: {error}", self.path.display())),
                Ok(None) => match signals::received() {
                    Some(signal) => Failure::Interrupted(signal),
                    None if start.elapsed() > RUN_TIMEOUT => Failure::Busy(format!(
                        "{}: did not end within {} s and was killed",
                        self.path.display(),
                        RUN_TIMEOUT.as_secs()
                    )),
                    None => {
                        std::thread::sleep(pause);
                        pause = (pause * 2).min(MAX_POLL_INTERVAL);
                        continue;
                    }
                },
            };
            // The kernel takes its transaction as a whole or not at all.
            let _ = child.kill();
            let _ = child.wait();
            return Err(failure);
        }
    }

    /// Flavour of the program.
    pub(super) fn flavour(&self) -> Flavour {
        self.flavour
    }

    /// Name of the program, for messages.
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
        if self.flavour == Flavour::Nft
            || std::env::var_os(file_lock::VARIABLE).is_some()
            || file_lock::open().is_some()
        {
            return None;
        }
        let fd = rustix::fs::memfd_create("xtables.lock", MemfdFlags::empty()).ok()?;
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        Path::new(&path).exists().then(|| (fd, path.into()))
    }
}

fn memory_file(name: &str) -> std::io::Result<File> {
    Ok(rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)?.into())
}

fn text_of(file: &mut File) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
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
