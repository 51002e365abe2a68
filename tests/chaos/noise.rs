//! Hostile callers beside the others: half requests, garbage, resets.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use harness::random::Random;

use crate::callers::Kind;
use crate::seats::Testbed;

/// Number of protocols that are HTTP, which come first.
const HTTP: usize = 3;
/// Connections that are kept open half-said.
const HELD: usize = 50;

pub(crate) fn make(testbed: &Testbed, mut random: Random, finish: &AtomicBool) {
    let mut held = Vec::new();
    while !finish.load(Ordering::Relaxed) {
        let kind = Kind::ALL[random.below(HTTP)];
        // The same answer whoever gives it: these have no account.
        if let Ok(mut stream) = TcpStream::connect(testbed.address(kind)) {
            let _ = stream.set_read_timeout(Some(Duration::from_millis(20)));
            let text: Vec<u8> = match random.below(6) {
                0 => b"GET / HTTP/1.1\r\nhost: a".to_vec(),
                1 => b"POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\nfew".to_vec(),
                2 => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x04\x01\x05\0\0\0\x01\xff\xff\xff\xff"
                    .to_vec(),
                3 => {
                    b"GET /x HTTP/1.1\r\nhost: a\r\n\r\nGET /y HTTP/1.1\r\nhost: a\r\n\r\n".to_vec()
                }
                4 => Vec::new(),
                _ => random.bytes(2000),
            };
            let _ = stream.write_all(&text);
            match random.below(3) {
                // With answers unread the kernel sends a reset.
                0 => drop(stream),
                1 => {
                    let _ = stream.read(&mut [0; 100]);
                }
                _ => held.push(stream),
            }
            if held.len() > HELD {
                held.swap_remove(random.below(HELD));
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
