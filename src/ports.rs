//! Free ports for programs that need to know theirs beforehand.
//!
//! They lie below the range the kernel assigns, and a lock file for each keeps concurrent tests
//! apart, within one process or several.

use std::fs::{File, OpenOptions};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::sync::Mutex;

/// Lock files, held as long as this process lives.
static TAKEN: Mutex<Vec<File>> = Mutex::new(Vec::new());

const RANGE: std::ops::Range<u16> = 12_000..31_000;

/// Returns a port that is free for TCP and UDP on loopback, reserved until this process ends.
pub fn free() -> u16 {
    let folder = std::env::temp_dir().join("traffic-agent-test-ports");
    std::fs::create_dir_all(&folder).unwrap();
    let size = u32::from(RANGE.end - RANGE.start);
    // Processes begin at different places, so that they seldom meet.
    let start = std::process::id().wrapping_mul(7919) % size;
    for offset in 0..size {
        let port = RANGE.start + u16::try_from((start + offset) % size).unwrap();
        let mut taken = TAKEN.lock().unwrap();
        let lock = OpenOptions::new()
            .create(true)
            .append(true)
            .open(folder.join(port.to_string()))
            .unwrap();
        if lock.try_lock().is_ok() && is_free(port) {
            taken.push(lock);
            return port;
        }
    }
    panic!("no free port in {RANGE:?}");
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok()
        && UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_port_is_handed_out_twice() {
        let ports: std::collections::BTreeSet<u16> = (0..50).map(|_| free()).collect();
        assert_eq!(ports.len(), 50);
    }
}
