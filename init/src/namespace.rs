//! Network namespace to work in, when it is not our own.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::Path;

use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::error::Error;

/// Moves this process into the network namespace at `path`.
///
/// Errors: the path is none, or the right to enter is missing.
pub fn enter(path: &Path) -> Result<(), Error> {
    let name = path.display();
    let file = File::open(path).map_err(|error| {
        Error::Config(format!(
            "--netns {name}: {error}; write a path such as /proc/123/ns/net or /run/netns/name"
        ))
    })?;
    let moved = move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network));
    moved.map_err(|errno| match errno {
        Errno::PERM => Error::NotPermitted(format!(
            "--netns {name}: entering another network namespace needs SYS_ADMIN; run agent-init as \
             root on the node, with SYS_ADMIN and NET_ADMIN"
        )),
        Errno::INVAL => Error::Config(format!(
            "--netns {name}: is no network namespace; write a path such as /proc/123/ns/net or \
             /run/netns/name"
        )),
        errno => Error::Unanswered(format!("--netns {name}: {errno}")),
    })
}
