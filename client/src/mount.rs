//! The volumes of the app's container in a folder of this machine: sshfs mounts them through a port
//! that leads to the pod's file service.
//!
//! When the connection breaks, sshfs unmounts and ends; it is started again as long as the
//! intercept lives. What a killed process leaves behind is in [`leftovers`].

pub(crate) mod leftovers;
pub(crate) mod link;
mod mounted;
pub mod wanted;

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, Command};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use traffic_proto::manager::SessionInfo;

use crate::Failure;
use crate::container::facts::Facts;
use crate::mount::leftovers::Record;
use crate::mount::link::{Files, Link};
use crate::mount::mounted::{is_mounted, unmount};
use crate::mount::wanted::{SSHFS, Wanted};
use crate::report::note;
use crate::session::Manager;

/// Time for sshfs to mount.
const MOUNT_TIMEOUT: Duration = Duration::from_secs(20);
/// Interval at which it is looked if it has.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// Time for sshfs to unmount and end.
const END_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause before it is started again.
const RETRY_DELAY: Duration = Duration::from_secs(1);
/// Most bytes of what sshfs says that are told to the user.
const MAX_COMPLAINT: u64 = 4096;

/// Mounted volumes.
#[derive(Debug)]
pub(crate) struct Mount {
    root: PathBuf,
    link: Link,
    stop: CancellationToken,
    keeping: JoinSet<()>,
    record: Record,
}

impl Mount {
    /// Mounts the volumes of a container; `None` if there are none.
    ///
    /// # Errors
    /// The folder cannot be made, or sshfs fails; the text has its words.
    pub(crate) async fn start(
        wanted: &Wanted,
        manager: Manager,
        session: &SessionInfo,
        facts: &Facts,
    ) -> Result<Option<Self>, Failure> {
        if *wanted == Wanted::Nowhere {
            return Ok(None);
        }
        let Some(files) = facts.files.clone() else {
            note("The container has no volumes to mount, or its agent does not offer them");
            return Ok(None);
        };
        let (root, is_made) = folder(wanted, &facts.name)?;
        let failed = |error: io::Error| Failure::Failed(format!("--mount: {error}"));
        let record = Record::write(&root, is_made).map_err(failed)?;
        let link = Link::open(manager, session, files).await.map_err(failed)?;
        let stop = CancellationToken::new();
        let (first_tx, first_rx) = oneshot::channel();
        let mut keeping = JoinSet::new();
        let options = options(facts);
        let kept = keep(link.clone(), root.clone(), options, stop.clone(), first_tx);
        keeping.spawn(kept);
        let mut mount = Self {
            root,
            link,
            stop,
            keeping,
            record,
        };
        match first_rx.await {
            Ok(Ok(())) => Ok(Some(mount)),
            Ok(Err(why)) => {
                mount.end().await;
                Err(Failure::Failed(format!("--mount: sshfs: {why}")))
            }
            Err(_) => {
                mount.end().await;
                Err(Failure::Failed("--mount: sshfs has ended".into()))
            }
        }
    }

    /// Returns the folder below which the container's paths stand.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Follows the container to another pod, and the client to another session.
    pub(crate) fn follow(&self, manager: Manager, session: &SessionInfo, files: Files) {
        self.link.lead(manager, session, files);
    }

    /// Unmounts, and removes the folder if it was made for this.
    pub(crate) async fn end(&mut self) {
        self.stop.cancel();
        while self.keeping.join_next().await.is_some() {}
        self.record.clean_up();
    }
}

/// Returns the folder to mount at, and whether it was made.
fn folder(wanted: &Wanted, name: &str) -> Result<(PathBuf, bool), Failure> {
    let failed = |folder: &Path, error: io::Error| {
        Failure::Failed(format!("--mount {}: {error}", folder.display()))
    };
    if let Wanted::In(folder) = wanted {
        let is_made = !folder.exists();
        std::fs::create_dir_all(folder).map_err(|error| failed(folder, error))?;
        // What the system lists as mounted has no links in it.
        let folder = folder
            .canonicalize()
            .map_err(|error| failed(folder, error))?;
        return Ok((folder, is_made));
    }
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let prefix: String = format!("intercept-{name}-").chars().map(plain).collect();
    // Readable by its owner alone.
    let made = tempfile::Builder::new().prefix(&prefix).tempdir();
    let made = made
        .map_err(|error| failed(&std::env::temp_dir(), error))?
        .keep();
    let made = made.canonicalize().map_err(|error| failed(&made, error))?;
    Ok((made, true))
}

/// Keeps the volumes mounted until `stop`. The result of the first attempt is told; when it fails
/// there is no other.
async fn keep(
    link: Link,
    root: PathBuf,
    options: &'static str,
    stop: CancellationToken,
    first_tx: oneshot::Sender<Result<(), String>>,
) {
    let mut first = Some(first_tx);
    while !stop.is_cancelled() {
        let ended = match start_sshfs(&link, &root, options) {
            Ok(mut child) => {
                let mounted = stop.run_until_cancelled(mounted(&mut child, &root)).await;
                let mounted = mounted.unwrap_or(Ok(()));
                let is_mounted = mounted.is_ok();
                if let Some(first) = first.take() {
                    let _ = first.send(mounted.clone());
                    if !is_mounted {
                        end_sshfs(child, &root).await;
                        return;
                    }
                    tracing::debug!(root = %root.display(), "volumes are mounted");
                }
                if is_mounted {
                    // It ends by itself when the connection does.
                    let _ = stop.run_until_cancelled(child.wait()).await;
                }
                end_sshfs(child, &root).await;
                mounted
                    .err()
                    .unwrap_or_else(|| "the connection has ended".into())
            }
            Err(error) => {
                if let Some(first) = first.take() {
                    let _ = first.send(Err(error.to_string()));
                    return;
                }
                error.to_string()
            }
        };
        tracing::debug!(root = %root.display(), "volumes are no longer mounted: {ended}");
        let _ = stop.run_until_cancelled(sleep(RETRY_DELAY)).await;
    }
}

/// Options of sshfs beside the port.
fn options(facts: &Facts) -> &'static str {
    match facts.is_read_only {
        true => "follow_symlinks,ro",
        false => "follow_symlinks",
    }
}

fn start_sshfs(link: &Link, root: &Path, options: &str) -> io::Result<Child> {
    let (port, folder) = (link.port(), link.folder());
    Command::new(SSHFS)
        .args(["-f", "-o"])
        .arg(format!("directport={port},{options}"))
        .arg(format!("127.0.0.1:{folder}"))
        .arg(root)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        // Ctrl-C is for us; the volumes stay until the command has ended.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
}

/// Waits until sshfs has mounted; an error has its words.
async fn mounted(child: &mut Child, root: &Path) -> Result<(), String> {
    let mut ticks = interval(LOOK_INTERVAL);
    let seen = async {
        loop {
            ticks.tick().await;
            if is_mounted(root) {
                return;
            }
        }
    };
    let ended = tokio::select! {
        seen = timeout(MOUNT_TIMEOUT, seen) => {
            return seen.map_err(|_| format!("nothing is mounted after {MOUNT_TIMEOUT:?}"));
        }
        ended = child.wait() => ended,
    };
    let mut words = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        let _ = stderr.take(MAX_COMPLAINT).read_to_end(&mut words).await;
    }
    let words = String::from_utf8_lossy(&words).trim().to_owned();
    match (words.as_str(), ended) {
        ("", Ok(status)) => Err(format!("ended with {status}")),
        ("", Err(error)) => Err(error.to_string()),
        _ => Err(words),
    }
}

/// Ends sshfs, which unmounts; what it leaves is unmounted.
async fn end_sshfs(mut child: Child, root: &Path) {
    if let Some(pid) = child.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
        let _ = kill_process(pid, Signal::TERM);
    }
    if timeout(END_TIMEOUT, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
    if is_mounted(root) {
        unmount(root);
    }
}
