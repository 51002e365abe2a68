//! A raw caller: sends while it reads, and tells how the connection ended.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::mpsc;
use std::time::Duration;

use harness::wait::WAIT_TIMEOUT;

/// End of a connection, as its caller sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The server's FIN, and everything could be sent.
    Closed,
    /// A reset, heard while reading or while sending.
    Reset,
    /// The server keeps the connection open.
    Open,
}

/// Bytes and end of a connection, as its caller sees them.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// Everything that came.
    pub(crate) bytes: Vec<u8>,
    /// End of the connection.
    pub(crate) end: End,
}

impl Outcome {
    /// Returns a form to compare and to print: without the time of day, long runs shortened.
    pub(crate) fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.bytes);
        let mut out = String::new();
        for line in text.split_inclusive('\n') {
            let run = line.chars().filter(|c| *c == 'x').count();
            if line.starts_with("Date: ") {
                continue;
            }
            if run > 1000 {
                out += &format!("({} bytes, {run} of the body)\n", line.len());
            } else {
                out += line;
            }
        }
        out
    }
}

/// Silence after which a connection counts as kept open.
const QUIET_TIMEOUT: Duration = Duration::from_millis(700);

/// Time in which a sender that is blocked hears of a reset.
const RESET_TIMEOUT: Duration = Duration::from_millis(100);

/// Sends `request` on a connection of its own and reads to the end, or until nothing more comes
/// behind the `expected` bytes.
pub(crate) fn ask(server: SocketAddr, request: &[u8], expected: usize) -> Outcome {
    let mut stream = TcpStream::connect_timeout(&server, WAIT_TIMEOUT).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_write_timeout(Some(WAIT_TIMEOUT)).unwrap();
    let mut writer = stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        let (tell, told) = mpsc::channel();
        scope.spawn(move || tell.send(writer.write_all(request).is_err()));
        let (bytes, mut end) = read_out(&mut stream, expected);
        // The kernel tells a reset once, to the reader or to the sender.
        if end == End::Closed && told.recv_timeout(RESET_TIMEOUT) == Ok(true) {
            end = End::Reset;
        }
        // Ends the sender as well.
        let _ = stream.shutdown(Shutdown::Both);
        Outcome { bytes, end }
    })
}

fn read_out(stream: &mut TcpStream, expected: usize) -> (Vec<u8>, End) {
    stream.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
    let (mut bytes, mut piece) = (Vec::new(), vec![0; 64 * 1024]);
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return (bytes, End::Closed),
            Ok(count) => {
                let was_short = bytes.len() < expected;
                bytes.extend_from_slice(&piece[..count]);
                if was_short && bytes.len() >= expected {
                    stream.set_read_timeout(Some(QUIET_TIMEOUT)).unwrap();
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return (bytes, End::Open),
            Err(_) => return (bytes, End::Reset),
        }
    }
}
