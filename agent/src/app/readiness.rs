//! The readiness probe in both its forms: our own, and the `stat` that stock traffic-managers write
//! into pods. Images hold no other program, so the agent's answers to that name as well.

use std::ffi::OsString;
use std::path::Path;
use std::time::{Duration, Instant};

/// Pause between two looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// The file that the agent makes on its first arrival at a traffic-manager.
const READY_FILE: &str = "tmp/agent/ready";

/// Exit code of `traffic-agent ready`: 0 as soon as the file is there, 1 when it is not after `wait`.
#[must_use]
pub fn ready(root: &Path, wait: Duration) -> u8 {
    let file = root.join(READY_FILE);
    let deadline = Instant::now() + wait;
    while !file.exists() {
        if Instant::now() >= deadline {
            eprintln!(
                "not ready: no {}; the agent has not reached its traffic-manager yet",
                file.display()
            );
            return 1;
        }
        pause();
    }
    0
}

#[expect(
    clippy::disallowed_methods,
    reason = "the probe is a process of its own, without a runtime"
)]
fn pause() {
    std::thread::sleep(LOOK_INTERVAL);
}

/// Exit code of `stat FILE...`, where the program is called by that name: 0 when all are there.
pub fn as_stat(args: impl IntoIterator<Item = OsString>) -> Option<u8> {
    let mut args = args.into_iter();
    let name = args.next()?;
    if Path::new(&name).file_name()? != "stat" {
        return None;
    }
    let mut code = 0;
    for file in args {
        if let Err(error) = std::fs::metadata(&file) {
            eprintln!("stat: {}: {error}", Path::new(&file).display());
            code = 1;
        }
    }
    Some(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(words: &[&str]) -> Option<u8> {
        as_stat(words.iter().map(OsString::from))
    }

    #[test]
    fn ready_answers_as_soon_as_the_file_is_there() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(ready(root.path(), Duration::ZERO), 1);
        let folder = root.path().join("tmp/agent");
        std::fs::create_dir_all(&folder).unwrap();
        let writer = std::thread::spawn(move || std::fs::write(folder.join("ready"), ""));
        assert_eq!(ready(root.path(), Duration::from_secs(30)), 0);
        writer.join().unwrap().unwrap();
    }

    #[test]
    fn only_the_name_stat_makes_a_stat() {
        assert_eq!(stat(&["/usr/local/bin/traffic-agent", "agent"]), None);
        assert_eq!(stat(&["/bin/stat", "/"]), Some(0));
        assert_eq!(stat(&["stat", "/", "/no/such/file"]), Some(1));
    }
}
